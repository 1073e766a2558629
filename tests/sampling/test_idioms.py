"""Other people's models: which idioms the sampler follows, and which models are refused, in what words."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.sampler_cases import logits_from_poisoned_memory, random_images
from helpers.sampler_nets import LEVELS, SIZE, Net, Plain, a_layer, compiled, conv_b, head, made, one
from torch import nn

import genkernels
from genkernels import sampling
from genkernels.nn import MaskedConv2d, RowLSTM
from genkernels.sampling.program.instructions import ROW

pytestmark = pytest.mark.usefixtures("one_thread")

# --- what is followed ------------------------------------------------------------------------------------------


def shifted_down_at_the_link(self, x):
    above = torch.relu(self.vertical(F.pad(x, (1, 1, 2, 0))[:, :, :-1]))  # sees all of its own row
    above = torch.relu(self.vertical2(above))
    down = F.pad(above, (0, 0, 1, 0))[:, :, :-1]
    return head(self, torch.relu(self.horizontal(x) + self.link(down)))


def shifted_down_in_every_layer(self, x):
    above, beside = x, x
    for vertical, horizontal in zip(self.vertical, self.horizontal, strict=True):
        above = torch.relu(vertical(F.pad(above, (1, 1, 2, 0))[:, :, :-1]))
        above = F.pad(above, (0, 0, 1, 0))[:, :, :-1]
        beside = torch.relu(horizontal(beside) + above)
    return head(self, beside)


def extended_and_cropped(self, x):
    height, width = x.shape[2:]
    above = self.vertical(x)[:, :, :height]  # padding (2, 1): one row more than there was
    left = self.horizontal(x)[:, :, :, :width]
    return head(self, F.elu(above + left))


def norm(self, x):
    return head(self, F.relu_(self.norm2(self.conv2(F.relu(self.norm(self.conv(x)), inplace=True)))))


def channels_about(self, x):
    y = torch.cat([self.conv(x), torch.ones_like(x[:, :1]), F.pad(x, (1, 0))[..., :-1]], 1)  # ones, as in PixelCNN++
    y = F.glu(y[:, [5, 3, 0, 1, 6, 2, 4, 7]], 1)
    a, b = self.conv2(y).chunk(2, 1)
    y = torch.stack([a, -b], 2).flatten(1, 2)
    return head(self, F.elu(torch.cat([y, -y], 1)) + self.scale)


def positions(self, x):
    place = torch.arange(x.shape[2] * x.shape[3], dtype=x.dtype).view(1, 1, x.shape[2], x.shape[3]).sin()
    y = self.conv(x) + place
    y = torch.cat([y, place.expand(x.shape[0], -1, -1, -1)], 1)
    return head(self, torch.tanh(self.conv2(y)))


def moved_right(self, x):
    y = F.pad(x, (2, 0))[..., :-2]
    y = torch.sigmoid(self.conv(y))  # B of what was shifted by two
    y = 1 - y * 0.5 + 2 / (y + 1 - 0.5 * y + F.softplus(y)).exp().clamp(0.1, 5)
    return head(self, F.gelu(y) + F.silu(y) * F.leaky_relu(y - 1) + F.hardtanh(y))


def recurrent(self, x):
    return head(self, self.lstm(self.conv(x)) * self.conv(x))


def channels_last(self, x):
    y = self.conv(x).permute(0, 2, 3, 1)  # [N, H, W, C]
    y = F.relu(self.first(y)) * self.scale + y
    y += 0.5
    return self.second(F.glu(y, -1)).unflatten(3, (LEVELS, 2)).permute(0, 3, 4, 1, 2)


def pixels_as_rows(self, x):
    n, _, height, width = x.shape
    y = self.conv(x).permute(0, 2, 3, 1).reshape(n * height * width, 6)
    y = torch.tanh(self.first(y)) * self.scale - y.sigmoid_()
    return head(self, y.view(n, height, width, 6).permute(0, 3, 1, 2))


def one_row_at_a_time(self, x):
    y = x.squeeze(2)  # [N, C, W]: a signal
    y = torch.relu(self.first(F.pad(y, (3, 0))[..., :-1]))
    y = y + self.second(F.pad(y, (2, 0))) * self.scale
    return head(self, y.unsqueeze(2))


IDIOMS = {
    "masks in place, batch norm, in-place ReLU": (
        norm,
        {"conv": a_layer(), "norm": nn.BatchNorm2d(6), "conv2": conv_b(6, 5), "norm2": nn.BatchNorm2d(5),
         "out": one(5)}, SIZE,
    ),
    "a vertical stack that comes down at the link": (
        shifted_down_at_the_link,
        {"vertical": nn.Conv2d(2, 5, (2, 3)), "vertical2": nn.Conv2d(5, 5, 3, padding=1), "link": one(5, 6),
         "horizontal": a_layer(kernel=1), "out": one(6)}, SIZE,
    ),
    "a vertical stack that comes down in every layer": (
        shifted_down_in_every_layer,
        {"vertical": nn.ModuleList([nn.Conv2d(2, 5, (2, 3)), nn.Conv2d(5, 5, (2, 3))]),
         "horizontal": nn.ModuleList([a_layer(5, kernel=1), conv_b(5, 5)]), "out": one(5)}, SIZE,
    ),
    "results larger than the image, cropped": (
        extended_and_cropped,
        {"vertical": nn.Conv2d(2, 6, (2, 3), padding=(2, 1)), "horizontal": nn.Conv2d(2, 6, (1, 2), padding=(0, 2)),
         "out": one(6)}, SIZE,
    ),
    "channels split, stacked, permuted": (
        channels_about,
        {"conv": a_layer(5), "conv2": conv_b(4, 6), "out": one(12), "scale": nn.Parameter(torch.ones(12, 1, 1))}, SIZE,
    ),
    "maps of positions": (positions, {"conv": a_layer(), "conv2": conv_b(7, 4), "out": one(4)}, SIZE),
    "shifts to the right and many functions": (moved_right, {"conv": conv_b(2, 6), "out": one(6)}, SIZE),
    "depthwise convolutions": (
        lambda self, x: head(self, self.deep(self.conv(x))),
        {"conv": a_layer(), "deep": Plain("B", 6, 6, 3, padding=1, groups=3), "out": one(6)}, SIZE,
    ),
    "a Row LSTM": (recurrent, {"conv": a_layer(), "lstm": RowLSTM(6, 6, learned_state=True), "out": one(6)}, SIZE),
    "signals": (
        one_row_at_a_time,
        {"first": nn.Conv1d(2, 4, 3), "second": nn.Conv1d(4, 4, 2, dilation=2), "out": one(4),
         "scale": nn.Parameter(torch.ones(4, 1))},
        (2, 1, 9),
    ),
    "a channel of ones, by padding": (
        lambda self, x: head(self, self.conv(F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0))),
        {"conv": a_layer(inputs=3), "out": one(6)}, SIZE,
    ),
    "padding with a number, shifted down": (
        lambda self, x: head(self, self.conv(F.pad(x, (0, 0, 1, 0), value=0.5)[:, :, :-1])),
        {"conv": conv_b(2, 6), "out": one(6)}, SIZE,
    ),
    "linear layers on channels that come last": (
        channels_last,
        {"conv": a_layer(), "first": nn.Linear(6, 6), "second": nn.Linear(3, 8, bias=False),
         "scale": nn.Parameter(torch.ones(6))}, SIZE,
    ),
    "linear layers on rows of pixels": (
        pixels_as_rows,
        {"conv": a_layer(), "first": nn.Linear(6, 6), "out": one(6), "scale": nn.Parameter(torch.ones(6))}, SIZE,
    ),
    "interleaved colour groups": (
        lambda self, x: self.out(torch.relu(self.conv(x))).unflatten(1, (LEVELS, 2)),
        {"conv": MaskedConv2d(2, 7, 3, mask_type="A", channel_groups=2, group_layout="interleaved"),
         "out": MaskedConv2d(7, 8, 1, mask_type="B", channel_groups=2, group_layout="interleaved")}, SIZE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IDIOMS)
@torch.no_grad()
def test_other_peoples_idioms_become_programs_of_the_same_function(name):
    body, layers, size = IDIOMS[name]
    net = made(body, layers)
    program, table = compiled(net, size)
    images = random_images(3, size, LEVELS)
    assert torch.allclose(
        logits_from_poisoned_memory(program, images), net(table[images.long()]), rtol=1e-11, atol=1e-12
    )


def test_a_vertical_stack_is_computed_before_the_row_wherever_it_comes_down():
    body, layers, size = IDIOMS["a vertical stack that comes down at the link"]
    program, _ = compiled(made(body, layers), size)
    assert all(i.phase == ROW for i in program.instructions() if i.name in ("vertical", "vertical2"))


# --- what is refused -------------------------------------------------------------------------------------------

REFUSED = {
    "looks ahead in its row": (
        lambda self, x: head(self, self.conv(x)), {"conv": nn.Conv2d(2, 4, 3, padding=1), "out": one(4)},
        r"not causal: layer 'conv' reads 'image' at row \+0, column \+1",
    ),
    "looks ahead behind a causal layer": (
        lambda self, x: head(self, self.wide(self.conv(x))),
        {"conv": a_layer(), "wide": nn.Conv2d(6, 4, (3, 1), padding=(1, 0)), "out": one(4)},
        r"not causal: layer 'wide' reads 'conv' at row \+1, column \+0",
    ),
    "sees itself": (
        lambda self, x: head(self, self.second(self.conv(x))),
        {"conv": conv_b(2, 4), "second": conv_b(4, 4), "out": one(4)},
        "not causal: the logits of colour 0 depend on colour 1 of the same pixel, which layer 'conv' lets through",
    ),
    "a direction from the right, not shifted": (
        lambda self, x: head(self, self.lstm(self.conv(x).flip(3)).flip(3)),
        {"conv": a_layer(), "lstm": RowLSTM(6, 6), "out": one(6)},
        "layer 'flip': the sampler does not know the operator aten::flip",
    ),
    "batch norm without statistics": (
        lambda self, x: head(self, self.norm(self.conv(x))),
        {"conv": a_layer(), "norm": nn.BatchNorm2d(6, track_running_stats=False), "out": one(6)},
        "layer 'norm': batch norm in training mixes the images of a batch",
    ),
    "batch norm in training": (
        lambda self, x: head(self, F.batch_norm(self.conv(x), None, None, training=True)),
        {"conv": a_layer(), "out": one(6)},
        r"layer 'native_batch_norm': batch norm in training mixes the images",
    ),
    "an operator that nobody has taught it": (
        lambda self, x: head(self, self.conv(x).cumsum(1)), {"conv": a_layer(), "out": one(6)},
        "layer 'cumsum': the sampler does not know the operator aten::cumsum",
    ),
    "another resolution": (
        lambda self, x: head(self, self.conv(x)), {"conv": nn.Conv2d(2, 4, 3, stride=2), "out": one(4)},
        r"layer 'conv': only convolutions that keep the resolution; got stride \[2, 2\]",
    ),
    "rows and columns exchanged": (
        lambda self, x: head(self, self.conv(x.transpose(2, 3)).transpose(2, 3)), {"conv": a_layer(), "out": one(6)},
        "layer 'conv': the result is not made of whole channels",
    ),
    "images mixed": (
        lambda self, x: head(self, self.conv(x.flatten(0, 1).unsqueeze(0))), {"conv": a_layer(), "out": one(6)},
        "layer 'unsqueeze': aten::unsqueeze mixes the images of a batch",
    ),
    "channels as images": (
        lambda self, x: head(
            self, self.conv(F.conv2d(x.reshape(-1, 1, 5, 4), self.conv.weight[:1, :1]).reshape(-1, 2, 3, 2))
        ),
        {"conv": a_layer(), "out": one(6)},
        "layer 'convolution': the first dimension is that of the images and of something else",
    ),
    "images last": (
        lambda self, x: head(self, self.conv(x).permute(2, 3, 0, 1).relu().permute(2, 3, 0, 1)),
        {"conv": a_layer(), "out": one(6)},
        "layer 'permute': aten::permute mixes the images of a batch, or moves them from the first dimension",
    ),
    "rows of pixels shifted from image to image": (
        lambda self, x: head(
            self, self.conv(x).permute(0, 2, 3, 1).reshape(-1, 6)[1:-1].relu().reshape(2, 9, 2, 6).permute(0, 3, 1, 2)
        ),
        {"conv": a_layer(), "out": one(6)}, "layer 'slice': aten::slice mixes the images of a batch",
    ),
    "rows of pixels of another image": (
        lambda self, x: head(
            self, self.conv(x).permute(0, 2, 3, 1).reshape(-1, 6).t().reshape(6, 2, 5, 4).transpose(0, 1)
        ),
        {"conv": a_layer(), "out": one(6)}, "layer 't': aten::t mixes the images of a batch",
    ),
    "logits of another shape": (
        lambda self, x: self.out(self.conv(x)), {"conv": a_layer(), "out": one(6)},
        r"logits: expected \[N, 4, 2, 5, 4\]; got \[N, 8, 5, 4\]",
    ),
    "another dtype": (
        lambda self, x: head(self, self.conv(x).float()), {"conv": a_layer(), "out": one(6)},
        "layer '_to_copy': changes the dtype from torch.float64 to torch.float32",
    ),
    "noise": (
        lambda self, x: head(self, self.conv(x) + torch.randn(6, 1, 1, dtype=x.dtype)),
        {"conv": a_layer(), "out": one(6)},
        "the model draws random numbers of its own",
    ),
    "padding with a number before a convolution": (
        lambda self, x: head(self, F.conv2d(F.pad(x, (1, 1, 1, 1), value=1), self.conv.weight * self.conv.mask)),
        {"conv": a_layer(), "out": one(6)},
        r"layer 'convolution' reads 'add' at row \+1, column \+0, which was computed on padded rows or columns",
    ),
    "a tensor for batches of one size": (
        lambda self, x: head(self, self.conv(x) + torch.ones(3, 6, 1, 1)), {"conv": a_layer(), "out": one(6)},
        "the model cannot be run on a batch of 2 images of 5 x 4: aten::add says",
    ),
    "a weight made of the image": (
        lambda self, x: head(self, F.conv2d(x, x[:, :, :1, :1])), {"out": one(6)}, "the weight depends on the image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_sampled_is_refused_with_the_layer_and_the_reason(name):
    body, layers, message = REFUSED[name]
    with pytest.raises(sampling.NotTraceable, match=message):
        compiled(made(body, layers), SIZE)


def test_torchscript_is_refused_in_words():
    def traced(module):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is deprecated
            return torch.jit.trace(module, torch.rand(2, 2, 5, 4))

    script = traced(MaskedConv2d(2, 6, 3, mask_type="A").float())
    with pytest.raises(sampling.NotTraceable, match="the model is TorchScript"):
        genkernels.fast_sampler(script, levels=3, in_channels=2)
    with pytest.raises(sampling.NotTraceable, match="layer 'conv' is TorchScript"):
        genkernels.fast_sampler(
            Net(lambda self, x: self.conv(x).unflatten(1, (3, 2)), conv=script), levels=3, in_channels=2
        )
