"""Fully visible belief network: every sub-pixel by a logistic regression on all sub-pixels before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributions.categorical import draw, has_level, no_level
from ..sampling.request import Request
from .autoregressive import AutoregressiveModel


class FVBN(AutoregressiveModel):
    """Fully visible belief network with logistic conditionals, the parent of the autoregressive families.

    The logit of level k of sub-pixel i is ``bias[k, i] + sum over j < i of weight[k, i, j] * x[j]``, with sub-pixels in
    drawing order (rows, columns, colours) and x in [0, 1]; that of level 0 is 0. With two levels these are logistic
    regressions, with more multinomial ones. The likelihood is concave in the weights, which therefore start at zero.

    Args:
        in_channels: 1 for grey images, 3 for R, G, B.
        levels: values that a sub-pixel takes, 2 to 256. There are ``(levels - 1) * D**2`` weights for D sub-pixels.
        num_classes: classes of images that the model is conditioned on; None for none. With classes, ``condition`` is
            the int64 label [N] of each image, and each class has a bias of its own.
        image_size: height and width of all images, one number for squares.

    Shape: [N, in_channels, H, W] levels of the model's size -> logits [N, levels, in_channels, H, W].

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Frey, Hinton, Dayan 1996, "Does the Wake-sleep Algorithm Produce Good Density Estimators?"; Neal 1992,
        "Connectionist Learning of Belief Networks".
    """

    def __init__(
        self,
        in_channels: int = 1,
        levels: int = 2,
        *,
        num_classes: int | None = None,
        image_size: int | Sequence[int] = (28, 28),
    ) -> None:
        super().__init__(in_channels, levels, image_size, num_classes)
        self.config = {
            "in_channels": in_channels,
            "levels": levels,
            "num_classes": num_classes,
            "image_size": list(self.image_size),
        }
        height, width = self.image_size
        size = in_channels * height * width
        self.weight = nn.Parameter(torch.empty(levels - 1, size, size))  # what is not below the diagonal is not used
        self.bias = nn.Parameter(torch.empty(num_classes or 1, levels - 1, size))
        self._initialise()

    def _initialise(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def predict(self, scaled: Tensor, condition: Tensor | None) -> Tensor:
        self.check_images(scaled)
        batch, colours, height, width = scaled.shape
        sums = scaled.permute(0, 2, 3, 1).flatten(1) @ self.weight.tril(-1).transpose(1, 2)  # [levels - 1, N, D]
        logits = F.pad(sums.transpose(0, 1) + self._biases(condition), (0, 0, 1, 0))
        return logits.view(batch, self.levels, height, width, colours).permute(0, 1, 4, 2, 3)

    def _biases(self, condition: Tensor | None) -> Tensor:
        """[N or 1, levels - 1, D]."""
        return self.bias if condition is None else self.bias[condition]

    def _draw(
        self,
        request: Request,
        condition: Tensor | None,
        progress: Callable[[int, int], None] | None,
        backend: str | None,
    ) -> Tensor:
        """Each level, once drawn, is added to the logits of all sub-pixels after it: one forward pass in all."""
        size = tuple(request.images.shape[2:])
        if size != self.image_size:
            raise ValueError(f"size: expected {self.image_size}; got {size}")
        if backend is not None:
            return super()._draw(request, condition, progress, backend)
        images, free = (x.permute(0, 2, 3, 1) for x in (request.images, request.free))  # in drawing order
        uniforms = request.uniforms.permute(0, 2, 3, 1)
        columns = self.weight.permute(2, 0, 1).contiguous()  # [j, levels - 1, i]
        logits = F.pad(self._biases(condition).expand(len(images), -1, -1), (0, 0, 1, 0))
        height, width, colours = free.shape[1:]
        order = list(itertools.product(range(height), range(width), range(colours)))
        end = int(free.any(0).flatten().nonzero().max()) + 1 if free.any() else 0
        for index, (row, column, colour) in enumerate(order[:end]):
            here, open_here, own = images[:, row, column, colour], free[:, row, column, colour], logits[:, :, index]
            wrong = (open_here & ~has_level(own)).nonzero()
            if len(wrong):
                raise no_level(int(wrong[0]), colour, row, column)
            drawn = draw(own, uniforms[:, row, column, colour], request.temperature, request.top_k)
            here.copy_(torch.where(open_here, drawn.to(here.dtype), here))
            if progress is not None:
                progress(index + 1, end)
            scaled = self._scaled(here)[:, None, None]
            logits[:, 1:, index + 1 :].addcmul_(scaled, columns[index, :, index + 1 :])
        return request.images
