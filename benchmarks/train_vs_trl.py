"""A training step of mixpo against one of TRL's DPOTrainer with the same loss, model, rows and optimizer.

    pip install trl==1.16.0 datasets
    OMP_NUM_THREADS=1 python benchmarks/train_vs_trl.py --size small --json

TRL runs twice. "as shipped": `loss_type=["sigmoid", "bco_pair", "sft"]` with its own loss, head and metrics, the reference computed in
every step (it refuses precomputed references for images). "compact": the same rows and loss with the output head on response positions
only and no metrics, about what it does on a GPU. Both get batches that are laid out already; mixpo lays out its own. A step is forward,
backward, clipping and AdamW. For mixpo the reference pass is counted once (one epoch) or not at all (later epochs, other objectives).
Ways take turns; the median of the rounds' ratios of CPU time is reported, and that of wall time beside it.
Memory is what a step holds above weights and optimizer state. Gradients are compared with the reward shift at zero and TRL's mean over
the tokens of a batch in place of the mean over responses.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from history import emit
from memory import peak
from synthetic import IMAGE, SIZES, Data, Size, model_of
from torch import Tensor

from mixpo.recipe import TrainTable
from mixpo.train.batch import Batch
from mixpo.train.collate import collate
from mixpo.train.logps import Scorer
from mixpo.train.losses import LossWeights, ResponseLogps, combine
from mixpo.train.model import build_optimizer
from mixpo.vlm.load import Vlm

PROMPT, BETA = 512, 0.1
WEIGHTS = LossWeights(preference=0.8, quality=0.2, generation=1.0)


@dataclass(frozen=True)
class Case:
    """questions with `responses` of `length` tokens each, and the pairs of every question."""

    name: str
    questions: int
    length: int
    responses: int
    pairs: tuple[tuple[int, int], ...]

    @property
    def analytic(self) -> float:
        """Tokens that TRL computes for each one of ours."""
        return 2 * len(self.pairs) * (PROMPT + self.length) / (PROMPT + self.responses * self.length)


CASES = (
    Case("1 pair, 2 : 1", 2, 256, 2, ((0, 1),)),
    Case("1 pair, 8 : 1", 3, 64, 2, ((0, 1),)),
    Case("4 pairs of 8 responses", 1, 64, 8, ((0, 1), (2, 3), (4, 5), (6, 7))),
    Case("4 pairs of 2 x 2", 1, 64, 4, ((0, 2), (0, 3), (1, 2), (1, 3))),
    Case("15 pairs of 3 x 5", 1, 64, 8, tuple((good, bad) for good in range(3) for bad in range(3, 8))),
)


class Both(NamedTuple):
    """The same model for policy and reference, and the rows as TRL and mixpo have them."""

    policy: Vlm
    reference: Vlm
    data: Data
    rows: dict[str, Tensor]
    trainer: Any


# --- mixpo -------------------------------------------------------------------------------------------------------------


def our_reference(both: Both, batch: Batch) -> Tensor:
    with torch.no_grad():
        sums: Tensor = Scorer(both.reference.model, "tree")(batch).sums
    return sums


def our_batch(both: Both) -> Batch:
    return collate(both.policy, both.data.chunks, both.data.get, "tree")


def our_loss(both: Both, batch: Batch, reference: Tensor) -> Tensor:
    logps: ResponseLogps = Scorer(both.policy.model, "tree")(batch)
    return combine(WEIGHTS, BETA, logps, reference, batch.chosen, batch.rejected, 0.0).total.mean()


def our_loss_with_their_mean(both: Both, batch: Batch, reference: Tensor) -> Tensor:
    """With the SFT term of TRL: the mean over all tokens of the batch's chosen responses."""
    logps: ResponseLogps = Scorer(both.policy.model, "tree")(batch)
    rest = combine(LossWeights(0.8, 0.2, 0.0), BETA, logps, reference, batch.chosen, batch.rejected, 0.0).total.mean()
    return rest - logps.sums[batch.chosen].sum() / logps.lengths[batch.chosen].sum()


# --- TRL ---------------------------------------------------------------------------------------------------------------


def rows_of(both_data: Data) -> dict[str, Tensor]:
    """As TRL's collator gives them: all chosen, then all rejected sequences, each with its pixels."""
    sides = [(chunk, pair[side]) for side in (0, 1) for chunk in both_data.chunks for pair in chunk.pairs]
    prompts = [both_data.get(chunk.group) for chunk, _ in sides]
    tails = [torch.tensor(chunk.group.responses[response]) for chunk, response in sides]

    def padded(parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    both = list(zip(prompts, tails, strict=True))
    return {
        "input_ids": padded([torch.cat([prompt.ids, tail]) for prompt, tail in both]),
        "attention_mask": padded([torch.ones(len(prompt) + len(tail), dtype=torch.long) for prompt, tail in both]),
        "completion_mask": padded([torch.cat([torch.zeros_like(prompt.ids), torch.ones_like(tail)]) for prompt, tail in both]),
        "pixel_values": torch.cat([prompt.features["pixel_values"] for prompt in prompts]),
    }


def trainer_of(policy: Vlm, reference: Vlm, size: Size) -> Any:
    """A DPOTrainer as a user would make it; its data set is never read, because steps get their batches directly."""
    from datasets import Dataset
    from PIL import Image
    from trl import DPOConfig, DPOTrainer

    turn = [{"role": "user", "content": "x"}]
    answer = [{"role": "assistant", "content": "x"}]
    row = {"images": [[Image.new("RGB", (28, 28))]], "prompt": [turn], "chosen": [answer], "rejected": [answer]}
    args = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        loss_type=["sigmoid", "bco_pair", "sft"],
        loss_weights=[0.8, 0.2, 1.0],
        beta=BETA,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
    )
    return DPOTrainer(
        policy.model, ref_model=reference.model, args=args, train_dataset=Dataset.from_dict(row), processing_class=processor_of(size)
    )


def processor_of(size: Size) -> Any:
    """A processor with the model's image size and a vocabulary of one word."""
    from tokenizers import Tokenizer, models
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<image>": IMAGE, "<end>": 2, "<start>": 3, "<close>": 4, "<video>": 5, "x": 6}
    special = {"start_image_token": "<start>", "end_image_token": "<close>", "context_image_token": "<image>", "video_token": "<video>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="x")),
        pad_token="<pad>",
        eos_token="<end>",
        extra_special_tokens=special,
    )
    side = {"height": size.side, "width": size.side}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=side),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side),
        image_seq_length=size.image_tokens,
        chat_template="{% for message in messages %}x{% endfor %}",
    )


def shipped_loss(both: Both) -> Tensor:
    loss: Tensor = both.trainer.compute_loss(both.policy.model, dict(both.rows))
    return loss


def compact_loss(both: Both) -> Tensor:
    """The loss of TRL with the head where a response token is predicted, and nothing else."""
    mask = both.rows["completion_mask"][:, 1:].bool()
    target = both.rows["input_ids"][:, 1:]
    with torch.no_grad():
        reference = _token_logps(both.reference.model, both.rows, mask, target)
    tokens = _token_logps(both.policy.model, both.rows, mask, target)
    chosen, rejected = (tokens.sum(1) - reference.sum(1)).chunk(2)
    nll = -tokens.chunk(2)[0].sum() / mask.chunk(2)[0].sum()
    preference = -F.logsigmoid(BETA * (chosen - rejected))
    quality = -F.logsigmoid(BETA * chosen) - F.logsigmoid(-BETA * rejected)
    return (0.8 * preference + 0.2 * quality).mean() + nll


def _token_logps(model: Any, rows: dict[str, Tensor], mask: Tensor, target: Tensor) -> Tensor:
    inputs = {name: value for name, value in rows.items() if name != "completion_mask"}
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1][mask]
    logps = -F.cross_entropy(model.get_output_embeddings()(hidden).float(), target[mask], reduction="none")
    return torch.zeros(mask.shape).masked_scatter(mask, logps)


# --- measuring ---------------------------------------------------------------------------------------------------------


def open_case(case: Case, size: Size) -> Both:
    policy, reference = model_of(size), model_of(size)
    data = Data(size, case.questions, PROMPT, [case.length] * case.responses, case.pairs)
    trainer = trainer_of(policy, reference, size)
    reference.model.eval()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            # Policy and reference differ, so that no term of the loss stands at its starting point.
            parameter += 1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return Both(policy, reference, data, rows_of(data), trainer)


def gradient(both: Both) -> Tensor:
    """What backward passes left in the parameters; it is taken out."""
    parameters = list(both.policy.model.parameters())
    found = torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in parameters])
    both.policy.model.zero_grad()
    return found


def steps_of(both: Both) -> dict[str, Callable[[], Tensor]]:
    """The loss of each way to do a step, by name."""
    known = our_reference(both, our_batch(both))

    def ours() -> Tensor:
        batch = our_batch(both)
        return our_loss(both, batch, our_reference(both, batch))

    return {
        "mixpo": ours,
        "mixpo_ref_ready": lambda: our_loss(both, our_batch(both), known),
        "as_shipped": lambda: shipped_loss(both),
        "compact": lambda: compact_loss(both),
    }


def first_passes(both: Both, ways: dict[str, Callable[[], Tensor]]) -> tuple[float, float]:
    """TRL's memory over ours, and how far apart gradients are relative to TRL's; everything is warm afterwards."""
    batch = our_batch(both)
    our_loss_with_their_mean(both, batch, our_reference(both, batch)).backward()
    ours = gradient(both)
    most = peak(ways["mixpo"])
    both.policy.model.zero_grad()
    memory = peak(ways["as_shipped"]) / most
    theirs = gradient(both)
    return memory, float((ours - theirs).norm() / theirs.norm())


def take_turns(both: Both, ways: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of CPU and wall of every way's step in each round."""
    model = both.policy.model
    # The rate is too small to change anything that is measured.
    optimizer = build_optimizer(model, TrainTable(learning_rate=1e-8))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, loss in ways.items():
            if number == 0 and name != "mixpo":
                continue  # the optimizer makes its state in its first step, the rest is warm
            cpu, wall = time.process_time(), time.monotonic()
            loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if number:
                seconds[name].append((time.process_time() - cpu, time.monotonic() - wall))
    return seconds


def measure(case: Case, size: Size, rounds: int) -> tuple[dict[str, Any], str]:
    """Ratios over mixpo of one case, and a line with what else is known."""
    both = open_case(case, size)
    ways = steps_of(both)
    memory, difference = first_passes(both, ways)
    seconds = take_turns(both, ways, rounds)

    def ratio(slow: str, fast: str, clock: int = 0) -> float:
        return round(statistics.median(s[clock] / f[clock] for s, f in zip(seconds[slow], seconds[fast], strict=True)), 2)

    row: dict[str, Any] = {
        "name": case.name,
        "analytic": round(case.analytic, 1),
        "as_shipped": ratio("as_shipped", "mixpo"),
        "compact": ratio("compact", "mixpo"),
        "as_shipped_ref_ready": ratio("as_shipped", "mixpo_ref_ready"),
        "compact_ref_ready": ratio("compact", "mixpo_ref_ready"),
        "memory_as_shipped": round(memory, 2),
        "gradient_rel": float(f"{difference:.1e}"),
    }
    rounds_of = [round(c[0] / m[0], 2) for c, m in zip(seconds["compact"], seconds["mixpo"], strict=True)]
    walls = {name: ratio(name, "mixpo", clock=1) for name in ("as_shipped", "compact")}
    cpu = {name: round(statistics.median(one for one, _ in taken), 3) for name, taken in seconds.items()}
    return row, f"  compact / analytic {row['compact'] / case.analytic:.0%}, rounds {rounds_of}; wall {walls}; CPU seconds {cpu}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="numbers of cases, from 0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = []
    for number in args.cases:
        row, more = measure(CASES[number], SIZES[args.size], args.rounds)
        found.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), more, sep="\n", flush=True)
    emit("train_vs_trl", {"cases": found}, show=args.json)


if __name__ == "__main__":
    main()
