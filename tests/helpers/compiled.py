"""What torch.compile makes of a function, and what fake kernels promise it, held against the function itself."""

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


def assert_promised(real: Sequence[Tensor], fake: Sequence[Tensor], about: object = "") -> None:
    """Fake kernels promise the shapes, dtypes and strides that come; a dimension of size 1 may have any stride."""
    for index, (one, other) in enumerate(zip(real, fake, strict=True)):
        assert (one.shape, one.dtype) == (other.shape, other.dtype), (index, about)
        strides = [[step for n, step in zip(t.shape, t.stride(), strict=True) if n > 1] for t in (one, other)]
        assert strides[0] == strides[1], (index, about)
