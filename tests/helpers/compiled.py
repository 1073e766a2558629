"""What torch.compile makes of a function, held against the function itself."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The result, and the gradients of the inputs from the sum of its squares."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = function(*inputs)
    return y.detach(), *torch.autograd.grad(y.square().sum(), inputs)


def assert_compiled_equals_eager(function: Callable[..., Tensor], inputs: Sequence[Tensor], **options) -> None:
    """In one graph, forward and backward: numbers and strides; ``options`` are those of torch.compile."""
    compiled = torch.compile(function, fullgraph=True, **options)
    for one, other in zip(gradients(compiled, inputs), gradients(function, inputs), strict=True):
        torch.testing.assert_close(one, other, check_stride=True)
