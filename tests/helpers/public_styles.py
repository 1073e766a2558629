"""Small models written in the usual public styles, for the tests of ``genkernels.accelerate``."""

import torch
import torch.nn.functional as F
from torch import nn

# --- masked convolutions ---------------------------------------------------------------------------------------------


def spatial_mask(kind: str, kernel: int) -> torch.Tensor:
    mask = torch.ones(kernel, kernel)
    centre = kernel // 2
    mask[centre, centre + (kind == "B") :] = 0
    mask[centre + 1 :] = 0
    return mask


class WritesItsWeight(nn.Conv2d):
    """The commonest: a mask of the whole weight, multiplied onto ``.data`` in every pass."""

    def __init__(self, kind, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", torch.ones_like(self.weight) * spatial_mask(kind, self.kernel_size[0]))

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


class MultipliesItsWeight(nn.Conv2d):
    """A mask of one kernel under another name, broadcast."""

    def __init__(self, kind, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("visible", spatial_mask(kind, self.kernel_size[0])[None, None].bool())

    def forward(self, x):
        return F.conv2d(x, self.weight * self.visible, self.bias, padding=self.padding, dilation=self.dilation)


class Wrapper(nn.Module):
    """A convolution inside, and a mask that is a plain attribute."""

    def __init__(self, kind, channels, out, kernel):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, padding="same", bias=False)
        self.kept = spatial_mask(kind, kernel)

    def forward(self, x):
        return F.conv2d(x, self.conv.weight * self.kept.to(x), None, padding="same")


class Colours(nn.Conv2d):
    """Colour groups at the centre tap, in blocks or interleaved."""

    def __init__(self, kind, layout, *args, **kwargs):
        super().__init__(*args, **kwargs)
        out, inputs, kernel, _ = self.weight.shape

        def groups(n):
            return torch.arange(n) % 3 if layout == "interleaved" else torch.arange(n) * 3 // n

        mask = torch.ones(out, inputs, 1, 1) * spatial_mask("A", kernel)
        before, same = groups(inputs)[None] < groups(out)[:, None], groups(inputs)[None] == groups(out)[:, None]
        mask[:, :, kernel // 2, kernel // 2] = (before | same if kind == "B" else before).float()
        self.register_buffer("mask", mask)

    def forward(self, x):
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class Cropped(nn.Module):
    """(k // 2 + 1) x k: the rows below are not there, the pad is on top and at the sides."""

    def __init__(self, kind, channels, out, kernel):
        super().__init__()
        self.pad = nn.ZeroPad2d((kernel // 2, kernel // 2, kernel // 2, 0))
        self.conv = nn.Conv2d(channels, out, (kernel // 2 + 1, kernel))
        self.register_buffer("row", spatial_mask(kind, kernel)[: kernel // 2 + 1])

    def forward(self, x):
        return F.conv2d(self.pad(x), self.conv.weight * self.row, self.conv.bias)


class CroppedRow(nn.Module):
    """1 x (k // 2 + 1): every tap is live, so there is nothing to gain."""

    def __init__(self, channels, out, kernel):
        super().__init__()
        self.reach = kernel // 2
        self.conv = nn.Conv2d(channels, out, (1, kernel // 2 + 1))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        return self.conv(F.pad(x, (self.reach, 0, 0, 0)))


class CastsItsInput(MultipliesItsWeight):
    """Images come as bytes."""

    def forward(self, x):
        return super().forward(x.float())


class MakesItsMask(nn.Conv2d):
    """A mask that is made in every pass."""

    def forward(self, x):
        height, width = self.kernel_size
        mask = torch.ones(height, width)
        mask[height // 2, width // 2 + 1 :] = 0
        mask[height // 2 + 1 :] = 0
        return self._conv_forward(x, self.weight * mask, self.bias)


class MakesItsMaskInFloat32(MakesItsMask):
    """One that no other dtype takes."""

    def forward(self, x):
        height, width = self.kernel_size
        mask = torch.ones(1, 1, height * width).index_fill(2, torch.arange(height * width // 2, height * width), 0.0)
        weight = torch.bmm(self.weight.flatten(2).flatten(0, 1)[:, None], torch.diag(mask[0, 0]).expand(
            self.out_channels * self.in_channels, -1, -1
        ))  # fmt: skip
        return self._conv_forward(x, weight.view_as(self.weight), self.bias)


MASKED = {
    "data": lambda: WritesItsWeight("B", 4, 6, 3, padding=1),
    "broadcast": lambda: MultipliesItsWeight("A", 4, 6, 5, padding=4, dilation=2),
    "wrapper": lambda: Wrapper("B", 4, 6, 3),
    "blocks": lambda: Colours("A", "blocks", 6, 8, 3, padding=1),
    "interleaved": lambda: Colours("B", "interleaved", 6, 9, 5, padding=2),
    "cropped": lambda: Cropped("B", 4, 6, 5),
    "casts": lambda: CastsItsInput("B", 4, 6, 3, padding=1),
    "makes its mask": lambda: MakesItsMask(4, 6, 3, padding=1),
    "makes its mask in float32": lambda: MakesItsMaskInFloat32(4, 6, 3, padding=1),
}


class KeepsRows(nn.Conv2d):
    """The vertical stack of a Gated PixelCNN: the rows above the centre (A), or these and its own (B)."""

    def __init__(self, kind, *args, writes=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.writes = writes
        self.register_buffer("mask", torch.zeros_like(self.weight))
        self.mask[:, :, : self.kernel_size[0] // 2 + (kind == "B")] = 1

    def forward(self, x):
        if self.writes:
            self.weight.data *= self.mask
            return super().forward(x)
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class KeepsTaps(nn.Conv2d):
    """Any rectangle of taps, in a mask of one kernel."""

    def __init__(self, rows, columns, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = torch.zeros(self.kernel_size)
        self.kept[slice(*rows), slice(*columns)] = 1

    def forward(self, x):
        return F.conv2d(x, self.weight * self.kept.to(x), self.bias, 1, self.padding, self.dilation)


class CroppedRows(nn.Module):
    """The vertical stack with the kernel's last row of zeros cut off, and the image shifted."""

    def __init__(self, channels, out, kernel):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, (kernel // 2 + 1, kernel), bias=False)
        self.register_buffer("above", torch.ones(kernel // 2 + 1, 1))
        self.above[-1] = 0

    def forward(self, x):
        rows, columns = self.conv.kernel_size
        x = F.pad(x, (columns // 2, columns // 2, rows - 1, 0))
        return F.conv2d(x, self.conv.weight * self.above)


RECTANGLES = {  # with what the report says
    "A": (lambda: KeepsRows("A", 4, 6, 3, padding=1), "3x3, its live taps are 1x3"),
    "B": (lambda: KeepsRows("B", 4, 6, 3, padding=1), "3x3, its live taps are 2x3"),
    "B of 7": (lambda: KeepsRows("B", 4, 6, 7, padding=3), "7x7, its live taps are 4x7"),
    "A, writes its weight": (lambda: KeepsRows("A", 4, 6, 5, padding=2, writes=True), "5x5, its live taps are 2x5"),
    "B, dilated": (lambda: KeepsRows("B", 4, 6, 3, padding=2, dilation=2), "3x3, its live taps are 2x3"),
    "A, dilated, no bias": (
        lambda: KeepsRows("A", 4, 6, 3, padding=(3, 2), dilation=(3, 2), bias=False), "3x3, its live taps are 1x3",
    ),
    "cropped": (lambda: CroppedRows(4, 6, 5), "3x5, its live taps are 2x5"),
    "not causal": (lambda: KeepsTaps((1, 5), (0, 3), 4, 6, 5, padding=2), "5x5, its live taps are 4x3"),
    "the middle": (lambda: KeepsTaps((1, 4), (1, 4), 4, 6, 5, padding=2), "5x5, its live taps are 3x3"),
    "a corner": (lambda: KeepsTaps((4, 5), (4, 5), 4, 6, 5, padding=2), "5x5, its live taps are 1x1"),
    "the centre": (lambda: KeepsTaps((1, 2), (1, 2), 4, 6, 3, padding=1), "3x3, its live taps are 1x1"),
}  # fmt: skip


def pixelcnn(levels=4, channels=8, layers=3, kernel=7):
    """The tutorial's: the mask on ``.data``, batch norm and ReLU between."""
    parts: list[nn.Module] = []
    for index in range(layers):
        conv = WritesItsWeight("B" if index else "A", channels if index else 1, channels, kernel, padding=kernel // 2)
        parts += [conv, nn.BatchNorm2d(channels), nn.ReLU(True)]
    return nn.Sequential(*parts, nn.Conv2d(channels, levels, 1))


# --- generators and discriminators -----------------------------------------------------------------------------------


def generator(z=8, width=4, channels=3, bias=False):
    """One Sequential."""
    return nn.Sequential(
        nn.ConvTranspose2d(z, width * 4, 4, 1, 0, bias=bias), nn.BatchNorm2d(width * 4), nn.ReLU(True),
        nn.ConvTranspose2d(width * 4, width * 2, 4, 2, 1, bias=bias), nn.BatchNorm2d(width * 2), nn.ReLU(True),
        nn.ConvTranspose2d(width * 2, channels, 4, 2, 1, bias=bias), nn.Tanh(),
    )  # fmt: skip


def discriminator(width=4, channels=3, bias=False):
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, 2, 1, bias=bias), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(width, width * 2, 4, 2, 1, bias=bias), nn.BatchNorm2d(width * 2), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(width * 2, 1, 4, 1, 0, bias=bias), nn.Sigmoid(),
    )  # fmt: skip


class AttributeGenerator(nn.Module):
    """Layers as attributes, activations as functions."""

    def __init__(self, z=8, width=4):
        super().__init__()
        self.fc = nn.Linear(z, width * 2 * 16)
        self.up1 = nn.ConvTranspose2d(width * 2, width, 4, 2, 1)
        self.norm1 = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.up2 = nn.ConvTranspose2d(width, 3, 4, 2, 1)

    def forward(self, z):
        x = F.leaky_relu(self.fc(z), 0.1).view(z.size(0), -1, 4, 4)
        x = self.act(self.norm1(self.up1(x)))
        return torch.tanh(self.up2(x))


class VaeDecoder(nn.Module):
    """A Sequential behind a linear layer and a reshape."""

    def __init__(self, latent=5, width=4):
        super().__init__()
        self.fc = nn.Linear(latent, width * 2 * 16)
        self.body = nn.Sequential(
            nn.ConvTranspose2d(width * 2, width, 3, 2, 1, output_padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(),
            nn.Conv2d(width, 1, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, z):
        return self.body(self.fc(z).unflatten(1, (-1, 4, 4)))


class Residual(nn.Module):
    """What a convolution gives is read twice: by the norm, and by the sum."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.conv1(x)
        return y + self.norm2(self.conv2(F.relu(self.norm1(y)))) + x


class ResNetGenerator(nn.Module):
    def __init__(self, z=6, width=4):
        super().__init__()
        self.first = nn.ConvTranspose2d(z, width, 4)
        self.blocks = nn.Sequential(Residual(width), nn.Upsample(scale_factor=2), Residual(width))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z):
        return torch.tanh(self.last(F.relu(self.blocks(self.first(z)))))


# --- recurrences -----------------------------------------------------------------------------------------------------


class RowLoop(nn.Module):
    """A Row LSTM that loops over rows, its gates in the order o, f, i, g."""

    def __init__(self, channels=3, hidden=4):
        super().__init__()
        self.hidden = hidden
        self.from_input = MultipliesItsWeight.__new__(MultipliesItsWeight)
        nn.Conv2d.__init__(self.from_input, channels, 4 * hidden, (1, 3), padding=(0, 1))
        self.from_input.register_buffer("visible", torch.tensor([1.0, 1.0, 0.0])[None, None, None])
        self.from_state = nn.Conv1d(hidden, 4 * hidden, 3, padding=1)

    def forward(self, x):
        gates = self.from_input(x)
        h = c = x.new_zeros(x.shape[0], self.hidden, x.shape[3])
        rows = []
        for row in gates.unbind(2):
            o, f, i, g = (row + self.from_state(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            rows.append(h)
        return torch.stack(rows, 2)


class DiagonalLoop(nn.Module):
    """One direction of a Diagonal LSTM: skews, loops over columns, unskews; its gates in the order i, g, f, o."""

    def __init__(self, channels=3, hidden=4):
        super().__init__()
        self.hidden = hidden
        self.conv_is = nn.Conv2d(channels, 4 * hidden, 1)
        self.conv_ss = nn.Conv1d(hidden, 4 * hidden, 2, bias=False)

    def forward(self, x):
        batch, _, height, width = x.shape
        gates = self.conv_is(x)
        skewed = gates.new_zeros(batch, 4 * self.hidden, height, height + width - 1)
        for row in range(height):
            skewed[:, :, row, row : row + width] = gates[:, :, row]
        h = c = x.new_zeros(batch, self.hidden, height)
        columns = []
        for column in skewed.unbind(3):
            i, g, f, o = (column + self.conv_ss(F.pad(h, (1, 0)))).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            columns.append(h)
        whole = torch.stack(columns, 3)
        return torch.stack([whole[:, :, row, row : row + width] for row in range(height)], 2)


class BidirectionalLoop(nn.Module):
    """Both directions: the second reads a mirrored image, and is shifted down by a row."""

    def __init__(self, channels=3, hidden=4):
        super().__init__()
        self.left, self.right = DiagonalLoop(channels, hidden), DiagonalLoop(channels, hidden)

    def forward(self, x):
        mirrored = self.right(x.flip(3)).flip(3)
        return self.left(x) + F.pad(mirrored, (0, 0, 1, 0))[:, :, :-1]


LOOPS = {"row": RowLoop, "diagonal": DiagonalLoop, "bidirectional": BidirectionalLoop}


# --- instance norm: pix2pix and CycleGAN ---


class ReflectingBlock(nn.Module):
    """A residual block of CycleGAN's generator."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv_block(x)


def reflecting_generator(width=64, channels=3, blocks=2):
    """CycleGAN's generator."""

    def part(conv, features):
        return [conv, nn.InstanceNorm2d(features), nn.ReLU(True)]

    return nn.Sequential(
        nn.ReflectionPad2d(3), *part(nn.Conv2d(channels, width, 7), width),
        *part(nn.Conv2d(width, 2 * width, 3, 2, 1), 2 * width),
        *(ReflectingBlock(2 * width) for _ in range(blocks)),
        *part(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1), width),
        nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7), nn.Tanh(),
    )  # fmt: skip


def patch_discriminator(width=64, channels=3):
    """pix2pix's discriminator of patches."""

    def part(inputs, outputs, stride):
        return [nn.Conv2d(inputs, outputs, 4, stride, 1), nn.InstanceNorm2d(outputs), nn.LeakyReLU(0.2, True)]

    return nn.Sequential(
        nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, True), *part(width, 2 * width, 2),
        *part(2 * width, 4 * width, 1), nn.Conv2d(4 * width, 1, 4, 1, 1),
    )  # fmt: skip


class UNet(nn.Module):
    """pix2pix's generator, two levels deep, in a forward of its own."""

    def __init__(self, width=64, channels=3):
        super().__init__()
        self.down1 = nn.Conv2d(channels, width, 4, 2, 1)
        self.down2 = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.norm2 = nn.InstanceNorm2d(2 * width, affine=True)
        self.up2 = nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.norm3 = nn.InstanceNorm2d(width, affine=True)
        self.up1 = nn.ConvTranspose2d(2 * width, channels, 4, 2, 1)

    def forward(self, x):
        first = torch.nn.functional.leaky_relu(self.down1(x), 0.2)
        second = torch.relu(self.norm2(self.down2(first)))
        third = torch.relu(self.norm3(self.up2(second)))
        return torch.tanh(self.up1(torch.cat([third, first], 1)))
