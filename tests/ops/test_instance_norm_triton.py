"""The Triton kernels of instance norm and activation against float64: both directions, both layouts, every epilogue."""

import pytest
import torch
from helpers.grids import DTYPES, assert_within_bound, laid_out, name_of, nan_in_fresh_memory, pairwise
from helpers.triton_device import DEVICE, triton_tests

from ops.test_instance_norm import ACTIVATIONS, ours, plain, with_gradients

pytestmark = triton_tests

AXES = {
    "dtype": DTYPES,
    "batch": (1, 3),
    "size": ((2, 3), (5, 7), (17, 40)),  # shorter than a tile, and several of them
    "channels": (1, 5, 33),
    "affine": (True, False),
    "activation": ACTIVATIONS,
    "x_layout": ("contiguous", "channels_last", "window"),
    "grad_layout": ("contiguous", "channels_last", "expanded_pixels"),
}


@pytest.mark.parametrize("case", pairwise(AXES), ids=name_of)
def test_result_and_gradients_are_within_the_bound(case):
    generator = torch.Generator().manual_seed(0)
    shape = (case["batch"], case["channels"], *case["size"])

    def random(*sizes):
        return torch.randn(sizes, generator=generator).to(DEVICE, case["dtype"])

    x, grad_output = laid_out(random(*shape) * 2, case["x_layout"]), laid_out(random(*shape), case["grad_layout"])
    inputs = [x, *([random(shape[1]), random(shape[1])] if case["affine"] else [None, None])]
    argument = plain(*(None if t is None else t.double() for t in inputs), None)
    # Beside a kink, where rounding decides, elements send no gradient.
    grad_output = grad_output.masked_fill(argument.abs() < (1e-4 if case["dtype"] == torch.float32 else 3e-2), 0)
    with nan_in_fresh_memory():
        got = with_gradients(ours, inputs, grad_output, case["activation"])
    assert all(t.dtype == case["dtype"] for t in got)
    assert_within_bound(
        ("y", "x", "weight", "bias")[: len(got)],
        got,
        lambda *t: with_gradients(plain, t[:3], t[3], case["activation"]),
        [*inputs, grad_output],
    )


def test_weights_that_need_gradients_where_the_image_does_not():
    x, weight, bias = (torch.randn(shape, device=DEVICE) for shape in ((2, 5, 4, 6), (5,), (5,)))
    grads = []
    for needs_x in (True, False):
        leaves = [x.detach().requires_grad_(needs_x), weight.requires_grad_(), bias.requires_grad_()]
        grads.append(torch.autograd.grad(ours(*leaves, "tanh").sum(), leaves[1:]))
    assert all(one.equal(other) for one, other in zip(*grads, strict=True))
