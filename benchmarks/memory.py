"""How much memory a computation holds at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.profiler import ProfilerActivity, profile


@contextmanager
def uncollected() -> Iterator[None]:
    """Without automatic garbage collection: tensors in cycles of earlier work, freed meanwhile, would count as memory given back."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def peak(loss: Callable[[], Tensor]) -> int:
    """The most bytes of tensors that one forward and backward pass holds at a time, above what is there before."""
    with uncollected(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        loss().backward()
    now = most = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
