"""Every loss that TRL has too, on the same log-probs: equal, or different in the way that docs/training.md says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from train.trl_losses import Case, cases, read_table, trl_value

from mixpo.recipe import LossTable
from mixpo.train.losses import LossTerms, ResponseLogps, cdpo, combine, dpo, ipo, loss_weights, optimal_transport_shift

pytestmark = pytest.mark.slow

TABLE = read_table()


def mixpo_terms(case: Case, delta: float = 0.0) -> LossTerms:
    """Chosen responses are numbers 0 .. K-1, rejected ones K .. 2K-1."""
    answers, pairs = case.chosen + case.rejected, torch.arange(len(case.chosen))
    sums = torch.tensor([math.fsum(answer) for answer in answers], dtype=torch.float64)
    reference = torch.tensor(case.reference_chosen + case.reference_rejected, dtype=torch.float64)
    smoothing: dict[str, Any] = {"label_smoothing": case.label_smoothing} if case.label_smoothing else {}
    # ORPO's lambda is TRL's beta and our weight of the preference term.
    table = LossTable(beta=case.beta, preference=case.beta if case.objective == "orpo" else 0.8, **smoothing)
    logps = ResponseLogps(sums, torch.tensor([len(answer) for answer in answers]))
    places = (reference, pairs, pairs + len(pairs))
    return combine(loss_weights(case.objective, table), case.beta, logps, *places, delta, optimal_transport_shift(*margins(case)))


def mixpo_value(case: Case, delta: float = 0.0) -> float:
    return mixpo_terms(case, delta).total.mean().item()


# --- where TRL departs: what it computes instead, worked out from its case ------------------------------------------------


def mean_over(tokens: Sequence[Sequence[float]]) -> float:
    """The mean over all tokens of all rows, so that a long row weighs more."""
    return math.fsum(map(math.fsum, tokens)) / sum(map(len, tokens))


def per_token(case: Case, side: str) -> Tensor:
    both = zip(getattr(case, side), getattr(case, f"reference_{side}"), strict=True)
    return torch.tensor([(math.fsum(answer) - known) / len(answer) for answer, known in both], dtype=torch.float64)


def ipo_of_means(case: Case) -> float:
    """IPO of log-ratios divided by the length of their response."""
    return ipo(per_token(case, "chosen") - per_token(case, "rejected"), case.beta).mean().item()


def sft_of_tokens(case: Case) -> float:
    return -mean_over(case.chosen)


def mpo_of_tokens(case: Case) -> float:
    terms = mixpo_terms(case)
    return (0.8 * terms.preference + 0.2 * terms.quality).mean().item() - mean_over(case.chosen)


def unsmoothed(case: Case) -> float:
    """DPO, whatever the share of wrong labels is said to be."""
    policy, reference = margins(case)
    return dpo(policy - reference, case.beta).mean().item()


def smoothed_transport(case: Case) -> float:
    """Smoothed DPO of margins that are sorted first. With one pair, or the same order on both sides, sorting changes nothing."""
    policy, reference = margins(case)
    return cdpo(policy.sort().values - reference.sort().values, case.beta, case.label_smoothing).mean().item()


def margins(case: Case) -> tuple[Tensor, Tensor]:
    """(K,) log pi(y_c) - log pi(y_r), under policy and reference."""
    policy = [math.fsum(chosen) - math.fsum(rejected) for chosen, rejected in zip(case.chosen, case.rejected, strict=True)]
    reference = [chosen - rejected for chosen, rejected in zip(case.reference_chosen, case.reference_rejected, strict=True)]
    return torch.tensor(policy, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)


def orpo_with_prompt(case: Case) -> float:
    """The SFT term over prompt and response, all tokens alike; the first token of the prompt is predicted by nothing."""
    term = mixpo_terms(case).preference.mean().item()
    return case.beta * term - mean_over([case.prompt[1:] + answer for answer in case.chosen])


DEPARTURES: dict[tuple[str, str], tuple[tuple[str, ...], Callable[[Case], float]]] = {
    ("ipo", "ipo"): (("one", "even", "uneven"), ipo_of_means),
    ("sft", "sft"): (("uneven",), sft_of_tokens),
    ("sigmoid bco_pair sft", "mpo"): (("uneven",), mpo_of_tokens),
    ("sigmoid", "cdpo"): (("one", "even", "uneven"), unsmoothed),
    ("aot", "cdpo"): (("even",), smoothed_transport),
    ("orpo", "orpo"): (("one", "even", "uneven"), orpo_with_prompt),
}
"""TRL's loss and ours, the inputs on which they differ, and what TRL's value is."""


def name_of(case: Case) -> str:
    return f"{' '.join(case.losses)}-{case.objective}-{case.input}-{case.beta}"


@pytest.mark.parametrize("case", TABLE, ids=name_of)
def test_value(case: Case) -> None:
    inputs, theirs = DEPARTURES.get((" ".join(case.losses), case.objective), ((), mixpo_value))
    # TRL computes odds in float32.
    close = 1e-6 if case.losses == ("orpo",) else 1e-12
    if case.input in inputs:
        assert abs(mixpo_value(case) - case.value) > 1e-3 * abs(case.value)
        assert theirs(case) == pytest.approx(case.value, rel=close)
    else:
        assert mixpo_value(case) == pytest.approx(case.value, rel=close, abs=1e-12)


@pytest.mark.parametrize("case", [case for case in TABLE if "bco_pair" in case.losses and case.input == "even"], ids=name_of)
def test_only_ours_has_a_reward_shift(case: Case) -> None:
    """Equal as long as the mean reward of past steps is 0, and not after that."""
    assert mixpo_value(case, delta=0.0) == pytest.approx(case.value, rel=1e-12)
    assert abs(mixpo_value(case, delta=1.0) - case.value) > 1e-3


def test_the_table_is_complete() -> None:
    assert [name_of(case) for case in TABLE] == [name_of(case) for case in cases()]
    assert {case.version for case in TABLE} == {"1.16.0"}


def test_the_table_is_what_trl_says() -> None:
    trl = pytest.importorskip("trl")
    for case in TABLE:
        assert trl_value(case) == pytest.approx(case.value, rel=1e-6), (
            f"trl {trl.__version__} differs from {case.version} on {name_of(case)}"
        )
