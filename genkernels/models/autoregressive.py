"""Base class of autoregressive image models: input convention, likelihood and pixel-by-pixel sampling.

p(x) is the product over sub-pixels, row by row and R, G, B in turn inside a pixel, of p(x_i | all before it)
(van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 2). A model gives all factors of an
image in one forward pass; sampling needs them one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import sampling
from ..distributions import Categorical, make_distribution
from ..nn import MaskedConv2d
from ..ops import softmax_nll
from ..ops.core.torch_internals import unwrapped, vmap_is_active
from ..sampling.predictor import Predictor
from ..sampling.request import Request, as_size, check_levels, check_request, check_whole
from .base import GenerativeModel


def bits_per_dim(nats: float, dims: int) -> float:
    """Nats per image as bits per sub-pixel; ``dims`` is C * H * W."""
    return nats / (dims * math.log(2))


FUSED_LEVELS = 32  # from so many on the softmax is quicker without the logits in memory (bench/softmax_nll.py)


def channels_last(x: Tensor) -> Tensor:
    """x in channels_last; as it is under ``torch.func.vmap``, which has no such layout."""
    if not torch.compiler.is_compiling() and vmap_is_active():
        return x
    return x.contiguous(memory_format=torch.channels_last)


class AutoregressiveModel(GenerativeModel, Predictor):
    """Base class: a subclass sets ``self.config``, its own constructor's arguments, and defines :meth:`predict`; or,
    where a 1x1 convolution to the logits comes last, :meth:`features` and :meth:`last_layer`.

    Images are ``[N, in_channels, H, W]`` of whole levels 0 .. levels - 1, in uint8, an integer or a
    floating-point dtype; they are scaled to [0, 1] inside. Any H x W is accepted; ``image_size`` is what
    :meth:`sample` draws.

    Args:
        in_channels: sub-pixels per pixel, in the order in which they are predicted (R, G, B).
        levels: values that a sub-pixel takes, 2 to 256.
        image_size: height and width of sampled images, one number for squares.
        num_classes: where given, ``condition`` is the class of each image, int64 labels [N].
        distribution, mixtures: what is predicted of a pixel; see :func:`genkernels.distributions.make_distribution`.
            "categorical": logits of every sub-pixel given those before it, the colours being the channel groups of all
            layers. "logistic_mixture": the parameters of a
            :class:`~genkernels.distributions.DiscretizedLogisticMixture` of that many components over all colours of a
            pixel, given the pixels before it; the layers have one channel group.
    """

    def __init__(
        self,
        in_channels: int,
        levels: int,
        image_size: int | Sequence[int],
        num_classes: int | None = None,
        distribution: str = Categorical.name,
        mixtures: int = 10,
    ) -> None:
        super().__init__()
        check_whole("in_channels", in_channels, 1)
        check_whole("levels", levels, 2, 256)
        if num_classes is not None:
            check_whole("num_classes", num_classes, 1)
        self.in_channels = in_channels
        self.levels = levels
        self.num_classes = num_classes
        self.distribution = make_distribution(distribution, levels, in_channels, mixtures)
        self.image_size = as_size("image_size", image_size)

    def check_condition(self, condition: Tensor | None, batch: int) -> None:
        """Raise where the model cannot take the condition; one that takes other than labels overrides this."""
        if self.num_classes is not None:
            check_labels("condition", condition, batch, self.num_classes)
        elif condition is not None:
            raise ValueError(f"condition: {type(self).__name__} takes none; got {type(condition).__name__}")

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits of every sub-pixel given those before it; or the parameters of every pixel given those before it.

        Args:
            x: [N, C, H, W], levels 0 .. levels - 1 in any real dtype. Neither rounded nor checked for range,
                and differentiable when it is floating-point.
            condition: int64 labels [N] where the model has classes, else None.

        Returns:
            [N, levels, C, H, W] in the dtype of the parameters (or of autocast); of a mixture
            [N, ``self.distribution.channels``, H, W].

        Raises:
            ValueError: the shape or the condition does not fit.
        """
        self._check_input(x, condition)
        return self.predict(self._scaled(x), condition)

    def _check_input(self, x: Tensor, condition: Tensor | None) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected [N, {self.in_channels}, H, W]; got shape {list(x.shape)}")
        self.check_condition(condition, x.shape[0])

    def features(self, scaled: Tensor, condition: Tensor | None) -> Tensor:
        """What the last layer sees, [N, K, H, W], from images scaled to [0, 1]. For subclasses."""
        raise NotImplementedError

    def last_layer(self) -> MaskedConv2d | None:
        """The 1x1 convolution of mask type B, its groups the distribution's predictions, that makes them of the
        features: [N, predictions * channels, H, W]; None for a model without one. For subclasses."""
        return None

    def predict(self, scaled: Tensor, condition: Tensor | None) -> Tensor:
        layer = self.last_layer()
        assert layer is not None
        predicted = layer(self.features(scaled, condition))
        if not isinstance(self.distribution, Categorical):
            return predicted
        return predicted.unflatten(1, (self.in_channels, self.levels)).transpose(1, 2)

    def _scaled(self, levels: Tensor) -> Tensor:
        """Levels as the model sees them: in [0, 1], in the dtype of the parameters."""
        return levels.to(next(self.parameters()).dtype) / (self.levels - 1)

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log-probability of each image, in nats: [N, C, H, W] -> [N], float32 or wider.

        Raises:
            ValueError: the shape does not fit, or a value is not a whole number in 0 .. levels - 1 (not
                looked for inside ``torch.compile``).
        """
        check_levels("x", x, self.levels)
        nats = self._fused_nats(x, condition, "none")
        return self.distribution.log_prob(self(x, condition), x) if nats is None else -nats.flatten(1).sum(1)

    def nats(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Mean negative log-likelihood of the images, in nats per image, a scalar: what training minimises.

        As ``-log_prob(x).mean()``, and with many levels quicker, since each image is known to count the same.
        """
        check_levels("x", x, self.levels)
        total = self._fused_nats(x, condition, "sum")
        if total is None:
            return -self.distribution.log_prob(self(x, condition), x).mean()
        return total / len(x)

    def _fused_nats(self, x: Tensor, condition: Tensor | None, reduction: str) -> Tensor | None:
        """The nats of each sub-pixel, or their sum, without logits in memory; None where that is not to be."""
        layer = self.last_layer()
        if self.levels < FUSED_LEVELS or layer is None or not self._is_fusible(layer):
            return None
        self._check_input(x, condition)
        return softmax_nll(
            self.features(self._scaled(x), condition), layer.weight, layer.bias, x.long(),
            channel_groups=self.in_channels, reduction=reduction,
        )  # fmt: skip

    def _is_fusible(self, layer: nn.Module) -> bool:
        """Whether the last layer and the softmax may be one operation: it is as this package makes it, on the CPU."""
        return (
            isinstance(self.distribution, Categorical)
            and type(self).predict is AutoregressiveModel.predict
            and isinstance(layer, MaskedConv2d)
            and (layer.kernel_size, layer.activation) == ((1, 1), None)
            and layer.weight.is_cpu
            and layer.weight.dtype != torch.float64
        )

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        uniforms: Tensor | None = None,
        given: Tensor | None = None,
        known: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        condition: Tensor | None = None,
        size: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Draw n images, sub-pixel by sub-pixel, in about the time of one forward pass.

        The model is turned into a sampling program (:mod:`genkernels.sampling`), which keeps what earlier pixels
        have brought about. A subclass with a :meth:`predict` that cannot be traced is sampled with one full forward
        pass for each sub-pixel instead, and a warning names the reason.

        Args:
            n: number of images.
            uniforms: [n, C, H, W] in [0, 1), the only source of randomness (see :mod:`genkernels.distributions`):
                equal uniforms give equal images. None draws them on the CPU, from ``generator`` or torch's own.
            given: [n or 1, C, H, W] levels of the pixels that ``known`` marks; the others are ignored.
            known: bool, [n or 1, C or 1, H, W]. Known sub-pixels are kept exactly; nothing is computed behind the
                last one that is not.
            temperature: positive; the logits are divided by it, and the scales of a mixture multiplied. Below 1
                sharpens; towards 0 takes the most likely.
            top_k: draw among the k most likely levels alone (and those that equal the k-th); None for all. Not
                for a mixture.
            condition: int64 labels [n] where the model has classes, else None.
            size: height and width, instead of the model's ``image_size``.
            generator: for the uniforms, when they are not given.
            progress: called as ``progress(done, total)``, in sub-pixels, after each row at least; where one CUDA launch
                draws everything, as soon as it is under way.
            backend: "torch" or, where it runs, "cpu" or "cuda"; "full_forward" for one forward pass a sub-pixel;
                None for the quickest.

        Returns:
            uint8 [n, C, H, W] on the device of the parameters.

        Raises:
            ValueError: an argument does not fit, or the backend cannot run the model; the message names it.
        """
        check_whole("n", n, 1)
        height, width = self.image_size if size is None else as_size("size", size)
        shape = (n, self.in_channels, height, width)
        device = next(self.parameters()).device
        self.check_condition(condition, n)
        request = check_request(
            shape, self.levels, device,
            uniforms=uniforms, given=given, known=known, temperature=temperature, top_k=top_k, generator=generator,
        )  # fmt: skip
        return self._draw(request, condition, progress, backend)

    @torch.no_grad()
    def steps(
        self,
        n: int,
        *,
        given: Tensor | None = None,
        known: Tensor | None = None,
        condition: Tensor | None = None,
        size: int | Sequence[int] | None = None,
        backend: str | None = None,
    ) -> sampling.Steps:
        """Goes through n images and asks for the levels, place by place: see :class:`genkernels.sampling.Steps`.

        Args:
            n, given, known, condition, size: as in :meth:`sample`; what is known in all images is passed by.
            backend: "cpu" or "torch"; None for the quicker one that can run the program.

        Raises:
            ValueError: an argument does not fit, or the model cannot be traced; the message says what.
        """
        self.check_condition(condition, n)
        return sampling.sampler_of(self).steps(
            n, self.image_size if size is None else size, given=given, known=known, condition=condition, backend=backend
        )

    def _draw(
        self,
        request: Request,
        condition: Tensor | None,
        progress: Callable[[int, int], None] | None,
        backend: str | None,
    ) -> Tensor:
        """Draws what is open in ``request.images``, in place, and returns them."""
        table = self._scaled(torch.arange(self.levels, device=request.images.device))
        return sampling.sample(
            self, self.predict, table, request,
            distribution=self.distribution, condition=condition, progress=progress, backend=backend,
        )  # fmt: skip


def run_with_classes(
    layers: Iterable[nn.Module], x: Tensor, classes: nn.Embedding | None, condition: Tensor | None
) -> Tensor:
    """The layers' result; the embedding of each image's class, where there are any, is added to the first one's."""
    for index, layer in enumerate(layers):
        x = layer(x)
        if index == 0 and classes is not None:
            x = x + classes(condition)[:, :, None, None]
    return x


def check_labels(name: str, labels: Tensor | None, batch: int, classes: int) -> None:
    """Raise a ValueError unless labels are int64 [batch] in 0 .. classes - 1 (the range is not looked at inside
    ``torch.compile``)."""
    wanted = f"int64 labels [{batch}] in 0 .. {classes - 1}"
    if not isinstance(labels, Tensor):
        raise ValueError(f"{name}: expected {wanted}; got {labels!r}")
    if labels.dtype != torch.int64 or labels.shape != (batch,):
        raise ValueError(f"{name}: expected {wanted}; got {labels.dtype} {list(labels.shape)}")
    if labels.numel() and not torch.compiler.is_compiling():
        low, high = (value.item() for value in torch.aminmax(unwrapped(labels)))
        if low < 0 or high >= classes:
            raise ValueError(f"{name}: expected {wanted}; got {low} .. {high}")


def one_hot_labels(condition: Tensor | None, num_classes: int | None, like: Tensor) -> Tensor | None:
    """[N, num_classes] in the dtype of ``like``, which has N entries; None for a model without classes.

    Raises:
        ValueError: the condition does not fit; the message names it.
    """
    if num_classes is None:
        if condition is not None:
            raise ValueError(f"condition: this model has no classes; got {type(condition).__name__}")
        return None
    check_labels("condition", condition, len(like), num_classes)
    assert condition is not None
    return F.one_hot(condition, num_classes).to(like.dtype)
