"""CausalAudioNet: PixelCNN along time, with dilated convolutions; and the µ-law that makes levels of a waveform."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import MaskedConv2d
from ..nn.gated_masked_conv import GATE_POWER
from ..nn.init import init_live_taps
from ..ops.masked_conv.reference import gate
from .autoregressive import AutoregressiveModel, channels_last, check_whole


def mu_law_encode(waveform: Tensor, levels: int = 256) -> Tensor:
    """Amplitudes in [-1, 1] to levels 0 .. levels - 1, fine where the sound is soft: any shape -> uint8, same shape.

    ``round((f + 1) / 2 * mu)`` of ``f = sign(x) ln(1 + mu |x|) / ln(1 + mu)`` with ``mu = levels - 1``; what lies
    outside [-1, 1] is clipped.

    Raises:
        TypeError: the waveform is not floating-point.
        ValueError: ``levels`` is not 2 to 256.

    Source: ITU-T G.711; van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", section 2.2.
    """
    check_whole("levels", levels, 2, 256)
    if not waveform.dtype.is_floating_point:
        raise TypeError(f"waveform: expected a floating-point dtype; got {waveform.dtype}")
    mu = levels - 1
    x = waveform.clamp(-1, 1)
    squeezed = x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)
    return ((squeezed + 1) * (mu / 2) + 0.5).floor().to(torch.uint8)


def mu_law_decode(encoded: Tensor, levels: int = 256) -> Tensor:
    """The inverse of :func:`mu_law_encode` up to rounding: levels of any real dtype -> float32 in [-1, 1]."""
    check_whole("levels", levels, 2, 256)
    mu = levels - 1
    y = encoded.float() * (2 / mu) - 1
    return y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu


def pointwise(in_channels: int, out_channels: int, activation: str | None = None) -> MaskedConv2d:
    """A 1x1 convolution: of mask type B without colours it is a plain one, on the kernels of this library."""
    return MaskedConv2d(in_channels, out_channels, 1, mask_type="B", activation=activation)


class AudioBlock(nn.Module):
    """Gated dilated convolution: (tanh * sigmoid of kernel_size taps), 1x1 to h, plus the input; 1x1 to the skips.

    [N, h, 1, T] -> [N, h, 1, T] (the input itself in the last block, which has no such 1x1), [N, skip_channels, 1, T].

    Source: van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", sections 2.3 to 2.5, figure 4.
    """

    def __init__(
        self, hidden_channels: int, skip_channels: int, kernel_size: int, dilation: int,
        condition_channels: int | None, last: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.reach = (kernel_size - 1) * dilation  # samples from the first tap to the last, which is the own sample
        # No tap is masked: the padding on the left alone makes it causal.
        self.conv = nn.Conv2d(hidden_channels, 2 * hidden_channels, (1, kernel_size), dilation=(1, dilation))
        self.condition = None
        if condition_channels is not None:
            self.condition = nn.Linear(condition_channels, 2 * hidden_channels, bias=False)
        self.skip = pointwise(hidden_channels, skip_channels)
        self.residual = None if last else pointwise(hidden_channels, hidden_channels)

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        features = self.conv(F.pad(x, (self.reach, 0)))  # [N, 2h, 1, T]
        if self.condition is not None:
            features = features + self.condition(condition)[:, :, None, None]
        gated = gate(features)
        return x if self.residual is None else x + self.residual(gated), self.skip(gated)


class CausalAudioNet(AutoregressiveModel):
    """Autoregressive model of sound: dilated causal convolutions, gated, with residuals and skips to the output.

    A waveform is an image of one row: the likelihood, sampling and completion are those of every autoregressive
    model. Waveforms [N, T] hold levels 0 .. levels - 1 (:func:`mu_law_encode` makes them); ``forward`` and
    ``log_prob`` take the image [N, 1, 1, T] as well.

    The first convolution sees the ``kernel_size`` samples before its own and not its own; block l of ``num_layers``
    sees its own and ``kernel_size - 1`` before it, ``2 ** (l % dilation_cycle)`` apart. The sum of all skips goes
    through ReLU, 1x1, ReLU and 1x1 to the logits. A sample sees ``receptive_field`` samples before it, all of them.

    Args:
        levels: values that a sample takes, 2 to 256.
        hidden_channels: features, h.
        num_layers: blocks, at least 1.
        dilation_cycle: blocks after which the dilation starts again at 1.
        kernel_size: taps of each convolution, at least 2.
        skip_channels: features in the sum of the skips.
        num_classes: classes of sounds, such as speakers, that the model is conditioned on; None for none. With
            classes, ``condition`` is the int64 label [N] of each waveform: its embedding biases both halves of every
            gate.
        length: samples of a sampled waveform.

    Shape: [N, T] levels, any real dtype -> logits [N, levels, T]; or [N, 1, 1, T] -> [N, levels, 1, 1, T].

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", section 2.
    """

    def __init__(
        self,
        levels: int = 256,
        hidden_channels: int = 64,
        num_layers: int = 20,
        dilation_cycle: int = 10,
        kernel_size: int = 2,
        *,
        skip_channels: int = 128,
        num_classes: int | None = None,
        length: int = 16000,
    ) -> None:
        check_whole("length", length, 1)
        super().__init__(1, levels, (1, length), num_classes)
        check_whole("hidden_channels", hidden_channels, 1)
        check_whole("num_layers", num_layers, 1)
        check_whole("dilation_cycle", dilation_cycle, 1)
        check_whole("kernel_size", kernel_size, 2)
        check_whole("skip_channels", skip_channels, 1)
        self.config = {
            "levels": levels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "dilation_cycle": dilation_cycle,
            "kernel_size": kernel_size,
            "skip_channels": skip_channels,
            "num_classes": num_classes,
            "length": length,
        }
        self.classes = None if num_classes is None else nn.Embedding(num_classes, hidden_channels)
        self.kernel_size = kernel_size
        self.first = nn.Conv2d(1, hidden_channels, (1, kernel_size))
        blocks = [
            AudioBlock(
                hidden_channels, skip_channels, kernel_size, 2 ** (layer % dilation_cycle),
                None if num_classes is None else hidden_channels, last=layer == num_layers - 1,
            )
            for layer in range(num_layers)
        ]  # fmt: skip
        head = pointwise(skip_channels, skip_channels, "relu"), pointwise(skip_channels, levels)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(nn.ReLU(), *head)
        # How many samples before it a sample depends on.
        self.receptive_field = kernel_size + sum(block.reach for block in blocks)
        # Features are kept channels_last, as in PixelCNN.
        self.first.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._initialise()

    def _initialise(self) -> None:
        num_layers = self.config["num_layers"]
        blocks, head = cast(Any, self.blocks), cast(Any, self.head)
        init_live_taps(self.first, 1.0)
        for block in blocks:
            init_live_taps(block.conv, 1.0)
            init_live_taps(block.skip, 1 / (GATE_POWER * num_layers))  # the sums over all blocks keep their size
            if block.residual is not None:
                init_live_taps(block.residual, 1 / (GATE_POWER * num_layers))
        init_live_taps(head[1], 2.0)
        init_live_taps(head[2], 1.0)

    def predict(self, scaled: Tensor, condition: Tensor | None) -> Tensor:
        scaled = channels_last(scaled)
        embedded = None if self.classes is None else self.classes(condition)  # [N, h]
        x = self.first(F.pad(scaled, (self.kernel_size, -1)))  # [N, h, 1, T], without the own sample
        total = None
        for block in self.blocks:
            x, skip = block(x, embedded)
            total = skip if total is None else total + skip
        return self.head(total).unsqueeze(2)  # [N, levels, 1, 1, T]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits of every sample given those before it: [N, T] -> [N, levels, T]; see the class for more.

        Raises:
            ValueError: the shape or the condition does not fit.
        """
        if x.dim() == 2:
            return super().forward(x[:, None, None], condition)[:, :, 0, 0]
        if x.dim() != 4 or tuple(x.shape[1:3]) != (1, 1):
            raise ValueError(f"x: expected [N, T] or [N, 1, 1, T]; got shape {list(x.shape)}")
        return super().forward(x, condition)

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Log-probability of each waveform, in nats: [N, T] -> [N], float32 or wider.

        :func:`genkernels.models.bits_per_dim` of minus that and T is the bits per sample.

        Raises:
            ValueError: the shape does not fit, or a value is not a whole number in 0 .. levels - 1 (not
                looked for inside ``torch.compile``).
        """
        return super().log_prob(x[:, None, None] if x.dim() == 2 else x, condition)

    def sample(  # type: ignore[override]  # waveforms, not images: [n, T], and a length for a size
        self,
        n: int,
        *,
        length: int | None = None,
        uniforms: Tensor | None = None,
        given: Tensor | None = None,
        known: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Draw n waveforms, sample by sample: uint8 [n, T]; :func:`mu_law_decode` makes amplitudes of them.

        Args:
            n: number of waveforms.
            length: T, instead of the model's ``length``.
            uniforms: [n, T]; see :meth:`AutoregressiveModel.sample`, as for all that follows.
            given: [n or 1, T] levels of the samples that ``known`` marks.
            known: bool, [n or 1, T].
            temperature, top_k, condition, generator, progress, backend: as there.

        Raises:
            ValueError: an argument does not fit; the message names it.
        """
        if length is not None:
            check_whole("length", length, 1)
        rows = {}
        for name, tensor in (("uniforms", uniforms), ("given", given), ("known", known)):
            if tensor is not None and tensor.dim() != 2:
                raise ValueError(f"{name}: expected two dimensions, [{n}, T]; got shape {list(tensor.shape)}")
            rows[name] = None if tensor is None else tensor[:, None, None]
        drawn = super().sample(
            n,
            **rows,
            temperature=temperature,
            top_k=top_k,
            condition=condition,
            size=None if length is None else (1, length),
            generator=generator,
            progress=progress,
            backend=backend,
        )
        return drawn[:, 0, 0]
