"""What TRL makes of given log-probs, as a table of cases, so that our losses can be held against it without TRL.

    pip install trl==1.16.0
    PYTHONPATH=src python tests/train/trl_losses.py    # writes tests/cases/trl_losses.jsonl

TRL's own methods compute every value; only the model and the data behind them are replaced by the log-probs of a case.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

TABLE = Path(__file__).parents[1] / "cases" / "trl_losses.jsonl"


@dataclass(frozen=True, kw_only=True)
class Case:
    """K pairs and what TRL says to them. losses: in TRL's words. objective: in ours. value: TRL's mean loss, version: whose.

    chosen, rejected: log-probs of the tokens of each response. prompt: of the prompt's tokens, which one of TRL's losses trains too.
    reference_chosen, reference_rejected: of whole responses.
    """

    losses: tuple[str, ...]
    objective: str
    input: str
    weights: tuple[float, ...]
    beta: float
    label_smoothing: float
    prompt: tuple[float, ...]
    chosen: tuple[tuple[float, ...], ...]
    rejected: tuple[tuple[float, ...], ...]
    reference_chosen: tuple[float, ...]
    reference_rejected: tuple[float, ...]
    value: float = 0.0
    version: str = ""


def read_table() -> list[Case]:
    """The cases as they were committed."""
    return [_case(json.loads(line)) for line in TABLE.read_text("utf-8").splitlines()]


def _case(row: dict[str, Any]) -> Case:
    sides: dict[str, Any] = {name: tuple(map(tuple, row.pop(name))) for name in ("chosen", "rejected")}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Case(**values, **sides)


# --- what TRL says -----------------------------------------------------------------------------------------------------


def trl_value(case: Case) -> float:
    """The loss of TRL's trainer for this case."""
    return _orpo(case) if case.losses == ("orpo",) else _dpo(case)


def _padded(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    return pad_sequence([torch.tensor(row, dtype=torch.float64) for row in rows], batch_first=True)


def _dpo(case: Case) -> float:
    from trl import DPOTrainer

    tokens = _padded(case.chosen + case.rejected)
    # One token of prompt in front, whose log-prob nobody asks for.
    mask = torch.nn.functional.pad((tokens != 0).long(), (1, 0))
    trainer = object.__new__(DPOTrainer)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda value: value, gather_for_metrics=lambda value: value)
    settings = {
        "model": SimpleNamespace(training=True),
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "beta": case.beta,
        "loss_types": list(case.losses),
        "loss_weights": list(case.weights),
        "label_smoothing": case.label_smoothing,
        "use_weighting": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in settings.items():
        setattr(trainer, name, value)
    nothing = torch.zeros_like(tokens)
    outputs = SimpleNamespace(log_probs=tokens, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    inputs = {
        "input_ids": mask,
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": torch.tensor(case.reference_chosen, dtype=torch.float64),
        "ref_rejected_logps": torch.tensor(case.reference_rejected, dtype=torch.float64),
    }
    return float(trainer._compute_loss(lambda **_: outputs, inputs, False))


def _orpo(case: Case) -> float:
    """Of a model with two tokens: the right one, of which the log-prob is that of the case, and the other one."""
    from trl.experimental.orpo import ORPOTrainer

    first = len(case.prompt)
    tokens = _padded(tuple(case.prompt + answer for answer in case.chosen + case.rejected))
    labels = torch.where(tokens != 0, 0, -100)
    labels[:, :first] = -100
    # What a position says of the next token; of the first token nothing is said.
    logits = torch.stack([tokens, torch.log1p(-tokens.exp())], -1).nan_to_num(neginf=0.0).roll(-1, 1)
    trainer = object.__new__(ORPOTrainer)
    joined = {
        "concatenated_input_ids": torch.zeros_like(labels),
        "concatenated_attention_mask": (tokens != 0).long(),
        "concatenated_labels": labels,
    }
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda value: value)
    settings = {"beta": case.beta, "accelerator": accelerator, "is_encoder_decoder": False, "aux_loss_enabled": False, "padding_value": 0}
    for name, value in {**settings, "concatenated_inputs": lambda *_, **__: joined}.items():
        setattr(trainer, name, value)
    batch = {"chosen_labels": labels[: len(case.chosen)]}
    loss, _ = trainer.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=logits), batch)
    return float(loss)


# --- making the table --------------------------------------------------------------------------------------------------

_INPUTS = {
    "one": {
        "chosen": ((-0.4, -1.1, -0.2),),
        "rejected": ((-0.9, -2.3, -0.7),),
        "reference_chosen": (-2.6,),
        "reference_rejected": (-3.1,),
    },
    "even": {
        "chosen": ((-0.4, -1.1, -0.2), (-2.2, -0.3, -0.8), (-0.1, -0.6, -1.9)),
        "rejected": ((-0.9, -2.3, -0.7), (-0.2, -0.5, -0.4), (-3.0, -0.7, -1.2)),
        "reference_chosen": (-2.6, -2.9, -4.4),
        "reference_rejected": (-3.1, -2.8, -2.5),
    },
    "uneven": {
        "chosen": ((-0.4, -1.1), (-2.2, -0.3, -0.8, -0.6, -1.4, -0.9), (-0.1,)),
        "rejected": ((-0.9, -2.3, -0.7, -0.2, -1.6), (-0.2,), (-3.0, -0.7, -1.2)),
        "reference_chosen": (-2.6, -5.5, -0.7),
        "reference_rejected": (-4.9, -0.4, -5.3),
    },
}

_LOSSES = (
    (("sigmoid",), "dpo", (1.0,), 0.0),
    (("sigmoid",), "cdpo", (1.0,), 0.1),
    (("robust",), "robust_dpo", (1.0,), 0.1),
    (("ipo",), "ipo", (1.0,), 0.0),
    (("hinge",), "rso", (1.0,), 0.0),
    (("sppo_hard",), "sppo", (1.0,), 0.0),
    (("apo_zero",), "kto_pair", (1.0,), 0.0),
    (("aot",), "aot", (1.0,), 0.0),
    (("aot",), "cdpo", (1.0,), 0.1),
    (("bco_pair",), "bco", (1.0,), 0.0),
    (("sft",), "sft", (1.0,), 0.0),
    (("sigmoid", "bco_pair", "sft"), "mpo", (0.8, 0.2, 1.0), 0.0),
    (("orpo",), "orpo", (1.0,), 0.0),
)


def cases() -> Iterator[Case]:
    """All cases, without TRL's values."""
    for losses, objective, weights, smoothing in _LOSSES:
        for name, given in _INPUTS.items():
            for beta in (0.1, 0.7):
                yield Case(
                    losses=losses,
                    objective=objective,
                    input=name,
                    weights=weights,
                    beta=beta,
                    label_smoothing=smoothing,
                    prompt=(-1.0, -2.5, -0.3) if losses == ("orpo",) else (),
                    **given,  # type: ignore[arg-type]
                )


def main() -> None:
    import trl

    rows = [{**asdict(case), "value": trl_value(case), "version": trl.__version__} for case in cases()]
    TABLE.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main()
