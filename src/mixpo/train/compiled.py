"""`train.compile`: the decoder layers through torch.compile. The start check compares them with the model as it is.

Only a `Scorer` runs them compiled, and no response that it scores alone. Our attention over packed rows stays outside of the graphs: it
would be traced once for each micro-batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from mixpo.errors import TrainError
from mixpo.plural import amount
from mixpo.train.attention_patch import Attention, tree_attention
from mixpo.vlm.families import MODEL_ERRORS, described

# Graphs round to bfloat16 after each operation, as the model does without them.
BACKEND: dict[str, Any] = {"backend": "inductor", "options": {"emulate_precision_casts": True}}
"""How torch.compile is called."""


@cache
def require_compiler(device: torch.device) -> None:
    """Compile a trivial function. Raises TrainError where torch.compile does not work, such as without a C++ compiler."""
    try:
        # Without the cache of graphs, which may be older than the compiler's absence.
        torch.compile(_trivial, backend="inductor", options={"fx_graph_cache": False})(torch.ones(8, device=device))
    except (*MODEL_ERRORS, OSError, ImportError) as error:
        raise TrainError(
            f"train.compile: torch.compile does not work here ({described(error)}); install a C++ compiler such as g++, or leave it off",
            code="compile-not-available",
            key="train.compile",
        ) from error


def _trivial(value: Tensor) -> Tensor:
    return value.sin() + 1


class CompiledLayers:
    """The decoder layers of a model, compiled while `enabled`. Layers of one class share their graphs, for rows of any length.

    attention: `tree_attention`, not traced.
    """

    def __init__(self, model: Any) -> None:
        """Raises TrainError for a model whose decoder has no list of layers."""
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
        lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
        if not lists:
            raise TrainError(
                f"train.compile: {type(decoder).__name__} has no list of layers to compile; leave it off for this model",
                code="compile-not-supported",
                key="train.compile",
            )
        # Of tracing: it looks for the gradient of bfloat16 copies, and past caches of functions in transformers.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        torch.compiler.reset()  # graphs of an earlier model would count toward torch's limit of recompilations
        self.attention: Attention = torch.compiler.disable(tree_attention)  # type: ignore[no-untyped-call]
        self._layers = [*lists[0]]
        self._functions: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._graphs = self._logged = graphs_compiled()
        self._refused = _recompilations_refused()

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """Context in which the layers are compiled; what a backward pass recomputes of it is too."""
        before = [(layer, name, vars(layer).get(name)) for layer in self._layers for name in [_entry(layer)]]
        try:
            for layer, name, own in before:
                setattr(layer, name, self._replacement(layer, name, own))
            yield
        finally:
            for layer, name, own in before:
                if own is None:
                    delattr(layer, name)
                else:
                    setattr(layer, name, own)

    def news(self) -> str:
        """A sentence for the log if graphs were compiled since the last call, or torch gave up compiling one; "" if not."""
        graphs, refused = graphs_compiled(), _recompilations_refused()
        new, self._logged = graphs - self._logged, graphs
        parts = [f"{amount(new, 'graph')} of the decoder layers compiled, {graphs - self._graphs} in all"] if new else []
        if refused > self._refused:
            parts.append("torch's limit of recompilations is reached, so a part of the decoder layers runs uncompiled from here on")
        self._refused = refused
        return f"train.compile: {'; '.join(parts)}" if parts else ""

    def _replacement(self, layer: nn.Module, name: str, own: Any) -> Callable[..., Any]:
        if name != "forward":
            return partial(self._checkpointed, own)
        return self._compile(own) if own is not None else partial(self._compile(type(layer).forward), layer)

    def _checkpointed(self, checkpoint: Callable[..., Any], call: Any, *inputs: Any) -> Any:
        """A checkpoint around the compiled layer: its context restores attention and weights before the graphs run again."""
        return checkpoint(partial(self._compile(call.func), *call.args, **call.keywords), *inputs)

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if function not in self._functions:
            self._functions[function] = torch.compile(function, dynamic=True, **BACKEND)
        return self._functions[function]


def _entry(layer: nn.Module) -> str:
    """The attribute of a layer to replace: what its checkpoint calls, or else its forward pass."""
    return "_gradient_checkpointing_func" if getattr(layer, "gradient_checkpointing", False) and layer.training else "forward"


def graphs_compiled() -> int:
    """Graphs that this process has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _recompilations_refused() -> int:
    """How often torch has reached its limit of recompilations of a function."""
    from torch._dynamo.utils import counters

    return sum(count for kind in [*counters.values()] for name, count in kind.items() if "recompile limit" in str(name).lower())
