"""What every autoregressive image model shares: the input convention, the likelihood and pixel-by-pixel
sampling.

p(x) is the product over sub-pixels, row by row and R, G, B in turn inside a pixel, of p(x_i | all before it)
(van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 2). A model gives all factors of an
image in one forward pass; sampling needs them one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bits_per_dim(nats: float, dims: int) -> float:
    """Nats per image as bits per sub-pixel; ``dims`` is C * H * W."""
    return nats / (dims * math.log(2))


def log_likelihood(logits: Tensor, images: Tensor) -> Tensor:
    """Log-probability of each image under its logits, in nats: [N, levels, C, H, W], [N, C, H, W] -> [N].

    The softmax runs over whatever order the logits already have in memory, without a copy: levels outermost
    (contiguous features) or innermost (channels_last features). 16-bit logits are summed in float32.
    """
    batch, levels, colours, height, width = logits.shape
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    targets = images.long()
    if logits.stride(1) == 1:
        flat = logits.permute(0, 3, 4, 2, 1).reshape(-1, levels)
        nats = F.cross_entropy(flat, targets.permute(0, 2, 3, 1).reshape(-1), reduction="none")
    else:
        flat = logits.transpose(1, 2).reshape(batch * colours, levels, height * width)
        nats = F.cross_entropy(flat, targets.reshape(batch * colours, height * width), reduction="none")
    return -nats.view(batch, colours * height * width).sum(1)


def draw(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
    """Levels drawn by inverse CDF: logits [N, levels], uniforms [N] in [0, 1) -> int64 [N].

    The level is the number of entries of ``cumsum(softmax(logits / temperature))``, all in float64, that are
    at most u times the last of them.
    """
    shifted = logits.double()
    # At most 0 before the division, so that a tiny temperature cannot overflow.
    shifted = (shifted - shifted.amax(1, keepdim=True)) / temperature
    cdf = shifted.exp().cumsum(1)
    return (cdf <= uniforms.double()[:, None] * cdf[:, -1:]).sum(1).clamp_max(logits.shape[1] - 1)


class AutoregressiveModel(nn.Module):
    """Base class: a subclass defines :meth:`predict` and sets ``self.config``, its own constructor's
    arguments.

    Images are ``[N, in_channels, H, W]`` of whole levels 0 .. levels - 1, in uint8, an integer or a
    floating-point dtype; they are scaled to [0, 1] inside. Any H x W is accepted; ``image_size`` is what
    :meth:`sample` draws.

    Args:
        in_channels: sub-pixels per pixel, in the order in which they are predicted (R, G, B).
        levels: values that a sub-pixel takes, 2 to 256.
        image_size: height and width of sampled images, one number for squares.
        num_classes: where given, ``condition`` is the class of each image, int64 labels [N].
    """

    config: dict[str, Any]

    def __init__(
        self, in_channels: int, levels: int, image_size: int | Sequence[int], num_classes: int | None = None
    ) -> None:
        super().__init__()
        check_whole("in_channels", in_channels, 1)
        check_whole("levels", levels, 2, 256)
        if num_classes is not None:
            check_whole("num_classes", num_classes, 1)
        self.in_channels = in_channels
        self.levels = levels
        self.num_classes = num_classes
        self.image_size = as_size("image_size", image_size)

    def predict(self, scaled: Tensor, condition: Tensor | None) -> Tensor:
        """Logits [N, levels, C, H, W] from images [N, C, H, W] scaled to [0, 1]. For subclasses."""
        raise NotImplementedError

    def check_condition(self, condition: Tensor | None, batch: int) -> None:
        """Raise where the model cannot take the condition; one that takes other than labels overrides this."""
        if self.num_classes is not None:
            check_labels("condition", condition, batch, self.num_classes)
        elif condition is not None:
            raise ValueError(f"condition: {type(self).__name__} takes none; got {type(condition).__name__}")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits of every sub-pixel given those before it.

        Args:
            x: [N, C, H, W], levels 0 .. levels - 1 in any real dtype. Neither rounded nor checked for range,
                and differentiable when it is floating-point.
            condition: int64 labels [N] where the model has classes, else None.

        Returns:
            [N, levels, C, H, W] in the dtype of the parameters (or of autocast).

        Raises:
            ValueError: the shape or the condition does not fit.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected [N, {self.in_channels}, H, W]; got shape {list(x.shape)}")
        self.check_condition(condition, x.shape[0])
        dtype = next(self.parameters()).dtype
        return self.predict(x.to(dtype) / (self.levels - 1), condition)

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log-probability of each image, in nats: [N, C, H, W] -> [N], float32 or wider.

        Raises:
            ValueError: the shape does not fit, or a value is not a whole number in 0 .. levels - 1 (not
                looked for inside ``torch.compile``).
        """
        if not torch.compiler.is_compiling():
            check_levels("x", x, self.levels)
        return log_likelihood(self(x, condition), x)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        uniforms: Tensor | None = None,
        given: Tensor | None = None,
        known: Tensor | None = None,
        temperature: float = 1.0,
        condition: Tensor | None = None,
        size: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw n images, sub-pixel by sub-pixel, with one full forward pass for each.

        Args:
            n: number of images.
            uniforms: [n, C, H, W] in [0, 1), the only source of randomness (see :func:`draw`): equal uniforms
                give equal images. None draws them on the CPU, from ``generator`` or torch's own.
            given: [n or 1, C, H, W] levels of the pixels that ``known`` marks; the others are ignored.
            known: bool, [n or 1, C or 1, H, W]. Known sub-pixels are kept exactly, and where the whole batch
                is known no forward pass is made.
            temperature: positive; the logits are divided by it. Below 1 sharpens; towards 0 takes the most
                likely.
            condition: int64 labels [n] where the model has classes, else None.
            size: height and width, instead of the model's ``image_size``.
            generator: for the uniforms, when they are not given.
            progress: called as ``progress(done, total)`` after each sub-pixel that was drawn.

        Returns:
            uint8 [n, C, H, W] on the device of the parameters.

        Raises:
            ValueError: an argument does not fit; the message names it.
        """
        check_whole("n", n, 1)
        height, width = self.image_size if size is None else as_size("size", size)
        shape = (n, self.in_channels, height, width)
        device = next(self.parameters()).device
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number above 0; got {temperature!r}")
        self.check_condition(condition, n)
        images, free = self._start(shape, given, known, device)
        uniforms = _uniforms(shape, uniforms, generator).to(device)

        # In drawing order: [row, column, colour].
        open_positions = free.any(0).permute(1, 2, 0).nonzero().tolist()
        was_training = self.training
        self.eval()
        try:
            for done, (row, column, colour) in enumerate(open_positions, 1):
                logits = self(images, condition)[:, :, colour, row, column]
                here = images[:, colour, row, column]
                drawn = draw(logits, uniforms[:, colour, row, column], temperature).to(images.dtype)
                here.copy_(torch.where(free[:, colour, row, column], drawn, here))
                if progress is not None:
                    progress(done, len(open_positions))
        finally:
            self.train(was_training)
        return images

    def _start(
        self,
        shape: tuple[int, int, int, int],
        given: Tensor | None,
        known: Tensor | None,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """The images before anything is drawn (uint8, 0 where unknown), and what is to be drawn."""
        images = torch.zeros(shape, dtype=torch.uint8, device=device)
        if given is None and known is None:
            return images, torch.ones(shape, dtype=torch.bool, device=device)
        if given is None or known is None:
            raise ValueError("given, known: expected both or neither; got " + ("known" if given is None else "given"))
        n, colours, height, width = shape
        if known.dtype != torch.bool:
            raise ValueError(f"known: expected dtype bool; got {known.dtype}")
        if known.dim() != 4 or not _fits(known.shape, shape):
            raise ValueError(f"known: expected [{n} or 1, {colours} or 1, {height}, {width}]; got {list(known.shape)}")
        if given.dim() != 4 or given.shape[0] not in (1, n) or given.shape[1:] != shape[1:]:
            raise ValueError(f"given: expected [{n} or 1, {colours}, {height}, {width}]; got {list(given.shape)}")
        known, given = known.to(device).expand(shape), given.to(device).expand(shape)
        check_levels("given", given[known], self.levels)
        images[known] = given[known].to(images.dtype)
        return images, ~known


def _fits(part: Sequence[int], shape: tuple[int, int, int, int]) -> bool:
    return part[0] in (1, shape[0]) and part[1] in (1, shape[1]) and tuple(part[2:]) == shape[2:]


def _uniforms(shape: tuple[int, ...], uniforms: Tensor | None, generator: torch.Generator | None) -> Tensor:
    if uniforms is None:
        return torch.rand(shape, generator=generator)  # on the CPU: a seed means the same on every device
    if tuple(uniforms.shape) != shape or not uniforms.dtype.is_floating_point:
        raise ValueError(
            f"uniforms: expected floating-point {list(shape)}; got {uniforms.dtype} {list(uniforms.shape)}"
        )
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError(
            f"uniforms: expected numbers in [0, 1); got {uniforms.min().item():g} .. {uniforms.max().item():g}"
        )
    return uniforms


def check_levels(name: str, x: Tensor, levels: int) -> None:
    """Raise a ValueError unless x holds whole numbers in 0 .. levels - 1."""
    if x.numel() == 0 or (x.dtype == torch.uint8 and levels == 256):
        return
    low, high = (value.item() for value in torch.aminmax(x))
    if not (low >= 0 and high <= levels - 1):  # a NaN fails this too
        raise ValueError(f"{name}: expected levels 0 .. {levels - 1}; got {low:g} .. {high:g}")
    if x.dtype.is_floating_point and not torch.equal(x, x.round()):
        raise ValueError(f"{name}: expected whole levels 0 .. {levels - 1}; got fractions between them")


def check_labels(name: str, labels: Tensor | None, batch: int, classes: int) -> None:
    """Raise a ValueError unless labels are int64 [batch] in 0 .. classes - 1 (the range is not looked at inside
    ``torch.compile``)."""
    wanted = f"int64 labels [{batch}] in 0 .. {classes - 1}"
    if not isinstance(labels, Tensor):
        raise ValueError(f"{name}: expected {wanted}; got {labels!r}")
    if labels.dtype != torch.int64 or labels.shape != (batch,):
        raise ValueError(f"{name}: expected {wanted}; got {labels.dtype} {list(labels.shape)}")
    if labels.numel() and not torch.compiler.is_compiling():
        low, high = (value.item() for value in torch.aminmax(labels))
        if low < 0 or high >= classes:
            raise ValueError(f"{name}: expected {wanted}; got {low} .. {high}")


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise a ValueError unless value is an int in low .. high."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        wanted = f"of at least {low}" if high is None else f"in {low} .. {high}"
        raise ValueError(f"{name}: expected a whole number {wanted}; got {value!r}")


def as_size(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number or a pair."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise ValueError(f"{name}: expected one number or (height, width); got {size!r}")
    for value in pair:
        check_whole(name, value, 1)
    return pair[0], pair[1]
