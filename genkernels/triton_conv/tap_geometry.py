"""Tap geometry: the pixels that a convolution, its input gradient or its weight gradient sums over."""

from __future__ import annotations

from dataclasses import dataclass

from .arguments import Shifts, Taps


@dataclass(frozen=True)
class TapGeometry:
    """Which input pixel every tap of every output pixel reads, and which taps are live.

    Attributes:
        kernel: rows and columns of taps.
        taps: how many are live for all channel pairs, counted row by row.
        first, step: tap (r, s) of output pixel (i, j) reads input (i, j) * stride + first + (r, s) * step.
        stride: see first.
        phases: above (1, 1), a transposed convolution of this stride; ``first`` is its padding then.
        centre: "forward" or "backward" where the tap after the live ones depends on colour groups, else "".
        groups, see_own, interleaved: the colour groups.
        halves: those of the channels on the masked convolution's result are the groups of each half of them.
    """

    kernel: tuple[int, int]
    taps: int
    first: tuple[int, int]
    step: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    phases: tuple[int, int] = (1, 1)
    centre: str = ""
    groups: int = 1
    see_own: bool = True
    interleaved: bool = False
    halves: bool = False

    @property
    def stored_taps(self) -> int:
        """Taps in a row of packed weights, those of the longest phase."""
        if self.phases != (1, 1):
            return -(-self.kernel[0] // self.phases[0]) * -(-self.kernel[1] // self.phases[1])
        return self.taps + bool(self.centre)

    def units(self, out_channels: int, channels: int) -> tuple[int, int]:
        """After how many of the channels out and in the groups repeat."""
        if self.centre == "backward":
            return out_channels, channels // (1 + self.halves)
        return out_channels // (1 + self.halves), channels

    def counted(self, count: int) -> Taps:
        """The taps as kernels get them, with ``count`` to walk."""
        return Taps(*self.kernel, count, self.groups, int(self.see_own))

    @property
    def shifts(self) -> Shifts:
        return Shifts(*self.first, *self.step, *self.stride)
