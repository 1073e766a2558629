"""The two ways in which a masked convolution runs once it has been recognised (mask_recognition.py).

A mask of :func:`genkernels.ops.masked_conv2d` is left to that operator. Where the live taps are one
rectangle of the kernel, the same for all channels (the vertical stack of a Gated PixelCNN keeps whole rows), the layer
is a dense convolution with a smaller kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.conv_bn_act.heuristics import always_takes_kernel
from ..ops.core.prepared_call import are_plain_tensors
from ..ops.masked_conv.mask import MaskSpec, mask_tensor
from .module_state import Path
from .swap import Swapped, is_hooked, is_one_tensor

_LEAST_SKIPPED = 4_000_000  # multiply-adds by masked taps, from which a smaller kernel is quicker on a CPU
_AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a recognised layer is run.

    Attributes:
        weight, bias: where they are, as paths of attributes.
        masks: the tensors from which the layer makes its mask, by path, with their values: once these change, the
            layer's own forward runs again.
        parts: paths of the modules inside.
        writes: whether the layer writes zeros into the masked taps of its weight, as it did in every pass.
        computed: whether something computes the weight in each pass (weight norm, say); it may be plain later on.
    """

    weight: Path
    bias: Path | None
    dilation: tuple[int, int]
    masks: tuple[tuple[Path, Tensor], ...]
    parts: tuple[Path, ...]
    writes: bool = False
    computed: bool = False
    operator: ClassVar[str]

    @property
    def kernel(self) -> tuple[int, int]:
        """The taps that a trial input should have room for."""
        raise NotImplementedError

    def live(self) -> Tensor:
        """1 where a tap of the layer's own weight is live; broadcasts to its shape."""
        raise NotImplementedError

    def takes(self, x: Tensor) -> bool:
        """Whether the operator runs on such an image, and is the quicker way."""
        return True

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MaskPlan(Plan):
    """A mask that :func:`genkernels.ops.masked_conv2d` has.

    Attributes:
        spec: the mask, of the whole odd kernel.
        crop: zeros to put around the weight, as ``F.pad`` takes them: (left, right, top, bottom).
    """

    spec: MaskSpec
    crop: tuple[int, int, int, int]
    operator = "masked_conv2d"

    def __str__(self) -> str:
        text = f"{_by(self.kernel)}, mask {self.spec.mask_type}"
        if self.spec.channel_groups > 1:
            text += f", {self.spec.channel_groups} colours in {self.spec.group_layout}"
        return text + (", cropped kernel" if any(self.crop) else "")

    @property
    def kernel(self) -> tuple[int, int]:
        return self.spec.kernel

    def live(self) -> Tensor:
        left, right, top, bottom = self.crop
        mask = mask_tensor(self.spec)
        return mask[:, :, top : mask.shape[2] - bottom, left : mask.shape[3] - right]

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return ops.masked_conv2d(
            x,
            F.pad(weight, self.crop) if any(self.crop) else weight,
            bias,
            mask_type=self.spec.mask_type,
            channel_groups=self.spec.channel_groups,
            group_layout=self.spec.group_layout,
            dilation=self.dilation,
        )


@dataclass(frozen=True, kw_only=True)
class RectanglePlan(Plan):
    """Live taps that are one rectangle of the kernel, whatever the channels: a dense convolution of these.

    Attributes:
        shape: height and width of the layer's own kernel.
        rows, columns: the live ones, from and to.
        padding: of both sides, for the convolution itself.
        pad: of the image before, where the sides differ, as ``F.pad`` takes it; pixels that no tap sees are cut off.
        whole: padding of both sides for the layer's own kernel, or None where the sides differ.
        dead: masked taps of all output channels, which are skipped for each value of the image.
    """

    shape: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    padding: tuple[int, int]
    pad: tuple[int, int, int, int]
    whole: tuple[int, int] | None
    dead: int
    operator = "conv2d"

    def __str__(self) -> str:
        live = _by((self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]))
        return f"{_by(self.shape)}, its live taps are {live}: a dense convolution of these"

    @property
    def kernel(self) -> tuple[int, int]:
        return self.shape

    def live(self) -> Tensor:
        return rectangle(self.shape, self.rows, self.columns)

    def takes(self, x: Tensor) -> bool:
        if self._is_small(x) and not self._leaves_gradients():
            return False
        left, right, top, bottom = self.pad
        rows, columns = -min(top, bottom), -min(left, right)  # to be cut off
        return (rows <= 0 or x.shape[-2] >= rows) and (columns <= 0 or x.shape[-1] >= columns)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.whole is not None and self._leaves_gradients() and self._is_small(x):
            return F.conv2d(x, weight * self.live().to(weight), bias, 1, self.whole, self.dilation)
        (top, bottom), (left, right) = self.rows, self.columns
        if any(self.pad):
            x = F.pad(x, self.pad)
        return F.conv2d(x, weight[:, :, top:bottom, left:right], bias, 1, self.padding, self.dilation)

    def _leaves_gradients(self) -> bool:
        """Whether the layer itself would leave gradients at masked taps, as one that writes into its weight does."""
        return self.writes and torch.is_grad_enabled()

    def _is_small(self, x: Tensor) -> bool:
        """Whether what is skipped weighs less than the steps around it, of which a compiler makes little.

        What is compiled or traced serves any size.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.numel() * self.dead >= _LEAST_SKIPPED:
            return False
        return x.is_cpu and not always_takes_kernel()


@cache
def rectangle(shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    with torch.inference_mode(False):  # it is kept, and may be needed for gradients
        live = torch.zeros(1, 1, *shape)
        live[:, :, slice(*rows), slice(*columns)] = 1
        return live


def _by(sizes: tuple[int, int]) -> str:
    return "x".join(map(str, sizes))


def get(module: nn.Module, path: Path) -> Any:
    value: Any = module
    for name in path:
        value = getattr(value, name)
    return value


class AcceleratedMaskedConv2d(Swapped):
    """The forward pass of a recognised layer, as its plan says."""

    _genkernels_other_mask = False

    def _load_from_state_dict(self: Any, *args: Any) -> None:
        super()._load_from_state_dict(*args)  # type: ignore[misc]
        if self._genkernels_plan is not None:
            _look_at_masks(self, self._genkernels_plan)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._genkernels_plan
        takes = plan is not None and not kwargs and is_one_tensor(args) and plan.takes(args[0])
        if not takes or not _has_its_dtype(self, plan, args[0]) or not _holds(self, plan):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if plan.writes and not torch.compiler.is_compiling():
            zero_masked_taps(self, plan)
        return plan.run(args[0], get(self, plan.weight), None if plan.bias is None else get(self, plan.bias))


def _has_its_dtype(module: Any, plan: Plan, x: Tensor) -> bool:
    """Whether an image has the weight's dtype: another one, which the layer may cast, is left to its own forward."""
    weight = next(get(module, plan.weight[:-1]).parameters()) if plan.computed else get(module, plan.weight)
    if x.dtype == weight.dtype:
        return True
    return x.dtype in _AUTOCAST and weight.dtype in _AUTOCAST and torch.is_autocast_enabled(x.device.type)


def _holds(module: Any, plan: Plan) -> bool:
    """Whether the layer still is what was recognised.

    A compiler cannot look into the masks: it takes (and guards on) what was seen last, in an eager call or on loading
    a checkpoint.
    """
    if any(is_hooked(get(module, path)) for path in plan.parts):
        return False
    if not plan.computed and plan.weight[-1] not in get(module, plan.weight[:-1])._parameters:
        return False  # something computes it now
    if not torch.compiler.is_compiling():
        _look_at_masks(module, plan)
    return not module._genkernels_other_mask


def _look_at_masks(module: Any, plan: Plan) -> None:
    other, elsewhere = False, []
    for path, value in plan.masks:
        mask = get(module, path)
        if not are_plain_tensors(mask) or mask.is_meta:
            other = True
        elif mask.is_cpu:  # cheaper than the product that the layer itself would make
            other = other or not _same(mask, value)
        else:
            elsewhere.append((mask, value))
    if elsewhere:
        other = other or _other_elsewhere(module, elsewhere)
    if other != module._genkernels_other_mask:
        module.__dict__["_genkernels_other_mask"] = other


def _other_elsewhere(module: Any, masks: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """A look into a GPU's memory waits for it: once for each tensor and version."""
    stamps = [(mask, -1 if mask.is_inference() else mask._version) for mask, _ in masks]
    known, other = module.__dict__.get("_genkernels_seen", ((), False))
    same = len(known) == len(stamps) and all(a is b and v == w for (a, v), (b, w) in zip(known, stamps, strict=True))
    if not same:
        other = not all(_same(mask, value) for mask, value in masks)
        module.__dict__["_genkernels_seen"] = stamps, other
    return bool(other)


def _same(mask: Tensor, value: Tensor) -> bool:
    if mask.is_cpu and mask.dtype == value.dtype:
        return torch.equal(mask, value)
    return mask.shape == value.shape and torch.equal(mask.detach().cpu().to(value.dtype), value)


def zero_masked_taps(module: nn.Module, plan: Plan) -> None:
    """What a layer that writes the zeros into its weight does in every pass, unseen by autograd."""
    weight = get(module, plan.weight)
    weight.data.mul_(plan.live().to(weight))
