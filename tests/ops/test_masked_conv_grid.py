"""Every kernel of the masked convolution against float64, over a grid in which every two options meet.

A failing case prints its options as the test's id; `check(Case(...))` runs it alone.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers.grids import (
    DIRECT,
    DTYPES,
    ISAS,
    LAYOUTS,
    WINOGRAD,
    assert_accurate,
    check_cases_under,
    laid_out,
    name_of,
    nan_in_fresh_memory,
    needs_native,
    pairwise,
    widened,
    with_gradients,
    with_rounding,
)
from torch import Tensor

from genkernels.ops import masked_conv2d
from genkernels.ops.core.implementations import forced, last
from genkernels.ops.masked_conv.mask import MaskSpec, mask_tensor


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: everything that selects a path through the kernels."""

    dtype: torch.dtype = torch.float32
    batch: int = 1
    size: tuple[int, int] = (5, 7)
    channels: tuple[int, int] = (3, 5)  # in, out
    groups: tuple[int, str] = (1, "blocks")
    kernel: tuple[int, int] = (3, 3)
    dilation: tuple[int, int] = (1, 1)
    mask_type: str = "A"
    bias: bool = True
    activation: str | None = None
    x_layout: str = "contiguous"
    weight_layout: str = "contiguous"
    grad_layout: str = "contiguous"

    __str__ = name_of

    def channel_groups(self) -> int:
        return min(self.groups[0], *self.channels)

    def mask(self) -> Tensor:
        inputs, outputs = self.channels
        return mask_tensor(
            MaskSpec(outputs, inputs, self.kernel, self.mask_type, self.channel_groups(), self.groups[1])
        )


AXES = {
    "dtype": DTYPES,
    "batch": (0, 1, 3),
    # Lines shorter and longer than a vector, single rows and columns, a line cut into pieces, a tall image.
    "size": ((1, 1), (1, 9), (11, 1), (5, 5), (3, 7), (14, 6), (9, 17), (70, 3), (2, 3000)),
    # One channel, fewer than a vector, exactly some, one more than a panel of any instruction set, enough for Winograd.
    "channels": ((1, 1), (1, 64), (3, 5), (5, 3), (16, 8), (9, 33), (33, 9), (7, 70), (65, 17), (40, 65)),
    "groups": ((1, "blocks"), (2, "blocks"), (3, "blocks"), (2, "interleaved"), (3, "interleaved")),
    "kernel": ((1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (1, 7), (3, 1), (7, 1), (3, 7)),
    "dilation": ((1, 1), (2, 2), (1, 3), (3, 1), (6, 6)),
    "mask_type": ("A", "B"),
    "bias": (True, False),
    "activation": (None, "relu"),
    "x_layout": LAYOUTS,
    "weight_layout": LAYOUTS,
    "grad_layout": LAYOUTS,
}
# What the CPU computes by Winograd F(2,3): pieces of three, two and one tap, odd lines, a line cut into columns.
F23 = [
    Case(dtype=dtype, batch=2, size=size, channels=channels, kernel=kernel, mask_type=mask_type, dilation=dilation,
         x_layout=layout, weight_layout=layout, grad_layout=layout, activation=activation)
    for dtype, size, channels, kernel, mask_type, dilation, layout, activation in (
        (torch.float32, (9, 28), (64, 64), (3, 3), "B", (1, 1), "contiguous", None),
        (torch.float32, (9, 27), (64, 64), (3, 3), "B", (1, 1), "channels_last", "relu"),
        (torch.float32, (5, 13), (37, 70), (3, 3), "A", (3, 1), "contiguous", "relu"),
        (torch.float32, (7, 11), (64, 40), (7, 7), "B", (2, 1), "channels_last", None),
        (torch.float32, (7, 11), (33, 64), (7, 7), "A", (1, 1), "contiguous", None),
        (torch.float32, (2, 700), (64, 33), (5, 5), "B", (1, 1), "contiguous", None),
        (torch.float32, (3, 2), (600, 32), (3, 5), "A", (1, 1), "channels_last", None),
        (torch.bfloat16, (5, 9), (40, 65), (5, 5), "B", (1, 1), "contiguous", "relu"),
        (torch.float16, (5, 9), (40, 65), (1, 7), "B", (1, 1), "channels_last", None),
    )
]  # fmt: skip
CASES = [*F23, *(Case(**row) for row in pairwise(AXES))]


def tensors(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """x, weight, bias and grad_output, of a size that keeps all results near 1."""
    generator = torch.Generator().manual_seed(0)
    (inputs, outputs), (height, width) = case.channels, case.size

    def random(*shape: int, layout: str = "contiguous") -> Tensor:
        values = torch.randn(shape, generator=generator).to(device, case.dtype)
        return laid_out(values, layout) if len(shape) == 4 else values

    x = random(case.batch, inputs, height, width, layout=case.x_layout)
    weight = random(outputs, inputs, *case.kernel, layout=case.weight_layout)
    weight = weight.mul_(0.3) if not case.weight_layout.startswith("expanded") else weight
    bias = random(outputs) if case.bias else None
    return x, weight, bias, random(case.batch, outputs, height, width, layout=case.grad_layout)


def plain(case: Case, dtype: torch.dtype, inputs, grad_output: Tensor) -> tuple[Tensor, ...]:
    """The linear part in plain PyTorch, `conv2d(x, weight * mask)` in `dtype`, and its gradients."""
    padding = tuple(k // 2 * d for k, d in zip(case.kernel, case.dilation, strict=True))

    def conv(x, weight, bias=None):
        return F.conv2d(x, weight * case.mask().to(weight), bias, padding=padding, dilation=case.dilation)

    inputs = [None if t is None else t.to(dtype, memory_format=torch.contiguous_format) for t in inputs]
    return with_gradients(conv, inputs, grad_output.to(dtype))


def check(case: Case, device: str = "cpu", bound: float | None = None) -> None:
    """The operator's result and gradients are within the bound of grids.py."""
    if bound is None:
        bound = WINOGRAD if min(case.channels) >= 32 else DIRECT
    *inputs, grad_output = tensors(case, device)

    def conv(x, weight, bias=None):
        return masked_conv2d(
            x,
            weight,
            bias,
            mask_type=case.mask_type,
            channel_groups=case.channel_groups(),
            group_layout=case.groups[1],
            dilation=case.dilation,
            activation=case.activation,
        )

    with nan_in_fresh_memory():
        got = with_gradients(conv, inputs, grad_output)
    if case.activation == "relu":
        # From the kernel's own result: near zero, rounding decides on which side an element is.
        grad_output = torch.where(got[0] > 0, grad_output, 0)
    given = [None if t is None else widened(t) for t in (*inputs, grad_output)]
    exact, units = with_rounding(
        lambda *t: plain(case, torch.float64, t[:3], t[3]), given, torch.finfo(torch.float32).eps
    )
    if case.activation == "relu":
        exact[0] = exact[0].relu()
    names = ("y", "grad_x", "grad_weight", "grad_bias")[: len(got)]
    for name, *results in zip(names, got, exact, units, strict=True):
        assert_accurate(name, *results, bound)
    assert (got[2][case.mask().to(device) == 0] == 0).all(), "a masked tap has a gradient"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_result_and_gradients_are_within_the_bound(case):
    check(case)


MANY, FEW = F23[0], Case(batch=2, size=(9, 17), channels=(3, 33), kernel=(7, 7))


@needs_native
@pytest.mark.parametrize(
    ("case", "name", "backward", "bound"),
    [
        (MANY, "winograd_f23", "winograd_f23", WINOGRAD),
        (MANY, "direct", "direct", DIRECT),
        (FEW, "first_layer_nchw", "direct", DIRECT),
        (FEW, "im2row", "direct", DIRECT),
        (FEW, "direct", "direct", DIRECT),
    ],
)
def test_every_implementation_can_be_forced_and_keeps_its_bound(case, name, backward, bound):
    x, weight, bias, _ = tensors(case)
    with forced(name):
        masked_conv2d(x, weight, bias, mask_type=case.mask_type)
        assert last() == name
        check(case, bound=bound)
        assert last() == backward


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_keeps_the_bound_and_reads_no_unwritten_scratch(isa):
    check_cases_under(isa, "ops.test_masked_conv_grid")


def test_the_grid_lets_every_two_options_meet():
    rows = [dataclasses.asdict(case) for case in CASES[len(F23) :]]
    names = list(AXES)
    for a in names:
        for b in names[names.index(a) + 1 :]:
            met = {(row[a], row[b]) for row in rows}
            assert met == {(i, j) for i in AXES[a] for j in AXES[b]}, (a, b)


def test_fresh_memory_is_nan_while_the_grid_runs():
    with nan_in_fresh_memory():
        for fresh in (torch.empty(3), torch.empty_like(torch.ones(3)), torch.ones(3).new_empty(5)):
            assert fresh.isnan().all()
