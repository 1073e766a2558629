"""Mixture of discretized logistics over the colours of a pixel, as PixelCNN++ has it.

Levels 0 .. L - 1 stand at x = 2 level / (L - 1) - 1, each with h = 1 / (L - 1) on both sides. Component k of K has for
colour c a mean m, a log-scale s (taken as -7 where it is below) and, for every colour before c, a coefficient r::

    mean = m + sum over earlier colours e of tanh(r_e) x_e
    P_k(x) = sigmoid((x - mean + h) / e^s) - sigmoid((x - mean - h) / e^s)

where the lowest level has everything below it too and the highest everything above. The colours of a pixel are
independent but for the means, given the component, whose probabilities pi are the softmax of K logits::

    P(x_1, .., x_C) = sum over k of pi_k product over c of P_k(x_c given those before it)

so that a colour alone has a mixture of logistics too, with the weights ``pi_k product over earlier c of P_k(x_c)``.

The difference is never formed. With a < b for the arguments of the sigmoids, ``sigmoid(b) - sigmoid(a) =
sigmoid(b) sigmoid(-a) (1 - e^(a - b))``, whose logarithm is a sum of three terms without cancellation; the lowest level
has the first alone and the highest the second. It needs no other form for small probabilities.

Source: Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
Likelihood and Other Modifications", sections 2.1 and 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import check_whole
from .base import Distribution

LEAST_LOG_SCALE = -7.0
MOST_MIXTURES = 128  # that a warp draws from
_MOST_SHARPNESS = 1e200  # 1 / scale in a draw: the temperature may be tiny, and differences times it stay finite
_NARROW = 1e-7  # widths of a level below which 1 - exp(-width) is width (1 - width / 2) in float64


@dataclass(frozen=True)
class DiscretizedLogisticMixture(Distribution):
    """Mixture of discretized logistics over the colours of a pixel; the formulae are in the module's text.

    A prediction has K logits; then for every colour its K means, its K log-scales and K for each of its share of the
    C (C - 1) / 2 coefficients: coefficient i, counted (1, 0), (2, 0), (2, 1), (3, 0), ... for (colour, earlier colour),
    stands with colour i mod C. With three colours that is the layout of PixelCNN++, 10 K channels; with one 3 K.

    Draws: the component is summed over, so that one number from [0, 1) makes a level. ``temperature`` divides the
    logits of the mixture and multiplies the scales; towards 0 the mean of the most likely component is drawn.
    There is no ``top_k``.

    Attributes:
        levels: 2 to 256.
        colours: C.
        mixtures: K, 1 to 128.
    """

    levels: int
    colours: int
    mixtures: int = 10

    name = "logistic_mixture"
    kind = "draw_logistic_mixture"

    def __post_init__(self) -> None:
        check_whole("mixtures", self.mixtures, 1, MOST_MIXTURES)

    @property
    def channels(self) -> int:
        return self.mixtures * (1 + 2 * self.colours + self.colours * (self.colours - 1) // 2)

    @property
    def predictions(self) -> int:
        return 1

    @property
    def components(self) -> int:  # type: ignore[override]
        return self.mixtures

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Log-probability of each image, in nats: [N, channels, H, W], levels [N, C, H, W] -> [N].

        Finite, and with finite gradients, for all parameters of usual size; 16-bit ones are taken as float32.
        """
        if parameters.dtype in (torch.bfloat16, torch.float16):
            parameters = parameters.float()
        blocks = self._blocks(parameters)
        levels = images.to(parameters.dtype).unsqueeze(2).unbind(1)  # of each colour, [N, 1, H, W]
        total = blocks[0].log_softmax(1)
        for colour in range(self.colours):
            mean, log_scale = self._logistic(blocks, colour, levels)
            total = total + self._log_mass(levels[colour], mean, log_scale, (-log_scale).exp())
        return total.logsumexp(1).flatten(1).sum(1)

    def is_sound(self, parameters: Tensor) -> Tensor:
        return parameters.isfinite().all(1)

    def unsound(self, image: int, channel: int, row: int, column: int) -> ValueError:
        return ValueError(
            "parameters: expected finite numbers; got NaN or infinity at "
            f"image {image}, channel {channel}, row {row}, column {column}"
        )

    def draw(
        self, parameters: Tensor, earlier: Tensor, uniforms: Tensor, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """Levels of one colour: [N, channels], levels of the colours before it [N, k], [N] in [0, 1) -> int64 [N].

        The level is the number of levels but the highest whose ``sum_k w_k CDF_k`` is at most u times the sum of the
        weights, all in float64.
        """
        cdf, total = self._cumulated(parameters, earlier, temperature)
        return (cdf <= (uniforms.double() * total)[:, None]).sum(1)

    def probabilities(self, parameters: Tensor, earlier: Tensor) -> Tensor:
        cdf, total = self._cumulated(parameters, earlier, 1.0)
        return (
            torch.cat([cdf, total[:, None]], 1).diff(dim=1, prepend=torch.zeros_like(total)[:, None]) / total[:, None]
        )

    def _cumulated(self, parameters: Tensor, earlier: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """``sum_k w_k CDF_k`` at the upper edges of levels but the highest, [N, levels - 1], and the sum of weights."""
        blocks = self._blocks(parameters.double())
        levels = earlier.double().unsqueeze(2).unbind(1)
        # At most 0 before the division, so that a tiny temperature cannot overflow.
        weights = (blocks[0] - blocks[0].amax(1, keepdim=True)) / temperature
        for colour, level in enumerate(levels):
            mean, log_scale = self._logistic(blocks, colour, levels)
            sharpness = self._sharpness(log_scale, temperature)
            weights = weights + self._log_mass(level, mean, log_scale + math.log(temperature), sharpness)
        weights = (weights - weights.amax(1, keepdim=True)).exp()
        mean, log_scale = self._logistic(blocks, len(levels), levels)
        sharpness = self._sharpness(log_scale, temperature)
        edges = torch.arange(self.levels - 1, device=parameters.device, dtype=torch.float64) + 0.5
        below = ((self._position(edges) - mean[:, :, None]) * sharpness[:, :, None]).sigmoid()
        return (weights[:, :, None] * below).sum(1), weights.sum(1)

    def check_options(self, temperature: float, top_k: int | None) -> None:
        if top_k is not None:
            raise ValueError(f"top_k: expected None with a mixture of logistics; got {top_k!r}")

    def _first_block(self, colour: int) -> int:
        """Where a colour's blocks of K channels begin: mean, log-scale, coefficients."""
        coefficients = self.colours * (self.colours - 1) // 2
        each, left = divmod(coefficients, self.colours)
        return 1 + (2 + each) * colour + min(colour, left)

    def _blocks(self, parameters: Tensor) -> tuple[Tensor, ...]:
        return parameters.unflatten(1, (-1, self.mixtures)).unbind(1)

    def _position(self, levels: Tensor) -> Tensor:
        return levels * (2 / (self.levels - 1)) - 1

    def _logistic(self, blocks: Sequence[Tensor], colour: int, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The means and log-scales [N, K, ..] of a colour, given the levels of those before it [N, 1, ..]."""
        first = self._first_block(colour)
        mean = blocks[first]
        for earlier in range(colour):
            index = colour * (colour - 1) // 2 + earlier
            row, owner = divmod(index, self.colours)
            coefficient = blocks[self._first_block(owner) + 2 + row].tanh()
            mean = mean + coefficient * self._position(levels[earlier])
        return mean, blocks[first + 1].clamp_min(LEAST_LOG_SCALE)

    def _sharpness(self, log_scale: Tensor, temperature: float) -> Tensor:
        """1 / scale, in draws."""
        return ((-log_scale).exp() / temperature).clamp_max(_MOST_SHARPNESS)

    def _log_mass(self, levels: Tensor, mean: Tensor, log_scale: Tensor, sharpness: Tensor) -> Tensor:
        """The logarithm of the probability of levels under logistics."""
        half = 1 / (self.levels - 1)
        centred = self._position(levels) - mean
        up_to = F.logsigmoid((centred + half) * sharpness)
        from_on = F.logsigmoid((half - centred) * sharpness)
        width = 2 * half * sharpness
        narrow = math.log(2 * half) - log_scale - width / 2
        inner = torch.where(width < _NARROW, narrow, (-torch.expm1(-width.clamp_min(_NARROW))).log())
        lowest, highest = levels == 0, levels == self.levels - 1
        return torch.where(lowest, up_to, torch.where(highest, from_on, up_to + from_on + inner))
