"""Derivatives beyond the first of a function of tensors, to be held against those of the same in plain PyTorch."""

from collections.abc import Callable, Sequence

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor


def scalar(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A scalar whose every derivative up to the third needs the function."""
    return lambda *inputs: function(*inputs).pow(3).sum()


def of_penalty(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], used: Sequence[bool] | None = None
) -> tuple[Tensor, ...]:
    """The gradients of a penalty on the gradients, on all of them or on those that are used."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    gradients = torch.autograd.grad(scalar(function)(*leaves), leaves, create_graph=True)
    total = sum(g.square().sum() for k, g in enumerate(gradients) if used is None or used[k])
    return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)


def third(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    value = scalar(function)(*leaves)
    for _ in range(2):
        value = sum(g.pow(2).sum() for g in torch.autograd.grad(value, leaves, create_graph=True))
    return torch.autograd.grad(value, leaves)


def forward_mode(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], tangents: Sequence[Tensor], which: Sequence[bool]
) -> tuple[Tensor, Tensor | None]:
    """The result and its tangent; ``which`` inputs have one."""
    with fwAD.dual_level():
        duals = [fwAD.make_dual(p, t) if on else p for p, t, on in zip(inputs, tangents, which, strict=True)]
        return fwAD.unpack_dual(function(*duals))


def assert_same(got: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> None:
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(got, expected, **close)


def assert_transform_agrees(
    transform: Callable, functions: Sequence[Callable[..., Tensor]], inputs: Sequence[Tensor]
) -> None:
    """A transform of torch.func gives the same for both functions, but for rounding in the dtype of the inputs."""
    leaves = (torch.utils._pytree.tree_leaves(transform(f)(*inputs)) for f in functions)
    for one, other in zip(*leaves, strict=True):
        size = max(1.0, float(other.abs().max()))
        assert_same(one / size, other / size, inputs[0].dtype)


def assert_no_graph_where_none_is_wanted(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """In inference mode and under no_grad the result is the same."""
    y = function(*(t.detach().requires_grad_() for t in inputs))
    assert y.requires_grad
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            other = function(*inputs)
        assert not other.requires_grad
        assert other.equal(y)
