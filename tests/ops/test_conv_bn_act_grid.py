"""Every kernel of convolution + batch norm + activation against float64, over a grid in which every two options meet.

A failing case prints its options as the test's id; `check(Case(...))` runs it alone.
"""

import dataclasses
from collections.abc import Sequence

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
    pairwise,
    widened,
    with_rounding,
)
from torch import Tensor

from genkernels.ops import conv2d_bn_act, conv_transpose2d_bn_act

EPS = 1e-5
SLOPE = 0.2


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: everything that selects a path through the kernels."""

    dtype: torch.dtype = torch.float32
    transposed: bool = True
    batch: int = 3
    size: tuple[int, int] = (5, 7)
    channels: tuple[int, int] = (6, 5)  # in, out
    kernel: tuple[int, int] = (4, 4)
    # stride, padding, output padding; cut down to what the kernel and the image allow
    steps: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] = ((2, 2), (1, 1), (0, 0))
    norm: str = "training"
    bias: bool = True
    activation: str | None = "relu"
    x_layout: str = "contiguous"
    weight_layout: str = "contiguous"
    grad_layout: str = "contiguous"

    __str__ = name_of

    def may_take_winograd(self) -> bool:
        return self.kernel == (4, 4) and self.steps[0] == (2, 2) and min(self.channels) >= 64

    def options(self) -> dict:
        """stride, padding and output_padding, as near to what was asked as gives a result of at least one pixel."""
        stride, padding, extra = self.steps
        padding = tuple(
            min(p, (n - 1) * s + k - 1) // 2 if self.transposed and (n - 1) * s + k - 2 * p < 1 else p
            for p, n, s, k in zip(padding, self.size, stride, self.kernel, strict=True)
        )
        if not self.transposed:
            padding = tuple(max(p, (k - n + 1) // 2) for p, n, k in zip(padding, self.size, self.kernel, strict=True))
            return {"stride": stride, "padding": padding}
        return {"stride": stride, "padding": padding, "output_padding": extra}


AXES = {
    "dtype": DTYPES,
    "transposed": (True, False),
    "batch": (0, 1, 3, 9),
    # Single pixels, rows and columns; lines shorter and longer than a register, and cut into blocks.
    "size": ((1, 1), (1, 9), (11, 2), (4, 4), (5, 7), (8, 8), (17, 6), (3, 40), (2, 130)),
    # One channel, fewer than a register, an image, exactly some, one more than a panel of any instruction set.
    "channels": ((1, 1), (1, 64), (3, 5), (16, 3), (3, 16), (9, 33), (65, 7), (40, 17), (130, 8)),
    "kernel": ((4, 4), (1, 1), (3, 3), (5, 5), (2, 3), (1, 4), (5, 2), (7, 7)),
    "steps": (
        ((2, 2), (1, 1), (0, 0)),
        ((1, 1), (0, 0), (0, 0)),
        ((2, 2), (2, 2), (1, 1)),
        ((1, 1), (1, 1), (0, 0)),
        ((2, 1), (0, 2), (1, 0)),
        ((3, 3), (1, 0), (2, 0)),
        ((3, 2), (3, 1), (0, 1)),
    ),
    "norm": ("none", "training", "evaluation"),
    "bias": (True, False),
    "activation": (None, "relu", "leaky_relu", "tanh", "sigmoid"),
    "x_layout": LAYOUTS,
    "weight_layout": LAYOUTS,
    "grad_layout": LAYOUTS,
}
# Kernels of 4 x 4 with stride 2 and many channels take Winograd's form where images are large enough: whole and cut
# tiles, result lines that no phase ends with, images in one round and in several.
WINOGRAD_AXES = AXES | {
    "dtype": (torch.float32, torch.bfloat16),
    "batch": (1, 3, 9),
    "size": ((8, 8), (9, 11), (17, 22), (24, 24)),
    "channels": ((64, 64), (72, 65), (65, 130), (130, 64), (257, 64)),
    "kernel": ((4, 4),),
    "steps": (((2, 2), (1, 1), (0, 0)), ((2, 2), (2, 0), (0, 1)), ((2, 2), (0, 3), (1, 0)), ((2, 2), (1, 1), (1, 1))),
    "activation": (None, "leaky_relu", "tanh"),
}
CASES = [Case(**row) for axes in (AXES, WINOGRAD_AXES) for row in pairwise(axes)]


def tensors(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs that get gradients, and the running statistics."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = case.channels

    def random(*shape: int, layout: str = "contiguous") -> Tensor:
        values = torch.randn(shape, generator=generator).to(case.dtype)
        return laid_out(values, layout) if len(shape) == 4 else values

    pair = (inputs, outputs) if case.transposed else (outputs, inputs)
    weight = random(*pair, *case.kernel, layout=case.weight_layout)
    if not case.weight_layout.startswith("expanded"):
        weight = weight.mul_((inputs * case.kernel[0] * case.kernel[1]) ** -0.5)
    found = {"x": random(case.batch, inputs, *case.size, layout=case.x_layout), "weight": weight}
    if case.bias:
        found["bias"] = random(outputs)
    running = {}
    if case.norm != "none":
        # Parameters of a batch norm stay in float32.
        found |= {"bn_weight": random(outputs).float(), "bn_bias": random(outputs).float()}
        running = {"running_mean": random(outputs).float(), "running_var": random(outputs).float().square() + 0.5}
    return found, running


def plain_conv(case: Case, x: Tensor, weight: Tensor) -> Tensor:
    return (F.conv_transpose2d if case.transposed else F.conv2d)(x, weight, None, **case.options())


def plain(case: Case, inputs: dict[str, Tensor], running: dict[str, Tensor], ones: Sequence[Tensor] = (1, 1)) -> Tensor:
    """conv, batch norm and activation of torch.nn.functional, in the dtype of the inputs.

    What the kernels store is multiplied by ``ones``, for their roundings: the convolution's result, and what of it is
    normalised, by statistics that are those of the unrounded one.
    """
    y = plain_conv(case, inputs["x"], inputs["weight"]) * ones[0]
    if case.bias:
        y = y + inputs["bias"].view(1, -1, 1, 1)
    if case.norm == "training":
        count, dims = y.numel() // y.shape[1], (0, 2, 3)
        mean, var = y.mean(dims), y.var(dims, unbiased=False)
        if running.get("running_mean") is not None:
            with torch.no_grad():
                running["running_mean"].lerp_(mean, 0.3)
                running["running_var"].lerp_(var * count / (count - 1), 0.3)
        y = y * ones[1]
    elif case.norm == "evaluation":
        mean, var = running["running_mean"], running["running_var"]
    if case.norm != "none":
        mean, scale = (t.view(1, -1, 1, 1) for t in (mean, inputs["bn_weight"] * (var + EPS).rsqrt()))
        y = (y - mean) * scale + inputs["bn_bias"].view(1, -1, 1, 1)
    if case.activation == "leaky_relu":
        return F.leaky_relu(y, SLOPE)
    return y if case.activation is None else getattr(torch, case.activation)(y)


def gradient(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """A gradient of the result, in the dtype and the layout of the case."""
    shape = plain_conv(case, inputs["x"].float(), inputs["weight"].float()).shape
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    return laid_out(values, case.grad_layout)


def results(function, inputs: dict[str, Tensor], running: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    inputs = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    running = {name: t.clone() for name, t in running.items()}
    y = function(inputs, running)
    grads = torch.autograd.grad(y, list(inputs.values()), grad)
    return {"y": y.detach(), **running, **{f"grad of {n}": g for n, g in zip(inputs, grads, strict=True)}}


def check(case: Case) -> None:
    """Result, gradients and running statistics are within the bound of grids.py."""
    inputs, running = tensors(case)
    function = conv_transpose2d_bn_act if case.transposed else conv2d_bn_act

    def ours(given, statistics):
        return function(
            **given, **statistics, **case.options(), batch_norm=case.norm != "none", training=case.norm == "training",
            momentum=0.3, eps=EPS, activation=case.activation, negative_slope=SLOPE,
        )  # fmt: skip

    pixels = plain_conv(case, torch.zeros(1, case.channels[0], *case.size), inputs["weight"].float())[0, 0].numel()
    if case.norm == "training" and case.batch * pixels == 1:
        with pytest.raises(ValueError, match="more than one value per channel"):
            ours(inputs, running)
        return
    with nan_in_fresh_memory():
        got = results(ours, inputs, running, gradient(case, inputs))
    if case.batch == 0:
        assert got["y"].shape[0] == 0
        assert all(not g.any() for name, g in got.items() if name.startswith("grad"))
        assert all(got[name].equal(running[name]) for name in running)
        return

    exact, units = expected(case, inputs, running)
    assert got.keys() == exact.keys()
    if case.activation in ("relu", "leaky_relu") and not (got["y"] > 0).equal(exact["y"] > 0):
        # Rounding decides on which side of the kink some element is: the gradients then are either's.
        got = {name: value for name, value in got.items() if not name.startswith("grad")}
    for name, value in got.items():
        if name == "grad of bias" and case.norm == "training":
            assert not value.any(), "normalising takes the bias away"
            continue
        assert_accurate(name, value, exact[name], units[name], WINOGRAD if case.may_take_winograd() else DIRECT)


def expected(case: Case, inputs: dict[str, Tensor], running: dict[str, Tensor]) -> tuple[dict, dict]:
    """Results and gradients in float64, and the unit of their errors.

    The convolution's result and its gradient are rounded as well: batch norm takes from them what rounding the inputs
    would not show.
    """
    kept = [*inputs, *running]

    def plain_results(*values: Tensor) -> list[Tensor]:
        named = {name: t.contiguous() for name, t in zip(kept, values, strict=False)}
        found = {n: named[n] for n in inputs}
        statistics = {n: named[n] for n in running}
        return list(results(lambda i, r: plain(case, i, r, values[-3:-1]), found, statistics, values[-1]).values())

    grad = gradient(case, inputs)
    wide = [
        widened(t) for t in (*inputs.values(), *running.values(), torch.ones(grad.shape), torch.ones(grad.shape), grad)
    ]
    names = ["y", *running, *(f"grad of {name}" for name in inputs)]
    eps = torch.finfo(torch.float32).eps
    exact, units = with_rounding(plain_results, wide, eps)
    if case.dtype != torch.float32 and (case.norm != "none" or case.activation in ("tanh", "sigmoid")):
        # z, or the scaled weight and its gradient, or the y that gives the slope, are kept in the storage type.
        _, coarse = with_rounding(plain_results, wide, torch.finfo(case.dtype).eps)
        units = coarse if case.norm != "none" else [units[0], *coarse[1:]]
    return dict(zip(names, exact, strict=True)), dict(zip(names, units, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_gradients_and_running_statistics_are_within_the_bound(case):
    check(case)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_keeps_the_bound_and_reads_no_unwritten_scratch(isa):
    check_cases_under(isa, "ops.test_conv_bn_act_grid")
