"""Arguments of an executor besides the program: the images, what is open in them, and how to draw it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...distributions import Distribution


@dataclass(eq=False)
class Run:
    """One pass over a batch of images.

    Attributes:
        images: whole numbers [n, C, H, W], the known levels in place; what is drawn is written here.
        free: bool [n, C, H, W], true where a level is to be drawn.
        uniforms: floating-point [n, C, H, W] in [0, 1).
        temperature: above 0.
        top_k: None, or at least 1; see :meth:`genkernels.distributions.Distribution.draw`.
        last: (row, column, colour) of the last sub-pixel that is open in any image: nothing beyond it is computed.
        row_done: to be called with y after each row.
        first: the number of the first image, where the run has a part of a batch.
        threads: of the CPU's executor; None for torch's.
        logits: None, or [n, channels, predictions, H, W] to write what every visited sub-pixel is drawn from to.
    """

    images: Tensor
    free: Tensor
    uniforms: Tensor
    temperature: float
    top_k: int | None
    last: tuple[int, int, int]
    row_done: Callable[[int], None]
    first: int = 0
    logits: Tensor | None = None
    threads: int | None = None

    def contiguous(self) -> Run:
        """The same with arrays as the native executors take them; those that are so already are shared."""
        return replace(
            self,
            images=self.images.to(torch.int32).contiguous(),
            free=self.free.contiguous(),
            uniforms=self.uniforms.to(torch.float64).contiguous(),
            logits=None if self.logits is None else self.logits.contiguous(),
        )

    def native(self, module: Any) -> Any:
        """A contiguous run as a native module takes it, by address: it must outlive the result."""
        return module.SamplerRun(
            images=len(self.images),
            levels=self.images.data_ptr(),
            free=self.free.data_ptr(),
            uniforms=self.uniforms.data_ptr(),
            logits=0 if self.logits is None else self.logits.data_ptr(),
            temperature=float(self.temperature),
            top_k=self.top_k or 0,
            last=self.last,
        )

    def take(self, done: Run) -> None:
        """Copies the results of the contiguous run, where its arrays are not those of this one."""
        if done.images is not self.images:
            self.images.copy_(done.images)
        if self.logits is not None and done.logits is not None and done.logits is not self.logits:
            self.logits.copy_(done.logits)

    def unsound(self, distribution: Distribution, sub_pixel: int) -> ValueError:
        """The error where no level can be drawn at an element of ``images``, counted through."""
        image, channel, row, column = (int(k) for k in np.unravel_index(sub_pixel, self.images.shape))
        return distribution.unsound(self.first + image, channel, row, column)
