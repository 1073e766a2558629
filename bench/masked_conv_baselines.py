"""Alternatives to our masked convolution that a user has, the strongest of them, and ours, all built alike.

Every builder takes a :class:`Problem` (x, weight, bias, mask, dilation, activation) and a memory layout, does
once whatever may be done once, and returns a :class:`Prepared` pair of calls: a forward pass, and a forward
plus backward pass. All of them train the same masked layer: where an alternative's own gradient is wrong on
masked taps, zeroing it there is part of what is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.core.alternatives import COMPILED, LAYOUTS, NCHW, NHWC, OURS, Layout, to_layout
from bench.core.roofline import Work
from genkernels import ops
from genkernels.ops.masked_conv.mask import MaskSpec, channel_group_of, mask_tensor

EAGER = "conv2d(x, w*mask)"


@dataclass(frozen=True)
class Problem:
    """One masked convolution to compute: x [N, C, H, W], weight [O, C, kh, kw], bias [O], "same" padding.

    ``activation`` is None, "relu" or "gate": tanh(a) * sigmoid(b) of the two halves of the result's channels.
    ``input_grad`` says whether the backward pass owes the gradient of x: the first layer of a model does not.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    grad_output: Tensor
    spec: MaskSpec
    dilation: tuple[int, int] = (1, 1)
    activation: str | None = None
    input_grad: bool = True
    mask: Tensor = field(init=False)
    padding: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        height, width = (k // 2 * d for k, d in zip(self.spec.kernel, self.dilation, strict=True))
        object.__setattr__(self, "padding", (height, width))
        object.__setattr__(self, "mask", mask_tensor(self.spec).to(self.weight))

    def reference(self) -> tuple[Tensor, ...]:
        """y and the gradients of bias, x (if owed) and weight, computed plainly in float64."""
        x, weight, bias = (
            t.double().requires_grad_(grad)
            for t, grad in ((self.x, self.input_grad), (self.weight, True), (self.bias, True))
        )
        y = F.conv2d(x, weight * self.mask.double(), bias, padding=self.padding, dilation=self.dilation)
        y = _activate(y, self.activation)
        inputs = [bias, x, weight] if self.input_grad else [bias, weight]
        return (y.detach(), *torch.autograd.grad(y, inputs, self.grad_output.double()))


def random_problem(
    spec: MaskSpec, batch: int, height: int, width: int,
    *, dilation: tuple[int, int] = (1, 1), activation: str | None = None, input_grad: bool = True,
    device: str = "cpu", dtype: torch.dtype = torch.float32,
) -> Problem:  # fmt: skip
    """A problem in whole numbers -2 to 2: all sums are exact, so nothing wrong hides in rounding.

    In front of a gate, where large numbers would all be one, weight and bias are 1/64 of that.
    """
    generator = torch.Generator().manual_seed(0)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).to(device, dtype)

    scale = 1 / 64 if activation == "gate" else 1
    return Problem(
        x=whole(batch, spec.in_channels, height, width),
        weight=whole(spec.out_channels, spec.in_channels, *spec.kernel) * scale,
        bias=whole(spec.out_channels) * scale,
        grad_output=whole(batch, spec.out_channels // (2 if activation == "gate" else 1), height, width),
        spec=spec,
        dilation=dilation,
        activation=activation,
        input_grad=input_grad,
    )


def live_taps(spec: MaskSpec) -> int:
    """How many weights are live: all (o, c) pairs of a full tap, those the groups allow at the centre."""
    groups = range(spec.channel_groups)
    outputs, inputs = (_group_sizes(c, spec) for c in (spec.out_channels, spec.in_channels))
    centre = sum(outputs[o] * inputs[i] for o in groups for i in groups if spec.centre_is_live(o, i))
    return len(spec.full_taps()) * spec.out_channels * spec.in_channels + centre


def masked_conv_work(
    spec: MaskSpec, batch: int, height: int, width: int, *, backward: bool = False, input_grad: bool = True
) -> Work:
    """The work of a masked convolution in float32: live taps alone, each at all pixels.

    A tap that falls into the zero padding counts like any other. The backward pass does the forward's
    arithmetic once more for the weights and, if owed, once for x; it reads x, grad_y and, for the gradient
    of x, the weights again, and writes the gradients.
    """
    pixels = batch * height * width
    flops = 2 * pixels * live_taps(spec)
    x, y, weight = pixels * spec.in_channels, pixels * spec.out_channels, live_taps(spec) + spec.out_channels
    work = Work(flops, 4 * (x + weight + y))
    if backward:
        work += Work(flops, 4 * (x + y + weight))
        if input_grad:
            work += Work(flops, 4 * (weight + x))
    return work


# --- the alternatives -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """An alternative ready to run.

    Attributes:
        forward: -> y, without autograd.
        step: forward and backward -> y, then the gradients of bias, x (if owed) and its own weights.
        results: what ``step`` computed in the terms of ``Problem.reference``, for comparison.
    """

    forward: Callable[[], Tensor]
    step: Callable[[], tuple[Tensor, ...]]
    results: Callable[[], tuple[Tensor, ...]]


_Apply = Callable[..., Tensor]  # (x, bias, *weights) -> y


def multiplied(problem: Problem, layout: Layout, *, compiled: bool = False) -> Prepared:
    """``conv2d(x, w * mask)`` in every call: what most public code does."""
    p = problem
    mask = to_layout(p.mask, layout)
    padding, dilation, activation = p.padding, p.dilation, p.activation

    def apply(x: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        return _activate(F.conv2d(x, weight * mask, bias, padding=padding, dilation=dilation), activation)

    if compiled:
        apply = torch.compile(apply, dynamic=False, fullgraph=True)
    return _prepare(p, layout, apply, [p.weight])


def premasked(problem: Problem, layout: Layout) -> Prepared:
    """A weight that is masked already; in training its gradient is masked in place, so that it stays so."""
    p = problem

    def apply(x: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        return _activate(F.conv2d(x, weight, bias, padding=p.padding, dilation=p.dilation), p.activation)

    return _prepare(p, layout, apply, [p.weight * p.mask], grad_masks=[p.mask])


def cropped(problem: Problem, layout: Layout, *, pad_first: bool) -> Prepared:
    """Only the kernel rows down to the centre exist, masked beforehand as well.

    Either x is padded above alone first, or the convolution pads on all sides and the rows too many are cut
    off its result, which then is a view with gaps.
    """
    p = problem
    rows, height = p.spec.kernel[0] // 2 + 1, p.x.shape[2]
    above, beside = p.padding
    mask = p.mask[:, :, :rows]

    def apply(x: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        if pad_first:
            y = F.conv2d(F.pad(x, (beside, beside, above, 0)), weight, bias, dilation=p.dilation)
        else:
            y = F.conv2d(x, weight, bias, padding=p.padding, dilation=p.dilation)[:, :, :height]
        return _activate(y, p.activation)

    def in_full(grad: Tensor) -> Tensor:
        return F.pad(grad, (0, 0, 0, p.spec.kernel[0] - rows))

    weight = p.weight[:, :, :rows] * mask
    return _prepare(p, layout, apply, [weight], grad_masks=[mask], in_full=in_full)


def split(problem: Problem, layout: Layout) -> Prepared:
    """Two convolutions added up, the rows above and the row to the left: dead taps at the centre alone."""
    p = problem
    rows, beside = (k // 2 for k in p.spec.kernel)
    columns = beside + bool(p.mask[:, :, rows, beside].any())
    mask = p.mask[:, :, rows : rows + 1, :columns]
    (pad_rows, pad_columns), down, right = p.padding, -p.dilation[0], (columns - beside - 1) * p.dilation[1]

    def apply(x: Tensor, bias: Tensor, above: Tensor, left: Tensor) -> Tensor:
        # Negative padding crops. To pad in the convolution instead is very slow: it exceeds the kernel.
        y = F.conv2d(F.pad(x, (pad_columns, pad_columns, pad_rows, down)), above, bias, dilation=p.dilation)
        y = y + F.conv2d(F.pad(x, (pad_columns, right)), left, dilation=p.dilation)
        return _activate(y, p.activation)

    def in_full(grad_above: Tensor, grad_left: Tensor) -> Tensor:
        grad_left = F.pad(grad_left, (0, p.spec.kernel[1] - columns))
        return F.pad(torch.cat([grad_above, grad_left], 2), (0, 0, 0, rows))

    weights = [p.weight[:, :, :rows], p.weight[:, :, rows : rows + 1, :columns] * mask]
    grad_masks = [None, None if mask.all() else mask]
    return _prepare(p, layout, apply, weights, grad_masks=grad_masks, in_full=in_full)


def ours(problem: Problem, layout: Layout) -> Prepared:
    """``genkernels.ops.masked_conv2d``, or ``masked_conv2d_gated``."""
    p = problem

    def apply(x: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        if p.activation == "gate":
            return ops.masked_conv2d_gated(
                x, weight, bias, mask_type=p.spec.mask_type, channel_groups=p.spec.channel_groups, dilation=p.dilation
            )
        return ops.masked_conv2d(
            x,
            weight,
            bias,
            mask_type=p.spec.mask_type,
            channel_groups=p.spec.channel_groups,
            group_layout=p.spec.group_layout,
            dilation=p.dilation,
            activation=p.activation,
        )

    return _prepare(p, layout, apply, [p.weight])


_FAMILIES: dict[str, Callable[..., Prepared]] = {
    OURS: ours,
    EAGER: multiplied,
    COMPILED: partial(multiplied, compiled=True),
    "pre-masked": premasked,
    "cropped, padded": partial(cropped, pad_first=True),
    "cropped, cut": partial(cropped, pad_first=False),
    "split": split,
}
BUILDERS: dict[str, Callable[[Problem], Prepared]] = {
    name + suffix: partial(build, layout=layout)
    for name, build in _FAMILIES.items()
    for suffix, layout in LAYOUTS.items()
}


def names_for(spec: MaskSpec) -> list[str]:
    """The alternatives that this mask has: with one input channel, our operator knows one layout only."""
    return [name for name in BUILDERS if spec.in_channels > 1 or name != f"{OURS}, channels_last"]


def prepare(problem: Problem, names: Iterable[str] | None = None) -> dict[str, Prepared]:
    """Build the named alternatives, or all of them. Those of an earlier call must not be run any more."""
    names = names_for(problem.spec) if names is None else list(names)
    if any(name.startswith(COMPILED) for name in names):
        # Else every problem counts as a recompilation of the same function, and dynamo stops at the eighth.
        torch.compiler.reset()
    return {name: BUILDERS[name](problem) for name in names}


def _prepare(
    problem: Problem,
    layout: Layout,
    apply: _Apply,
    weights: Sequence[Tensor],
    *,
    grad_masks: Sequence[Tensor | None] = (),
    in_full: _Apply = lambda grad: grad,
) -> Prepared:
    """The two calls of an alternative that computes y = apply(x, bias, *weights).

    ``grad_masks`` are multiplied into the weights' gradients; ``in_full`` makes of these one [O, C, kh, kw].
    """
    x = to_layout(problem.x, layout).requires_grad_(problem.input_grad)
    bias = problem.bias.clone().requires_grad_()
    leaves = [to_layout(weight, layout).requires_grad_() for weight in weights]
    masks = [None if mask is None else to_layout(mask, layout) for mask in grad_masks]
    inputs = [bias, x, *leaves] if problem.input_grad else [bias, *leaves]

    def forward() -> Tensor:
        with torch.inference_mode():
            return apply(x, bias, *leaves)

    # The next layer's gradient comes in the layout in which this layer's result went out.
    grad_output = to_layout(problem.grad_output, NHWC if forward().stride(1) == 1 else NCHW)

    def step() -> tuple[Tensor, ...]:
        y = apply(x, bias, *leaves)
        grads = torch.autograd.grad(y, inputs, grad_output)
        for grad, mask in zip(grads[-len(leaves) :], masks, strict=False):
            if mask is not None:
                grad.mul_(mask)
        return (y, *grads)

    def results() -> tuple[Tensor, ...]:
        done = step()
        return (*done[: -len(leaves)], in_full(*done[-len(leaves) :]))

    return Prepared(forward, step, results)


def _activate(y: Tensor, activation: str | None) -> Tensor:
    if activation == "gate":
        a, b = y.chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)
    return y.relu_() if activation == "relu" else y


def _group_sizes(channels: int, spec: MaskSpec) -> list[int]:
    group = channel_group_of(channels, spec.channel_groups, spec.group_layout)
    return [group.count(g) for g in range(spec.channel_groups)]
