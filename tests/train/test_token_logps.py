"""Tiled log-probs and their gradients against cross-entropy of all logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixpo.train.token_logps import token_logps
from mixpo.vlm.families import LogitScaling

TOKENS, WIDTH, VOCABULARY = 37, 16, 101
RULES = [LogitScaling(), LogitScaling(softcap=3.0), LogitScaling(scale=0.25), LogitScaling(scale=2.0, softcap=5.0)]


class Wrapped(nn.Module):
    """A head with something around it, as adapters are."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    @property
    def weight(self) -> torch.Tensor:
        return self.inner.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(hidden)
        return result


def setting(bias: bool = False) -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    return nn.Linear(WIDTH, VOCABULARY, bias=bias), hidden, torch.randint(VOCABULARY, (TOKENS,)), torch.randn(TOKENS)


def by_hand(head: nn.Linear, rule: LogitScaling, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    logits = head(hidden) * rule.scale
    logits = rule.softcap * torch.tanh(logits / rule.softcap) if rule.softcap else logits
    return logits.log_softmax(-1)[torch.arange(TOKENS), target]


def gradients(logps: torch.Tensor, factors: torch.Tensor, head: nn.Module, hidden: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad((logps * factors).sum(), [hidden, *head.parameters()]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 37, 100])
@pytest.mark.parametrize("wrapped", [False, True])
def test_equal_to_all_logits(rule: LogitScaling, bias: bool, rows: int, wrapped: bool) -> None:
    head, hidden, target, factors = setting(bias)
    slow = by_hand(head, rule, hidden, target)
    module = Wrapped(head) if wrapped else head
    fast = token_logps(module, rule, hidden, target, whole=0, tile=rows * VOCABULARY * 4)
    assert torch.allclose(fast, slow, rtol=1e-5, atol=1e-6)
    for found, expected in zip(gradients(fast, factors, head, hidden), gradients(slow, factors, head, hidden), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_small_ones_are_made_at_once() -> None:
    head, hidden, target, _ = setting()
    calls: list[torch.Size] = []
    head.register_forward_hook(lambda _, args, __: calls.append(args[0].shape))
    whole = token_logps(head, LogitScaling(), hidden, target, whole=TOKENS * VOCABULARY * 4)
    assert calls == [hidden.shape]
    assert torch.allclose(whole, token_logps(head, LogitScaling(), hidden, target, whole=0), rtol=1e-5, atol=1e-6)
    assert len(calls) == 1


def test_no_tensor_of_all_logits_is_kept() -> None:
    head, hidden, target, _ = setting()
    kept: list[int] = []

    def save(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        token_logps(head, LogitScaling(), hidden, target, whole=0, tile=4 * VOCABULARY * 4)
    assert max(kept) <= VOCABULARY * WIDTH
    assert sum(kept) < TOKENS * VOCABULARY


@pytest.mark.parametrize("frozen", ["head", "states"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    head, hidden, target, factors = setting()
    (head.weight if frozen == "head" else hidden).requires_grad_(False)
    (token_logps(head, LogitScaling(), hidden, target, whole=0) * factors).sum().backward()
    assert (head.weight.grad is None, hidden.grad is None) == (frozen == "head", frozen == "states")


def test_bfloat16_sums_in_float32() -> None:
    """Under autocast: log-probs are float32, and the gradient of the float32 weights is as near to the exact one as that of one piece."""
    head, hidden, target, factors = setting()
    exact = gradients(by_hand(head, LogitScaling(), hidden, target), factors, head, hidden)
    errors = []
    for whole in (0, 2**30):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logps = token_logps(head, LogitScaling(), hidden, target, whole=whole, tile=4 * VOCABULARY * 4)
        assert logps.dtype == torch.float32
        found = gradients(logps, factors, head, hidden)
        assert [gradient.dtype for gradient in found] == [torch.float32, torch.float32]
        errors.append(max(float((f - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True)))
    assert errors[0] <= max(0.02, 1.5 * errors[1])
