"""Forward and backward of a training step on one NVIDIA GPU: the ways to attend over a row of groups, and padded rows, in turn.

    python benchmarks/train_gpu.py --json
    python benchmarks/train_gpu.py --device cpu --size tiny --rounds 1      (only to see that it runs)

Ends with what this project claims about GPUs, each with PASS or FAIL; a claim that cannot be measured here says so. Run it with --size 1b
and --size 8b. Not measured by it: Liger, sampling against vLLM, the wait for input (input_pipeline.py), several GPUs.

Same cases as train_vs_trl.py, on an InternVL of about 1 B parameters with random weights: float32 weights, everything computed in
bfloat16, as mixpo trains. varlen: one call of the kernel for sequences of any length. calls: padded calls of torch's attention, what
mixpo does where that kernel cannot be used. compiled: with train.compile, and varlen on a GPU, else calls. flex: FlexAttention with a
block mask. dense: a mask of the whole row. rows: a padded row for each response. Laying out is not counted. share_of_peak:
multiplications of linear layers and output head, three times (forward and backward), over what a large product of matrices reaches on
the same device; attention itself is left out of the count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from attention_forms import plan_dense, plan_flex
from history import emit
from memory import peak
from synthetic import SIZES, Data, Size, model_of
from torch import nn
from train_vs_trl import BETA, CASES, PROMPT, WEIGHTS, Case

from mixpo.recipe import TrainTable
from mixpo.train.batch import Batch
from mixpo.train.collate import collate, row_layout
from mixpo.train.compiled import CompiledLayers
from mixpo.train.layout_check import TOLERANCE
from mixpo.train.logps import Scorer
from mixpo.train.losses import combine
from mixpo.train.memory_plan import plan_memory
from mixpo.train.sharding import meta_copy_of
from mixpo.vlm.load import Vlm

FORMS = ("varlen", "calls", "compiled", "flex", "dense", "rows")


def batch_of(vlm: Vlm, data: Data, form: str) -> Batch:
    """The chunks of a case laid out in one of the ways."""
    if form == "rows":
        return collate(vlm, data.chunks, data.get, "plain")
    if form == "varlen" or (form == "compiled" and vlm.device.type == "cuda"):
        return collate(vlm, data.chunks, data.get, "varlen")
    batch = collate(vlm, data.chunks, data.get, "tree")
    if form in ("calls", "compiled"):
        return batch
    spans, _ = row_layout(vlm, data.chunks, [data.get(chunk.group) for chunk in data.chunks])
    plan: Any = plan_flex(spans, vlm.device) if form == "flex" else plan_dense(spans, vlm.device)
    return replace(batch, attention_plan=plan)


def step_of(vlm: Vlm, data: Data, form: str, precision: torch.dtype) -> Callable[[], torch.Tensor]:
    """A function that computes the loss of the pairs."""
    batch = batch_of(vlm, data, form)
    scorer = Scorer(vlm.model, "plain" if form == "rows" else "tree", precision)
    if form == "compiled":
        scorer.compiled = CompiledLayers(vlm.model)
    reference = torch.zeros(len(batch.lengths), device=vlm.device)

    def loss() -> torch.Tensor:
        return combine(WEIGHTS, BETA, scorer(batch), reference, batch.chosen, batch.rejected, 0.0).total.mean()

    return loss


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    begun = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - begun


def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """Operations a second of the best of several products of two large matrices."""
    side = 8192 if device.type == "cuda" else 512
    one, other = (torch.randn(side, side, device=device, dtype=precision) for _ in "ab")
    best = min(seconds_of(lambda: one @ other, device) for _ in range(10))
    return 2 * side**3 / best


def multiplications(vlm: Vlm, loss: Callable[[], torch.Tensor], predicted: int) -> int:
    """Operations of the linear layers and the head in one forward and backward pass."""
    counted = 0

    def count(layer: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal counted
        counted += 2 * inputs[0].numel() * layer.out_features

    head = vlm.model.get_output_embeddings()
    layers = [layer for layer in vlm.model.modules() if isinstance(layer, nn.Linear) and layer is not head]
    handles = [layer.register_forward_pre_hook(count) for layer in layers]
    with torch.no_grad():
        loss()
    for handle in handles:
        handle.remove()
    return int(3 * (counted + 2 * predicted * head.weight.numel()))


def memory_of(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """MiB that a step needs above what is there before."""
    if device.type != "cuda":
        return peak(work) / 2**20
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work().backward()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def planned_mib(vlm: Vlm, data: Data, tokens: int, questions: int) -> float:
    """What `mixpo plan --memory` says that such a step needs above the float32 weights."""
    shapes = replace(vlm, model=meta_copy_of(vlm.model), device=torch.device("meta"), cache={})
    plan = plan_memory(shapes, TrainTable(tokens_per_batch=tokens), questions, data.get(data.chunks[0].group))
    copies = plan.weights if plan.masters else 0
    return (copies + plan.gradients + plan.activations + plan.vision + plan.head) / 2**20


@torch.no_grad()
def gap_of(vlm: Vlm, data: Data, precision: torch.dtype) -> float:
    """Largest difference of a response's log-prob per token between the varlen kernel and padded calls."""
    varlen, calls = (Scorer(vlm.model, "tree", precision)(batch_of(vlm, data, form)) for form in ("varlen", "calls"))
    return float(((varlen.sums - calls.sums).abs() / calls.lengths).max())


class Claim(NamedTuple):
    """A sentence, the largest (or smallest) value with which it holds, and the measured one; None where it was not measured."""

    text: str
    limit: float
    value: float | None
    least: bool = False

    @property
    def passed(self) -> bool | None:
        """Whether it holds; None where it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.least else self.value <= self.limit

    def __str__(self) -> str:
        word = {None: "NOT MEASURED", True: "PASS", False: "FAIL"}[self.passed]
        value = "" if self.value is None else f"{self.value:.3g}, "
        return f"{word}: {self.text} ({value}{'at least' if self.least else 'at most'} {self.limit:g})"


def claims_of(rows: Sequence[Mapping[str, Any]], precision: torch.dtype) -> list[Claim]:
    """The claims over all cases, by the worst of them."""
    measured = [row for row in rows if row["form"] == "varlen" and "milliseconds" in row]

    def worst(key: str, pick: Callable[[Iterable[float]], float]) -> float | None:
        return pick(row[key] for row in measured) if measured else None

    return [
        Claim("varlen and padded calls give the same log-probs per token", TOLERANCE[precision], worst("gap", max)),
        Claim("varlen takes no longer than padded calls", 1.0, worst("over_calls", max)),
        Claim("share of the speed of large products of matrices", 0.4, worst("share_of_peak", min), least=True),
        Claim("memory of a step in parts of the plan", 1.1, worst("memory_over_plan", max)),
    ]


def _backward(loss: Callable[[], torch.Tensor]) -> None:
    loss().backward()


def measure(vlm: Vlm, case: Case, size: Size, rounds: int, precision: torch.dtype, best: float) -> list[dict[str, Any]]:
    """One row for each form; a form that this device does not have is named with the reason."""
    data = Data(size, case.questions, PROMPT, [case.length] * case.responses, case.pairs)
    losses, rows = dict[str, Callable[[], torch.Tensor]](), list[dict[str, Any]]()
    for form in FORMS:
        try:
            loss = step_of(vlm, data, form, precision)
            loss().backward()
            losses[form] = loss
        except NotImplementedError as error:
            rows.append({"case": case.name, "form": form, "not_here": str(error).splitlines()[0][:120]})
    seconds: dict[str, list[float]] = {form: [] for form in losses}
    for _ in range(rounds):
        for form, loss in losses.items():
            vlm.model.zero_grad()
            seconds[form].append(seconds_of(partial(_backward, loss), vlm.device))
    predicted = case.questions * case.responses * case.length
    for form, loss in losses.items():
        vlm.model.zero_grad()
        median = statistics.median(seconds[form])
        counted = losses["calls"] if form == "compiled" else loss  # its graphs do not call the layers one by one
        rows.append(
            {
                "case": case.name,
                "form": form,
                "milliseconds": round(1000 * median, 2),
                "over_calls": round(statistics.median(s / c for s, c in zip(seconds[form], seconds["calls"], strict=True)), 3),
                "share_of_peak": round(multiplications(vlm, counted, predicted) / median / best, 3),
                "memory_mib": round(memory := memory_of(loss, vlm.device)),
            }
        )
        if form == "varlen":
            plan = planned_mib(vlm, data, batch_of(vlm, data, form).tokens, case.questions)
            rows[-1] |= {"gap": gap_of(vlm, data, precision), "memory_over_plan": round(memory / plan, 3)}
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=sorted(SIZES), default="1b")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="numbers of cases, from 0")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "train_gpu.py: torch sees no CUDA device here; use a machine with an NVIDIA GPU, or --device cpu --size tiny for a dry run"
        )
    device, precision = torch.device(args.device), torch.bfloat16 if args.device == "cuda" else torch.float32
    vlm = model_of(SIZES[args.size])
    vlm.device = device
    vlm.model.to(device)
    best = peak_flops(device, precision)
    about = {
        "device": torch.cuda.get_device_name(device) if args.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in vlm.model.parameters()),
        "peak_tflops": round(best / 1e12, 3),
    }
    print(json.dumps(about))
    rows = []
    for number in args.cases:
        rows += measure(vlm, CASES[number], SIZES[args.size], args.rounds, precision, best)
        for row in rows[-len(FORMS) :]:
            print(json.dumps(row), flush=True)
    claims = claims_of(rows, precision)
    for claim in claims:
        print(claim)
    listed = [{**claim._asdict(), "passed": claim.passed} for claim in claims]
    emit("train_gpu", {**about, "rows": rows, "claims": listed}, show=args.json)


if __name__ == "__main__":
    main()
