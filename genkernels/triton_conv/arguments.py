"""Kernel arguments in named bundles, and the rule by which an argument is bundled or not.

A NamedTuple is one argument of a kernel, and each of its fields is specialised as an argument of its own: compiled anew
where it becomes 1, or a multiple of 16. Pointers, strides and channels are meant to be. Sizes of images and geometry of
taps are not, since every new size would compile; but Triton (3.6 to 3.9) ignores ``do_not_specialize`` within a tuple.
So `Pixels`, `Taps` and `Shifts` are passed field by field, ``**pixels._asdict()``, and are tuples again inside the
kernel. They are the reason why some kernels have more than 12 parameters.

What a kernel is compiled for is one constexpr tuple, `FORM`, and its tile sizes are another, `TILE`. Triton 3.6 hands
out their fields as plain numbers and strings, so a shape, or a string that goes on to another function, is assigned to
a `tl.constexpr` first. It also loses constants in a tuple within a tuple, so bundles are flat, and an image that is not
there is one whose pointer is None.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from torch import Tensor

from ..ops.core.strides import strides_of

INTERPRETED = bool(triton.knobs.runtime.interpret)


class Image(NamedTuple):
    """A tensor [N, C, H, W]: its pointer, or None where there is none, and its strides. Weights are [O, C, kh, kw]."""

    pointer: Any
    n: Any
    c: Any
    h: Any
    w: Any

    @classmethod
    def of(cls, t: Tensor | None) -> Image:
        return cls(None, 0, 0, 0, 0) if t is None else cls(t, *strides_of(t))


class Pixels(NamedTuple):
    """The pixels that a product runs over: how many in all, rows and columns of an image of them, and of one of x."""

    rows: Any
    height: Any
    width: Any
    x_height: Any
    x_width: Any


class Taps(NamedTuple):
    """Taps and colour groups of a `TapGeometry`; ``count``: how many taps are live, or are where groups allow."""

    kernel_h: Any
    kernel_w: Any
    count: Any
    groups: Any
    see_own: Any


class Shifts(NamedTuple):
    """Tap (r, s) of pixel (i, j) reads x at (i, j) * stride + first + (r, s) * step."""

    first_h: Any
    first_w: Any
    step_h: Any
    step_w: Any
    stride_h: Any
    stride_w: Any
