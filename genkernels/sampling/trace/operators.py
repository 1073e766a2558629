"""The table of operators that compute, with the nodes that each becomes: a new operator is added here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ops.masked_conv.mask import MaskSpec, mask_tensor
from ...ops.masked_conv.reference import gate
from ...ops.wavefront_lstm.geometry import Geometry
from ...ops.wavefront_lstm.schema import LAYERS, RECURRENCES, Direction, Inputs
from ..program.instructions import Function
from .graph import AffineNode, Box, Link, LstmNode, NotTraceable, PointNode, Tap
from .operator_table import OperatorTable
from .places import channels_first
from .tensor import Traced
from .tracer import Tracer
from .view import Plane

OPERATORS = OperatorTable()

# --- convolutions ----------------------------------------------------------------------------------------------


@OPERATORS.handles("aten::convolution")
def _convolution(
    tracer: Tracer, x: Any, weight: Any, bias: Any, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Traced:  # fmt: skip
    if transposed or any(s != 1 for s in stride):
        raise NotTraceable(
            f"layer {tracer.name()!r}: only convolutions that keep the resolution; got stride {list(stride)}"
        )
    if not isinstance(x, Traced) or isinstance(weight, Traced) or isinstance(bias, Traced):
        raise NotTraceable(f"layer {tracer.name()!r}: the weight depends on the image")
    flat = x.dim() == 3
    if flat:
        weight, padding, dilation = weight.unsqueeze(2), [0, *padding], [1, *dilation]
    if groups > 1:
        weight = _dense(weight, groups)
    node = _affine(tracer, x.as_plane(), weight, bias, padding, dilation)
    shape = (x.shape[0], node.channels, *([] if flat else [node.extent.bottom]), node.extent.right)
    return tracer.result(node, shape)


@OPERATORS.handles("aten::mm")
def _mm(tracer: Tracer, x: Any, weight: Any) -> Tensor:
    """A linear layer on channels that come last: a convolution of one tap."""
    if not isinstance(x, Traced) or isinstance(weight, Traced):
        raise NotTraceable(f"layer {tracer.name()!r}: the weight depends on the image")
    image = channels_first(tracer, x)
    node = _affine(tracer, image.as_plane(), weight.t()[:, :, None, None], None, [0, 0], [1, 1])
    result = tracer.result(node, (image.shape[0], node.channels, *image.shape[2:]))
    return result.movedim(1, -1).reshape(x.shape[0], node.channels)


@OPERATORS.handles("aten::addmm")
def _addmm(tracer: Tracer, bias: Tensor, x: Any, weight: Any, beta: float = 1, alpha: float = 1) -> Tensor:
    return _mm(tracer, x, weight * alpha) + bias * beta


def _dense(weight: Tensor, groups: int) -> Tensor:
    """The weight of a grouped convolution with its zeros: [O, I / groups, kh, kw] -> [O, I, kh, kw]."""
    blocks = weight.unflatten(0, (groups, -1))  # [groups, O / groups, I / groups, kh, kw]
    dense = weight.new_zeros(*blocks.shape[:2], groups, *blocks.shape[2:])
    dense[range(groups), :, range(groups)] = blocks
    return dense.flatten(2, 3).flatten(0, 1)


def _affine(
    tracer: Tracer, plane: Plane, weight: Tensor, bias: Tensor | None, padding: Sequence[int], dilation: Sequence[int]
) -> AffineNode:
    """The convolution as a sum over its live taps: those that are not zero for every pair of channels."""
    if not bool(weight.isfinite().all()):
        raise NotTraceable(f"layer {tracer.name()!r}: its weight is not finite (a mask of zeros makes NaN of it)")
    height, width = weight.shape[2:]
    bottom = plane.height + 2 * padding[0] - (height - 1) * dilation[0]
    right = plane.width + 2 * padding[1] - (width - 1) * dilation[1]
    if bottom < 1 or right < 1:
        raise NotTraceable(
            f"layer {tracer.name()!r}: the kernel is larger than the image of {plane.height} x {plane.width}"
        )
    live = [(r, s) for r in range(height) for s in range(width) if bool(weight[:, :, r, s].any())]
    offsets = [(r * dilation[0] - padding[0], s * dilation[1] - padding[1]) for r, s in live]
    reach = Box(0, 0, 0, 0)
    for dy, dx in offsets:
        reach |= Box(0, bottom, 0, right).moved(dy, dx)
    pieces = tracer.clean(plane, reach)
    taps = []
    for (r, s), (dy, dx) in zip(live, offsets, strict=True):
        for piece in pieces:
            tap = Tap(piece.node, dy + piece.dy, dx + piece.dx, piece.channels, weight[:, piece.places, r, s].detach())
            taps.append(tap)
    return AffineNode(
        tracer.name(), weight.shape[0], Box(0, bottom, 0, right), taps, None if bias is None else bias.detach()
    )


@OPERATORS.handles("genkernels::masked_conv2d")
def _masked_conv2d(
    tracer: Tracer, x: Traced, weight: Tensor, bias: Tensor | None, mask_type: str, channel_groups: int,
    group_layout: str, dilation: Sequence[int], activation: str,
) -> Traced:  # fmt: skip
    out_channels, in_channels, height, width = weight.shape
    spec = MaskSpec(out_channels, in_channels, (height, width), mask_type, channel_groups, group_layout)
    padding = [height // 2 * dilation[0], width // 2 * dilation[1]]
    live = weight.masked_fill(mask_tensor(spec).to(weight.device) == 0, 0)  # what stands elsewhere is never read
    node = _affine(tracer, x.as_plane(), live, bias, padding, dilation)
    if activation != "none":
        node.activation = Function(activation)
    return tracer.result(node, (x.shape[0], out_channels, *x.shape[2:]))


@OPERATORS.handles("genkernels::masked_conv2d_gated")
def _masked_conv2d_gated(
    tracer: Tracer, x: Traced, weight: Tensor, bias: Tensor | None, addend: Tensor | None, mask_type: str,
    channel_groups: int, dilation: Sequence[int], keep: bool,
) -> tuple[Tensor, None]:  # fmt: skip
    features: Tensor = _masked_conv2d(
        tracer, x, weight, bias, mask_type, channel_groups, "halves", dilation, "none"
    )  # fmt: skip
    return gate(features if addend is None else features + addend), None


# --- channel by channel ----------------------------------------------------------------------------------------


def _point(tracer: Tracer, function: Function, planes: Sequence[Plane | Link], shape: Any) -> Traced:
    first = planes[0]
    assert isinstance(first, Plane)
    operands = [tracer.operand(p) if isinstance(p, Plane) else [p] for p in planes]
    return tracer.result(PointNode(tracer.name(), first.channels, first.box, function, operands), shape)


def unary(tracer: Tracer, x: Any, name: str, *parameters: float) -> Traced:
    return _point(tracer, Function(name, tuple(float(p) for p in parameters)), [x.as_plane()], x.shape)


for _name in ("relu", "tanh", "sigmoid", "exp", "silu"):
    OPERATORS.compute[f"aten::{_name}"] = lambda tracer, x, name=_name: unary(tracer, x, name)


@OPERATORS.handles("aten::gelu")
def _gelu(tracer: Tracer, x: Traced, approximate: str = "none") -> Traced:
    return unary(tracer, x, "gelu" if approximate == "none" else "gelu_tanh")


@OPERATORS.handles("aten::elu")
def _elu(tracer: Tracer, x: Traced, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Traced:
    return unary(tracer, x, "elu", alpha, scale, input_scale)


@OPERATORS.handles("aten::leaky_relu")
def _leaky_relu(tracer: Tracer, x: Traced, slope: float = 0.01) -> Traced:
    return unary(tracer, x, "leaky_relu", slope)


@OPERATORS.handles("aten::softplus")
def _softplus(tracer: Tracer, x: Traced, beta: float = 1, threshold: float = 20) -> Traced:
    return unary(tracer, x, "softplus", beta, threshold)


@OPERATORS.handles("aten::hardtanh", "aten::clamp")
def _clamp(tracer: Tracer, x: Any, low: Any = None, high: Any = None) -> Any:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        x = x if low is None else torch.maximum(tracer.number(x), tracer.number(low))
        return x if high is None else torch.minimum(x, tracer.number(high))
    if tracer.operator == "aten::hardtanh":
        low, high = -1 if low is None else low, 1 if high is None else high
    infinity = float("inf")
    return unary(tracer, x, "clamp", -infinity if low is None else low, infinity if high is None else high)


@OPERATORS.handles("aten::clamp_min")
def _clamp_min(tracer: Tracer, x: Traced, low: float) -> Traced:
    return _clamp(tracer, x, low, None)


@OPERATORS.handles("aten::clamp_max")
def _clamp_max(tracer: Tracer, x: Traced, high: float) -> Traced:
    return _clamp(tracer, x, None, high)


@OPERATORS.handles("aten::neg")
def _neg(tracer: Tracer, x: Traced) -> Traced:
    return unary(tracer, x, "scale", -1, 0)


@OPERATORS.handles("aten::glu")
def _glu(tracer: Tracer, x: Traced, dim: int = -1) -> Tensor:
    content, gate = x.chunk(2, dim)
    return content * gate.sigmoid()


def pointwise(tracer: Tracer, name: str, *tensors: Any) -> Traced:
    """A function of BINARY or TERNARY; one tensor at least is traced."""
    operator, shape = tracer.operator, torch.broadcast_shapes(*(t.shape for t in tensors))
    whole = [t.expand(shape) if isinstance(t, Traced) and t.shape != shape else t for t in tensors]
    tracer.operator = operator
    plane = next(t for t in whole if isinstance(t, Traced)).as_plane()
    # Constants may stand in front: the traced operand decides the number of channels.
    planes = [t.as_plane() if isinstance(t, Traced) else _constant(tracer, t, shape, plane) for t in whole]
    operands = [tracer.operand(p) if isinstance(p, Plane) else [p] for p in planes]
    return tracer.result(PointNode(tracer.name(), plane.channels, plane.box, Function(name), operands), shape)


def _constant(tracer: Tracer, value: Tensor, shape: torch.Size, plane: Plane) -> Plane | Link:
    """A tensor that broadcasts to ``shape``: a vector where it is the same at all pixels, else a map."""
    full = value.detach().to(tracer.dtype).reshape((1,) * (len(shape) - value.dim()) + tuple(value.shape))
    inner = tuple(shape[1 : len(shape) - 2]) if len(shape) > 3 else tuple(shape[1:2])
    spatial = full.shape[1 + len(inner) :]
    every, same = list(range(plane.channels)), full.shape[1 : 1 + len(inner)].numel() == 1
    if spatial.numel() == 1:
        vector = (full if same else full.expand(-1, *inner, *spatial)).reshape(full.shape[0], -1)
        return Link(tracer.vector(vector), 0, 0, [0] * plane.channels if same else every, every)
    if same:
        of_all = full.reshape(full.shape[0], 1, *spatial).expand(-1, 1, *shape[1 + len(inner) :])
        return tracer.constant(of_all).as_plane().repeated(plane.channels)
    return tracer.constant(full.expand(full.shape[0], *shape[1:])).as_plane()


@OPERATORS.handles("aten::add", "aten::sub", "aten::rsub")
def _add(tracer: Tracer, a: Any, b: Any, alpha: float = 1) -> Traced:
    minus = tracer.operator != "aten::add"
    if tracer.operator == "aten::rsub":
        a, b = b, a
        if alpha != 1:
            b = b * alpha
    elif alpha != 1:
        b = b * alpha
    if tracer.result_dtype == torch.bool:  # the sum of two truth values is one again
        return pointwise(tracer, "maximum", *(tracer.number(t) for t in (a, b)))
    if isinstance(b, Tensor) and isinstance(a, Tensor):
        if b.dim() > 0 and a.dim() > 0:
            return pointwise(tracer, "sub" if minus else "add", a, b)
        a, b = (float(t) if t.dim() == 0 else t for t in (a, b))
    if isinstance(a, Traced):
        return unary(tracer, a, "scale", 1, -b if minus else b)
    return unary(tracer, b, "scale", -1 if minus else 1, a)


@OPERATORS.handles("aten::mul")
def _mul(tracer: Tracer, a: Any, b: Any) -> Traced:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() > 0 and b.dim() > 0:
        return pointwise(tracer, "mul", a, b)
    return unary(tracer, a, "scale", b, 0) if isinstance(a, Traced) else unary(tracer, b, "scale", a, 0)


@OPERATORS.handles("aten::div")
def _div(tracer: Tracer, a: Any, b: Any, *, rounding_mode: str | None = None) -> Traced:
    if rounding_mode is not None:
        raise NotTraceable(f"layer {tracer.name()!r}: a quotient that is rounded ({rounding_mode})")
    if isinstance(b, Tensor) and b.dim() > 0:
        if not isinstance(a, Tensor):
            a = torch.tensor([a], dtype=tracer.dtype, device=tracer.device)
        return pointwise(tracer, "div", a, b)
    return unary(tracer, a, "scale", 1 / float(b), 0)


@OPERATORS.handles("aten::reciprocal")
def _reciprocal(tracer: Tracer, x: Traced) -> Traced:
    return _div(tracer, 1.0, x)


@OPERATORS.handles("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm")
def _batch_norm(
    tracer: Tracer, x: Traced, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None,
    training: bool, momentum: float, eps: float,
) -> tuple[Traced, None, None]:  # fmt: skip
    if training or mean is None or variance is None:
        raise NotTraceable(
            f"layer {tracer.name()!r}: batch norm in training mixes the images of a batch; call eval() first"
        )
    plane = x.as_plane()
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = -mean * scale + (0 if bias is None else bias)
    every = list(range(plane.channels))
    scaled = _point(tracer, Function("mul"), [plane, Link(tracer.vector(scale[None]), 0, 0, every, every)], x.shape)
    link = Link(tracer.vector(shift[None]), 0, 0, every, every)
    return _point(tracer, Function("add"), [scaled.as_plane(), link], x.shape), None, None


# --- writing into a tensor ---------------------------------------------------------------------------------------


def _filled(tracer: Tracer, target: Traced, values: Tensor) -> Traced:
    """A constant of the target's shape; [N, H, W] is one channel of an image unless the target is part of a signal."""
    values = values.to(tracer.device, tracer.dtype).expand(target.shape)
    channel = values.dim() == 3 and target.memory[0].dim() > 3
    index = tracer.constant(values.unsqueeze(1) if channel else values).as_index()
    return Traced(tracer, target.shape, index=index.reshape(1, *target.shape[1:]))


@OPERATORS.writes("aten::copy_")
def _copy(tracer: Tracer, target: Traced, source: Tensor, non_blocking: bool = False) -> Traced:
    if isinstance(source, Traced):
        return source
    return _filled(tracer, target, source)


@OPERATORS.writes("aten::fill_")
def _fill(tracer: Tracer, target: Traced, value: Any) -> Traced:
    if isinstance(value, Traced):
        return value
    return _filled(tracer, target, torch.tensor(float(value)))


@OPERATORS.writes("aten::zero_")
def _zero(tracer: Tracer, target: Traced) -> Traced:
    return _fill(tracer, target, 0)


@OPERATORS.writes("aten::index_put_")
def _index_put(
    tracer: Tracer, target: Traced, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Traced:
    if accumulate:
        raise NotTraceable(f"layer {tracer.name()!r}: index_put_ that adds up; write it as a sum")
    (mask,) = indices if len(indices) == 1 else (None,)
    if isinstance(mask, Traced):
        if mask.dtype != torch.bool or mask.shape != target.shape or values.numel() != 1:
            raise NotTraceable(
                f"layer {tracer.name()!r}: index_put_ at places that depend on the image; use torch.where"
            )
        return target.masked_fill(mask, values.reshape(()))  # type: ignore[return-value]
    if not indices or indices[0] is not None:
        raise NotTraceable(f"layer {tracer.name()!r}: index_put_ chooses images of the batch")
    places = tuple(slice(None) if i is None else i.cpu() for i in indices)
    index = target.as_index().clone()
    if not isinstance(values, Traced):
        shape = (len(target), *index[places].shape[1:])
        values = _filled(tracer, Traced(tracer, shape), values)
    index[places] = values.as_index()
    return Traced(tracer, target.shape, index=index)


# --- recurrences -----------------------------------------------------------------------------------------------


def _recurrence(tracer: Tracer, gates: Traced, own: Direction, geometry: Geometry) -> Traced:
    """One direction over its gates [N, 4h, H, W]."""
    plane = gates.as_plane()
    units = plane.channels // 4
    h0, c0 = (None if state is None or not bool(state.any()) else state.detach() for state in (own.h0, own.c0))
    name = tracer.name() + (" from the right" if geometry.mirrored else "")
    weight = own.weight.detach()
    node = LstmNode(name, units, plane.box, [], None, tracer.operand(plane), weight, h0, c0, geometry)
    return tracer.result(node, (gates.shape[0], units, *gates.shape[2:]))


def _directions(tracer: Tracer, inputs: Inputs) -> list[Traced]:
    """The results of all directions; a layer's gates are convolved first."""
    x: Any = inputs.x
    results = []
    for own, geometry in zip(inputs.directions, inputs.geometries, strict=True):
        gates: Any = own.gates
        if x is not None:
            options = (inputs.mask_type, 1, "blocks", (1, 1), "none")
            gates = _masked_conv2d(tracer, x, own.input_weight, own.input_bias, *options)
        results.append(_recurrence(tracer, gates, own, geometry))
    return results


@OPERATORS.handles("genkernels::wavefront_lstm")
def _lstm(tracer: Tracer, *arguments: Any) -> tuple[Traced, None]:
    (hidden,) = _directions(tracer, RECURRENCES[1].forward_call(arguments).inputs)
    return hidden, None


@OPERATORS.handles("genkernels::wavefront_lstm_pair")
def _lstm_pair(tracer: Tracer, *arguments: Any) -> tuple[Traced, Traced, None]:
    left, right = _directions(tracer, RECURRENCES[2].forward_call(arguments).inputs)
    return left, right, None


@OPERATORS.handles("genkernels::wavefront_layer")
def _layer(tracer: Tracer, *arguments: Any) -> tuple[Traced, None]:
    (hidden,) = _directions(tracer, LAYERS[1].forward_call(arguments).inputs)
    return hidden, None


@OPERATORS.handles("genkernels::wavefront_layer_pair")
def _layer_pair(tracer: Tracer, *arguments: Any) -> tuple[Tensor, None]:
    left, right = _directions(tracer, LAYERS[2].forward_call(arguments).inputs)
    return left + torch.constant_pad_nd(right[..., :-1, :], [0, 0, 1, 0]), None
