"""Autoregressive models in the styles of published PyTorch ones, written from scratch and small.

Each is an entry of ``STYLES``: the module, how a sampler is told about it, a size, and a condition where it takes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


# --- two gated stacks over codes, conditioned on a class (priors of VQ-VAEs) -----------------------------------------


class GatedLayer(nn.Module):
    """A vertical and a horizontal stack whose masks are zeros written into the weights at every forward pass."""

    def __init__(self, mask_type: str, channels: int, kernel: int, residual: bool, classes: int) -> None:
        super().__init__()
        self.mask_type, self.residual = mask_type, residual
        self.classes = nn.Embedding(classes, 2 * channels)
        half = kernel // 2
        self.vertical = nn.Conv2d(channels, 2 * channels, (half + 1, kernel), 1, (half, half))
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, half + 1), 1, (0, half))
        self.out = nn.Conv2d(channels, channels, 1)

    @staticmethod
    def gate(x: Tensor) -> Tensor:
        content, gate = x.chunk(2, dim=1)
        return torch.tanh(content) * torch.sigmoid(gate)

    def forward(self, v: Tensor, h: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        if self.mask_type == "A":
            self.vertical.weight.data[:, :, -1].zero_()
            self.horizontal.weight.data[:, :, :, -1].zero_()
        classes = self.classes(label)[:, :, None, None]
        of_rows = self.vertical(v)[:, :, : v.size(-2)]
        of_columns = self.horizontal(h)[:, :, :, : h.size(-1)]
        out_v = self.gate(of_rows + classes)
        out_h = self.out(self.gate(self.across(of_rows) + of_columns + classes))
        return out_v, out_h + h if self.residual else out_h


class GatedPrior(nn.Module):
    def __init__(self, codes: int = 512, channels: int = 8, layers: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)
        self.layers = nn.ModuleList(
            GatedLayer("A" if k == 0 else "B", channels, 7 if k == 0 else 3, k > 0, classes) for k in range(layers)
        )
        self.head = nn.Sequential(nn.Conv2d(channels, 16, 1), nn.ReLU(True), nn.Conv2d(16, codes, 1))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        y = self.embedding(x.view(-1)).view((*x[:, 0].shape, -1)).permute(0, 3, 1, 2)
        v, h = y, y
        for layer in self.layers:
            v, h = layer(v, h, label)
        return self.head(h)


class InPlaceStacks(nn.Module):
    """One buffer for both stacks: the vertical one's half of the channels is added to the other in place."""

    def __init__(self, levels: int = 4, channels: int = 6) -> None:
        super().__init__()
        self.rows, self.columns = nn.Conv2d(1, channels, (1, 3), padding=(0, 1)), nn.Conv2d(1, channels, (1, 2))
        self.mix, self.out = nn.Conv2d(2 * channels, 2 * channels, 1), nn.Conv2d(2 * channels, levels, 1)

    def forward(self, x: Tensor) -> Tensor:
        above = F.pad(self.rows(x), (0, 0, 1, 0))[:, :, :-1]
        left = self.columns(F.pad(x, (2, 0)))[..., :-1]
        both = torch.cat([above, left], 1)
        first, second = both.chunk(2, 1)
        second += first
        first.mul_(0.5).tanh_()
        return self.out(F.relu_(self.mix(both)))


# --- shifted convolutions, gated resnets, attention (PixelSNAIL, PixelCNN++ at one resolution) -----------------------


class Shifted(nn.Module):
    """A weight-normed convolution that sees the rows above, and on its own row what is left of it."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], left: bool) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(inputs, outputs, kernel))
        rows, columns = kernel
        self.pad = (columns - 1, 0, rows - 1, 0) if left else (columns // 2, columns // 2, rows - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pad))


def shift_down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x: Tensor) -> Tensor:
    return F.pad(x, (1, 0))[:, :, :, :-1]


class GatedResnet(nn.Module):
    def __init__(self, channels: int, kernel: tuple[int, int], left: bool, aside: int = 0, condition: int = 0) -> None:
        super().__init__()
        self.first = Shifted(2 * channels, channels, kernel, left)
        self.aside = weight_norm(nn.Conv2d(2 * aside, channels, 1)) if aside else None
        self.dropout = nn.Dropout2d(0.5)
        self.second = Shifted(2 * channels, 2 * channels, kernel, left)
        self.condition = nn.Conv2d(condition, 2 * channels, 1, bias=False) if condition else None

    def forward(self, x: Tensor, aside: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        y = self.first(concat_elu(x))
        if self.aside is not None:
            y += self.aside(concat_elu(aside))
        y = self.second(self.dropout(concat_elu(y)))
        if self.condition is not None:
            y = y + self.condition(condition)
        content, gate = y.chunk(2, 1)
        return x + content * torch.sigmoid(gate)


class CausalAttention(nn.Module):
    """A strict mask before the softmax, and one behind it for the first pixel."""

    def __init__(self, query: int, key: int, channels: int, heads: int) -> None:
        super().__init__()
        self.query, self.key = weight_norm(nn.Linear(query, channels)), weight_norm(nn.Linear(key, channels))
        self.value, self.heads = weight_norm(nn.Linear(key, channels)), heads

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        batch, _, height, width = key.shape

        def heads(x: Tensor) -> Tensor:
            return x.view(batch, height * width, self.heads, -1).transpose(1, 2)

        flat_query, flat_key = query.flatten(2).transpose(1, 2), key.flatten(2).transpose(1, 2)
        q, k, v = heads(self.query(flat_query)), heads(self.key(flat_key)).transpose(2, 3), heads(self.value(flat_key))
        attention = torch.matmul(q, k) / q.shape[-1] ** 0.5
        mask = torch.tril(torch.ones(height * width, height * width), diagonal=-1).unsqueeze(0)
        start = torch.ones(height * width)
        start[0] = 0
        attention = attention.masked_fill(mask == 0, -1e4)
        attention = torch.softmax(attention, 3) * start[:, None]
        out = attention @ v
        return out.transpose(1, 2).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


class Snail(nn.Module):
    """One-hot levels, two shifted streams, and blocks of gated resnets and attention over features, image and place."""

    def __init__(self, levels: int = 6, channels: int = 8, blocks: int = 2, condition: int = 0) -> None:
        super().__init__()
        self.levels = levels
        self.down = Shifted(levels, channels, (2, 3), left=False)
        self.right = Shifted(levels, channels, (2, 1), left=True)
        self.resnets = nn.ModuleList(GatedResnet(channels, (2, 2), True, condition=condition) for _ in range(blocks))
        self.attention = nn.ModuleList(CausalAttention(channels + 2, 2 * channels + 2, 4, 2) for _ in range(blocks))
        self.out = nn.ModuleList(GatedResnet(channels, (1, 1), True, aside=4) for _ in range(blocks))
        self.see = nn.Conv2d(levels, channels, 1)
        self.head = weight_norm(nn.Conv2d(2 * channels, levels, 1))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        seen = F.one_hot(x[:, 0], self.levels).permute(0, 3, 1, 2).type_as(self.see.weight)
        batch, _, height, width = seen.shape
        y = shift_down(self.down(seen)) + shift_right(self.right(seen))
        rows = torch.linspace(-0.5, 0.5, height)[None, None, :, None].expand(batch, 1, height, width)
        columns = torch.linspace(-0.5, 0.5, width)[None, None, None].expand(batch, 1, height, width)
        place, image = torch.cat([rows, columns], 1), self.see(seen)
        for resnet, attention, out in zip(self.resnets, self.attention, self.out, strict=True):
            features = resnet(y, condition=condition)
            key = torch.cat([features, image, place], 1)
            y = out(features, attention(torch.cat([features, place], 1), key))
        return self.head(concat_elu(y))


class HierarchicalPrior(Snail):
    """Of the fine codes, conditioned on the coarse ones: embedded, upsampled, a few layers that may see all of them."""

    def __init__(self, levels: int = 6, channels: int = 8) -> None:
        super().__init__(levels, channels, 1, condition=channels)
        self.coarse = nn.Embedding(levels, channels)
        self.around = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        assert condition is not None
        codes = F.interpolate(self.coarse(condition).permute(0, 3, 1, 2), scale_factor=2)
        return super().forward(x, self.around(codes))


class PlusPlus(nn.Module):
    """PixelCNN++ at one resolution: two streams, skip connections, a channel of ones, a mixture of logistics."""

    def __init__(self, channels: int = 6, blocks: int = 2, mixtures: int = 3) -> None:
        super().__init__()
        self.first_down = Shifted(4, channels, (2, 3), left=False)
        self.first_right = nn.ModuleList(
            [Shifted(4, channels, (1, 3), left=False), Shifted(4, channels, (2, 1), left=True)]
        )
        self.down = nn.ModuleList(GatedResnet(channels, (2, 3), False) for _ in range(blocks))
        self.right = nn.ModuleList(GatedResnet(channels, (2, 2), True, aside=channels) for _ in range(blocks))
        self.back = nn.ModuleList(GatedResnet(channels, (2, 2), True, aside=channels) for _ in range(blocks))
        self.head = weight_norm(nn.Conv2d(channels, 10 * mixtures, 1))

    def forward(self, x: Tensor) -> Tensor:
        padded = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        u = shift_down(self.first_down(padded))
        ul = shift_down(self.first_right[0](padded)) + shift_right(self.first_right[1](padded))
        skips = []
        for down, right in zip(self.down, self.right, strict=True):
            u = down(u)
            ul = right(ul, u)
            skips.append(ul)
        for back in self.back:
            ul = back(ul, skips.pop())
        return self.head(F.elu(ul))


# --- transformers, binary images, context models ---------------------------------------------------------------------


class SelfAttention(nn.Module):
    """As GPT-2's: a triangle of ones in a buffer, the scores masked by it."""

    def __init__(self, channels: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.project, self.out = heads, nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.register_buffer("triangle", torch.tril(torch.ones(tokens, tokens)).view(1, 1, tokens, tokens))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, channels = x.shape
        q, k, v = (t.view(n, tokens, self.heads, -1).transpose(1, 2) for t in self.project(x).split(channels, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / k.size(-1) ** 0.5)
        scores = scores.masked_fill(self.triangle[:, :, :tokens, :tokens] == 0, float("-inf"))
        return self.out((F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(n, tokens, channels))


class ImageGpt(nn.Module):
    def __init__(self, levels: int = 5, channels: int = 8, heads: int = 2, blocks: int = 2, tokens: int = 64) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(levels, channels), nn.Embedding(tokens, channels)
        self.start = nn.Parameter(torch.zeros(channels))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2 * blocks))
        self.attention = nn.ModuleList(SelfAttention(channels, heads, tokens) for _ in range(blocks))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
            for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, levels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.tokens(x.flatten(1))
        h = torch.cat([self.start.expand(len(x), 1, -1), tokens[:, :-1]], 1)
        h = h + self.positions(torch.arange(h.shape[1], device=h.device))
        for k, (attention, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            h = h + attention(self.norms[2 * k](h))
            h = h + mlp(self.norms[2 * k + 1](h))
        return self.head(self.norm(h))


class Binary(nn.Module):
    """Masks as buffers that are multiplied with the weight, one logit for each pixel."""

    class Masked(nn.Conv2d):
        def __init__(self, mask_type: str, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            mask = torch.ones_like(self.weight)
            _, _, height, width = self.weight.shape
            mask[:, :, height // 2, width // 2 + (mask_type == "B") :] = 0
            mask[:, :, height // 2 + 1 :] = 0
            self.register_buffer("mask", mask)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)

    def __init__(self, channels: int = 8, layers: int = 2) -> None:
        super().__init__()
        blocks: list[nn.Module] = [self.Masked("A", 1, channels, 7, padding=3)]
        for _ in range(layers):
            blocks += [nn.BatchNorm2d(channels), nn.ReLU(), self.Masked("B", channels, channels, 3, padding=1)]
        self.net = nn.Sequential(*blocks, nn.ReLU(), nn.Conv2d(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ContextModel(nn.Module):
    """Of learned image compression: means and scales of all channels from earlier pixels and a hyperprior."""

    def __init__(self, channels: int = 6, widths: tuple[int, int] = (12, 10)) -> None:
        super().__init__()
        self.context = Binary.Masked("A", channels, 2 * channels, 5, padding=2)
        first, second = widths
        self.parameters_of = nn.Sequential(
            nn.Conv2d(4 * channels, first, 1), nn.LeakyReLU(inplace=True), nn.Conv2d(first, second, 1),
            nn.LeakyReLU(inplace=True), nn.Conv2d(second, 2 * channels, 1),
        )  # fmt: skip

    def forward(self, latents: Tensor, hyper: Tensor) -> Tensor:
        both = torch.cat([hyper, self.context(latents)], 1)
        scales, means = self.parameters_of(both).chunk(2, 1)
        return torch.stack([means, F.softplus(scales) + 0.1], 1)  # [N, 2, C, H, W]


CONTEXT_LEVELS = 64  # -32 .. 31


def normal_levels(parameters: Tensor, uniforms: Tensor) -> Tensor:
    """Whole numbers drawn from normal distributions [n, (mean, deviation)], as levels 0 .. 63."""
    mean, deviation = parameters.double().unbind(1)
    value = mean + deviation * torch.special.ndtri(uniforms.clamp(1e-12, 1 - 1e-12))
    return (value.round() + CONTEXT_LEVELS // 2).clamp(0, CONTEXT_LEVELS - 1).long()


@dataclass(frozen=True)
class Style:
    """A model and what a sampler has to be told of it.

    Attributes:
        make: the module.
        options: arguments of ``fast_sampler``.
        sizes: to sample at.
        condition: of n images of a size, or None.
    """

    make: Callable[[], nn.Module]
    options: dict[str, Any]
    sizes: tuple[tuple[int, int], ...] = ((5, 6), (4, 3))
    condition: Callable[[int, tuple[int, int]], Tensor] | None = None

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.make()
        for name, parameter in model.named_parameters():
            if not name.endswith("original0"):  # the lengths of weight norm stay as they are
                nn.init.normal_(parameter, std=0.4)
        return model.eval()


def _labels(n: int, size: tuple[int, int]) -> Tensor:
    return torch.arange(n) % 4


def _coarse(n: int, size: tuple[int, int]) -> Tensor:
    return torch.randint(6, (n, size[0] // 2, size[1] // 2), generator=torch.Generator().manual_seed(n))


def _hyper(n: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(n, 12, *size, generator=torch.Generator().manual_seed(n))


_INDEX = {"in_channels": 1, "scale": "index"}
STYLES = {
    "gated prior of codes with classes": Style(GatedPrior, {**_INDEX, "levels": 512}, condition=_labels),
    "in-place sums on shared views": Style(InPlaceStacks, {"in_channels": 1, "levels": 4}),
    "attention, gated resnets, concat-ELU": Style(Snail, {**_INDEX, "levels": 6}),
    "fine codes on coarse codes": Style(HierarchicalPrior, {**_INDEX, "levels": 6}, ((4, 6), (6, 4)), _coarse),
    "mixture of logistics": Style(
        PlusPlus, {"in_channels": 3, "levels": 256, "distribution": "logistic_mixture", "mixtures": 3,
                   "scale": lambda x: x / 127.5 - 1},
    ),
    "image transformer": Style(ImageGpt, {**_INDEX, "levels": 5}),
    "binary with one logit": Style(Binary, {"in_channels": 1, "levels": 2, "distribution": "bernoulli"}),
    "context model with a hyperprior": Style(
        ContextModel, {"in_channels": 6, "levels": CONTEXT_LEVELS, "distribution": normal_levels,
                       "scale": lambda x: x - CONTEXT_LEVELS // 2}, condition=_hyper,
    ),
}  # fmt: skip
