"""The masked convolution in front of a gate, ``tanh(a) * sigmoid(b)``: one pass on a GPU.

On the CPU the gate is a pass of its own, in PyTorch's operators; so are the convolution's colours, masked onto its
weight there, since two halves of colours are out of the order in which the CPU kernel skips them.

    genkernels::masked_conv2d_gated          x, weight, bias, addend -> y, features
    genkernels::masked_conv2d_gate_backward  grad_y, features -> grad_features, and its sum over the pixels

``features`` [N, 2h, H, W] are what the gate reads, empty unless ``keep`` says that a derivative will want them. With
F the bare convolution, features = F(x, w) + b + addend are linear in everything, so the derivatives are those of the
masked convolution (derivatives.py) behind those of the gate; features is an output with a derivative of its own, by
which higher ones find their way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...triton_conv import availability
from ..core.differentiable_op import DifferentiableOp, is_recorded
from ..core.layout import output_format
from ..core.torch_internals import AUTOCAST_KEYS, excluding
from . import reference, schema
from .derivatives import backward as conv_backward
from .derivatives import bare_sum
from .functional import cast_for, check_dilation, check_like, check_options, check_tensors, masked_conv2d
from .mask import MaskSpec
from .schema import gate_backward_op


def gate(features: Tensor) -> Tensor:
    """``tanh(a) * sigmoid(b)`` of the two halves of the channels: [N, 2h, H, W] -> [N, h, H, W]."""
    a, b = features.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


# --- the public function -----------------------------------------------------------------------------------------


def masked_conv2d_gated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    *,
    mask_type: str,
    channel_groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Gated masked convolution: ``tanh(a) * sigmoid(b)``, a and b the halves of ``masked_conv2d(...) + addend``.

    ``a[n, u] = bias[u] + addend[n, u] + sum over live taps of weight[u] * x[n]``, and ``b[n, u]`` the same of channel
    u + h; see :func:`masked_conv2d` for the taps. Differentiable any number of times; works under autocast,
    ``torch.compile`` and ``torch.func``. On a GPU the gate is part of the convolution's one pass.

    Args:
        x: [N, C, H, W] or [C, H, W]; dtypes and strides as for :func:`masked_conv2d`.
        weight: [2h, C, kh, kw], kh and kw odd; the dtype and device of x.
        bias: [2h] or None.
        addend: what another stack or a condition adds before the gate, or None; broadcasts to [N, 2h, H, W]
            (or [2h, H, W]); the dtype and device of x.
        mask_type: "A" hides the centre tap (the pixel itself), "B" shows it.
        channel_groups: number of colour groups G, at most min(C, h), in blocks: both channels of unit u are in group
            ``u * G // h``, whether or not G divides h.
        dilation: one number or (vertical, horizontal), at least 1.

    Returns:
        [N, h, H, W] (or [h, H, W]), the dtype of x; the layout is that of :func:`masked_conv2d`.

    Raises:
        ValueError: an argument does not fit; the message names it, what was expected and what came.
        TypeError: a dtype does not fit.

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", equation 2.
    """
    check_options(mask_type, channel_groups, "blocks", None)
    spread = check_dilation(dilation)
    check_tensors(x, weight, bias, 1)
    _check_gate(x, weight, addend, channel_groups)
    if not _is_fused(x):
        live, mask_type = live_weight(weight, mask_type, channel_groups, gates=2)
        features = masked_conv2d(x, live, bias, mask_type=mask_type, dilation=spread)
        features = features if addend is None else features + addend
        return gate(features) if x.dim() == 4 else gate(features.unsqueeze(0)).squeeze(0)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    if addend is not None:
        addend = addend.expand(batched.shape[0], weight.shape[0], *batched.shape[2:])
    tensors = (batched, weight, bias, addend)
    y, _ = forward(*tensors, mask_type, channel_groups, spread, is_recorded(*tensors))
    return y if x.dim() == 4 else y.squeeze(0)


def _is_fused(x: Tensor) -> bool:
    return x.is_cuda  # replaced where the GPU's kernels are tested without one


def _check_gate(x: Tensor, weight: Tensor, addend: Tensor | None, groups: int) -> None:
    channels = weight.shape[0]
    if channels % 2:
        raise ValueError(f"weight: expected an even number of out_channels, two for each unit; got {channels}")
    if min(channels // 2, weight.shape[1]) < groups:
        raise ValueError(
            f"channel_groups: expected at most min(out_channels / 2, in_channels) = "
            f"{min(channels // 2, weight.shape[1])}; got {groups}"
        )
    if addend is None:
        return
    if not isinstance(addend, Tensor):
        raise TypeError(f"addend: expected a torch.Tensor or None; got {type(addend).__name__}")
    shape = (*x.shape[:-3], channels, *x.shape[-2:])
    fits = addend.dim() <= len(shape) and all(
        own in (1, size) for own, size in zip(addend.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"addend: expected a shape that broadcasts to {list(shape)}; got {list(addend.shape)}")
    check_like("addend", addend, x)


def live_weight(weight: Tensor, mask_type: str, groups: int, *, gates: int) -> tuple[Tensor, str]:
    """The weight [gates * h, C, kh, kw] without what the colours hide, and the mask type for the rest.

    Unit u has the colour ``u * groups // h`` in every gate.
    """
    if groups == 1:
        return weight, mask_type
    outputs, inputs, height, width = weight.shape
    units = outputs // gates
    of_unit = (torch.arange(units, device=weight.device) * groups // units).repeat(gates)[:, None]
    of_input = torch.arange(inputs, device=weight.device) * groups // inputs
    seen = of_input < of_unit if mask_type == "A" else of_input <= of_unit
    beside = torch.arange(height * width, device=weight.device) != height * width // 2
    # Mask B lets all colours through at the centre; what A hides there is among the zeros.
    return weight * (seen[:, :, None, None] | beside.view(height, width)), "B"


# --- kernels -----------------------------------------------------------------------------------------------------


def _gated(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None,
    mask_type: str, channel_groups: int, dilation: Sequence[int], keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    spec = _spec(weight, mask_type, channel_groups)
    y, features = _empty(x, weight, keep)
    spread = (dilation[0], dilation[1])
    if _runs_triton(x):
        from . import gpu  # here, since it imports Triton

        kept = features if keep else None
        gpu.gated(x, weight, bias, addend, spec, spread, y, kept)
        return y, features
    made = _features(x, weight, bias, addend, spec, spread)
    return y.copy_(gate(made)), features.copy_(made) if keep else features


def _features(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, spec: MaskSpec, dilation: tuple[int, int]
) -> Tensor:
    """What the gate reads, in plain PyTorch."""
    made = reference.forward(x, weight, bias, spec, dilation, "none")
    return made if addend is None else made + addend


def _spec(weight: Tensor, mask_type: str, channel_groups: int) -> MaskSpec:
    out_channels, in_channels, height, width = weight.shape
    return MaskSpec(out_channels, in_channels, (height, width), mask_type, channel_groups, "halves")


def _formula(
    x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None,
    mask_type: str, channel_groups: int, dilation: Sequence[int], keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    spec = _spec(weight, mask_type, channel_groups)
    made = _features(x, weight, bias, addend, spec, (dilation[0], dilation[1]))
    return gate(made), made if keep else x.new_empty(0)


def _gate_backward(grad_output: Tensor, features: Tensor, sums: bool) -> tuple[Tensor, Tensor]:
    total = features.new_empty(features.shape[1] if sums else 0)
    if _runs_triton(features) and features.numel() > 0:
        from . import gpu

        return gpu.gate_backward(grad_output, features, total if sums else None), total
    g = torch.empty_like(features, memory_format=torch.channels_last).copy_(_through_gate(grad_output, features))
    return g, total.copy_(g.sum((0, 2, 3))) if sums else total


def _runs_triton(x: Tensor) -> bool:
    return x.is_cuda and availability.why_not(x) is None


def _empty(x: Tensor, weight: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """y and features, not yet written; features always as the tensor cores leave them."""
    n, _, height, width = x.shape
    channels = weight.shape[0]

    def empty(channels: int, memory_format: torch.memory_format) -> Tensor:
        shape = (n, channels, height, width)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)

    y = empty(channels // 2, output_format(x, weight))
    return y, empty(channels, torch.channels_last) if keep else x.new_empty(0)


schema.library.impl("masked_conv2d_gated", _gated, "CompositeExplicitAutograd")
schema.library.impl("masked_conv2d_gate_backward", _gate_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("genkernels::masked_conv2d_gated", lib=schema.library)
def _gated_fake(x: Tensor, weight: Tensor, bias: Any, addend: Any, *options: Any) -> tuple[Tensor, Tensor]:
    return _empty(x, weight, options[-1])


@torch.library.register_fake("genkernels::masked_conv2d_gate_backward", lib=schema.library)
def _gate_backward_fake(grad_output: Tensor, features: Tensor, sums: bool) -> tuple[Tensor, Tensor]:
    g = torch.empty_like(features, memory_format=torch.channels_last)
    return g, features.new_empty(features.shape[1] if sums else 0)


# --- derivatives -------------------------------------------------------------------------------------------------


def _through_gate(grad: Tensor, features: Tensor) -> Tensor:
    """grad_y [N, h, H, W] times the derivative of the gate, to both halves: [N, 2h, H, W]."""
    a, b = features.chunk(2, 1)
    a, b = torch.tanh(a), torch.sigmoid(b)
    return torch.cat([grad * b * (1 - a * a), grad * a * b * (1 - b)], 1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
    x, weight, _, _, mask_type, channel_groups, dilation, _ = inputs
    ctx.options = [mask_type, channel_groups, "halves", dilation, "none"]
    return x, weight, output[1]


def _backward_formula(
    ctx: Any, needs: tuple[bool, ...], grad_output: Tensor | None, grad_features: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight, features = ctx.saved_tensors
    g, sums = grad_features, None
    if grad_output is not None and grad_features is None and not torch.is_grad_enabled():
        g, sums = gate_backward_op(grad_output, features, needs[2])
    elif grad_output is not None:
        g = _through_gate(grad_output, features)
        g = g if grad_features is None else g + grad_features
    if g is None:
        return (None,) * 8
    if needs[2] and sums is None:
        sums = g.sum((0, 2, 3))
    wanted = [needs[0], needs[1], False]
    grad_x, grad_weight, _ = conv_backward(g, x, weight, None, *ctx.options, wanted) if any(wanted) else (None,) * 3
    grads = (grad_x, grad_weight, sums, g)
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=False)), *[None] * 4)


def _jvp(
    ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, dadd: Tensor | None, *_: None
) -> tuple[Tensor, Tensor]:
    x, weight, features = ctx.saved_tensors
    total = bare_sum((dx, weight), (x, dw), db, ctx.options)
    change = dadd if total is None else total if dadd is None else total + dadd
    change = torch.zeros_like(features) if change is None else change
    a, b = features.chunk(2, 1)
    a, b = torch.tanh(a), torch.sigmoid(b)
    da, db_ = change.chunk(2, 1)
    return b * (1 - a * a) * da + a * b * (1 - b) * db_, change


forward = DifferentiableOp(
    schema.library,
    schema.gated_op,
    setup_context=_save,
    backward=_backward_formula,
    jvp=_jvp,
    foldable=False,
)
forward.use_formula(_formula)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None, addend: Tensor | None, *options: Any) -> Any:
    tensors = cast_for("cuda", x, weight=weight, bias=bias, addend=addend)
    with excluding(AUTOCAST_KEYS["cuda"]):
        return forward(*tensors, *options)


schema.library.impl("masked_conv2d_gated", _autocast, "AutocastCUDA")
