"""``genkernels.fast_sampler`` on models that know nothing of this package."""

import pytest
import torch
import torch.nn.functional as F
from helpers import public_styles as styles
from helpers.sampler_cases import CASES
from torch import nn

import genkernels
from genkernels import sampling
from genkernels.acceleration.recurrent import AcceleratedLoop
from genkernels.nn import MaskedConv2d
from genkernels.train.plain_pixelcnn import PlainMaskedConv2d

pytestmark = pytest.mark.usefixtures("one_thread")


class Usual(nn.Module):
    """The PixelCNN of a tutorial: masks, batch norm, ReLU; a class as a bias of every layer."""

    def __init__(self, levels, classes=None):
        super().__init__()
        self.first = PlainMaskedConv2d("A", 1, 6, 5, padding=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))
        self.convs = nn.ModuleList(PlainMaskedConv2d("B", 6, 6, 3, padding=1) for _ in range(2))
        self.classes = None if classes is None else nn.Embedding(classes, 6)
        self.out = nn.Conv2d(6, levels, 1)

    def forward(self, x, label=None):
        y = self.first(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            if self.classes is not None:
                y = y + self.classes(label)[:, :, None, None]
            y = conv(F.relu(norm(y)))
        return self.out(y)  # [N, levels, H, W]


@pytest.fixture
def usual():
    return made(Usual(4))


def made(model):
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.dtype.is_floating_point and not name.endswith("mask"):
            nn.init.uniform_(tensor, 0.1, 1) if "var" in name else nn.init.normal_(tensor, std=0.5)
    return model.double()


def full_forward(model, n, size, uniforms, condition=None, scale=lambda x: x / 3):
    """Levels drawn with a full forward pass for each pixel, written out."""
    model.eval()
    images = torch.zeros(n, 1, *size)
    for row in range(size[0]):
        for column in range(size[1]):
            x = scale(images.double())
            logits = (model(x) if condition is None else model(x, condition))[:, :, row, column]
            cdf = logits.softmax(1).cumsum(1)
            images[:, 0, row, column] = (cdf <= uniforms[:, 0, row, column, None]).sum(1)
    return images.to(torch.uint8)


@torch.no_grad()
def test_it_draws_what_full_forward_passes_draw(usual):
    fast = genkernels.fast_sampler(usual, levels=4, in_channels=1)
    uniforms = torch.rand(3, 1, 4, 7, dtype=torch.float64)
    usual.train()
    drawn = fast.sample(3, (4, 7), uniforms=uniforms)
    assert all(module.training for module in usual.modules())
    assert torch.equal(drawn, full_forward(usual, 3, (4, 7), uniforms))
    nn.init.normal_(usual.out.weight)  # trained on
    assert torch.equal(fast.sample(3, (4, 7), uniforms=uniforms), full_forward(usual, 3, (4, 7), uniforms))
    assert (fast.program.height, fast.program.width) == (4, 7)


@torch.no_grad()
def test_a_condition_is_the_models_second_argument():
    model, labels = made(Usual(4, classes=3)), torch.tensor([2, 0, 1])
    fast = genkernels.fast_sampler(model, levels=4, in_channels=1, condition=labels[:2])
    uniforms = torch.rand(3, 1, 4, 5, dtype=torch.float64)
    drawn = fast.sample(3, (4, 5), uniforms=uniforms, condition=labels)
    assert torch.equal(drawn, full_forward(model, 3, (4, 5), uniforms, labels))


@torch.no_grad()
def test_the_scale_is_what_the_model_was_trained_with(usual):
    def scale(x):
        return x / 2 - 0.7

    fast = genkernels.fast_sampler(usual, levels=4, in_channels=1, scale=scale)
    uniforms = torch.rand(2, 1, 3, 5, dtype=torch.float64)
    assert torch.equal(fast.sample(2, (3, 5), uniforms=uniforms), full_forward(usual, 2, (3, 5), uniforms, scale=scale))


def test_completion_temperature_and_top_k_are_those_of_the_models(usual):
    fast = genkernels.fast_sampler(usual, levels=4, in_channels=1)
    given, known = torch.ones(1, 1, 3, 4, dtype=torch.uint8) * 3, torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    known[..., :2, 1:] = True
    options = {"given": given, "known": known, "temperature": 0.7, "top_k": 3, "uniforms": torch.rand(2, 1, 3, 4)}
    calls = []
    drawn = fast.sample(2, (3, 4), **options, progress=lambda done, total: calls.append((done, total)))
    assert torch.equal(drawn, fast.sample(2, (3, 4), **options, backend="full_forward"))
    assert (drawn[:, :, :2, 1:] == 3).all()
    assert calls == [(1, 6), (2, 6), (6, 6)]


def test_it_says_what_it_has_verified(usual):
    fast = genkernels.fast_sampler(usual, torch.randint(0, 4, (2, 1, 5, 3)), levels=4)
    assert fast.verification.sizes == ((5, 3),)
    assert fast.verification.pairs == 2 * 15 * 16 / 2
    assert fast.verification.error < 1e-12 < fast.verification.scale
    assert "FastSampler(Usual, in_channels=1, levels=4)\nverified on 5 x 3 images, none of 240 pairs" in repr(fast)


def test_a_second_size_is_looked_at_where_the_model_takes_it(usual):
    assert genkernels.fast_sampler(usual, levels=4, in_channels=1).verification.sizes == ((6, 7), (4, 9))

    class OneSize(Usual):
        def forward(self, x):
            return super().forward(x) + torch.arange(42.0).view(6, 7)

    assert genkernels.fast_sampler(made(OneSize(4)), levels=4, in_channels=1).verification.sizes == ((6, 7),)


def test_our_own_models_need_no_further_argument():
    case = CASES["diagonal lstm colours"]
    model = case.model()
    fast = genkernels.fast_sampler(model)
    uniforms = torch.rand(2, *case.size)
    assert torch.equal(
        fast.sample(2, case.size[1:], uniforms=uniforms), model.sample(2, size=case.size[1:], uniforms=uniforms)
    )


def test_a_program_that_computes_something_else_is_found_out(usual, monkeypatch):
    teacher_forced = sampling.teacher_forced
    monkeypatch.setattr(
        "genkernels.sampling.verification.teacher_forced",
        lambda program, images: teacher_forced(program, images) + 1e-3,
    )
    with pytest.raises(ValueError, match=r"model: the logits of its sampling program differ by 0\.001"):
        genkernels.fast_sampler(usual, levels=4, in_channels=1)


def test_a_model_that_hides_its_future_from_the_trace_is_found_out():
    class Cheat(Usual):
        def forward(self, x):
            later = 0 if isinstance(x, sampling.Traced) or not x.any() else x.mean()
            return super().forward(x) + later * torch.arange(4.0).view(4, 1, 1)

    with pytest.raises(ValueError, match=r"model: (not causal, changing|the logits of its sampling program differ)"):
        genkernels.fast_sampler(made(Cheat(4)), levels=4, in_channels=1)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({}, "levels: expected the number of values"),
        ({"levels": 65537}, "levels: expected a whole number in 2 .. 65536; got 65537"),
        ({"levels": 4}, "in_channels: expected the number of sub-pixels of a pixel, or an example; got neither"),
        ({"levels": 4, "example": torch.zeros(3, 5)}, r"example: expected levels \[n, C, H, W\]; got shape \[3, 5\]"),
        ({"levels": 4, "example": torch.full((1, 1, 3, 3), 4)}, "example: expected levels 0 .. 3; got 4"),
        ({"levels": 4, "in_channels": 1, "scale": lambda x: x.sum()}, r"scale: expected floating-point numbers \[4\]"),
        (
            {"levels": 5, "in_channels": 1},
            r"model: expected logits \[N, 5, 1, 6, 7\] \(NLCHW\) or \[N, 5, 6, 7\] \(NLHW\) or another of LAYOUTS; "
            r"got \[N, 4, 6, 7\]",
        ),
        (
            {"levels": 4, "in_channels": 1, "scale": "labels"},
            "scale: expected a function, 'index' or None; got 'labels'",
        ),
        ({"levels": 4, "in_channels": 1, "layout": "NCHW"}, "layout: expected one of NLCHW, .*; got 'NCHW'"),
        (
            {"levels": 4, "in_channels": 1, "layout": "NHWL"},
            r"model: expected logits \[N, 6, 7, 4\] \(NHWL\); got \[N, 4, 6, 7\]",
        ),
        ({"levels": 3, "in_channels": 1, "distribution": "bernoulli"}, "levels: expected 2 with distribution 'bernou"),
    ],
)
def test_a_wrong_argument_is_named(usual, keywords, message):
    with pytest.raises(ValueError, match=message):
        genkernels.fast_sampler(usual, **keywords)


@pytest.mark.parametrize("model, kind", [("x", "str"), (nn.ReLU, "type")])
def test_a_model_that_is_no_module_is_named_with_its_type(model, kind):
    with pytest.raises(TypeError, match=rf"^model: expected a torch\.nn\.Module; got {kind}$"):
        genkernels.fast_sampler(model, levels=4, in_channels=1)


def test_a_model_that_is_not_causal_is_refused_with_the_layer(usual):
    usual.convs[1] = nn.Conv2d(6, 6, 3, padding=1).double()
    with pytest.raises(sampling.NotTraceable, match=r"not causal: layer 'convs.1' reads '.*' at row \+0, column \+1"):
        genkernels.fast_sampler(usual, levels=4, in_channels=1)


class StrangersRecurrence(nn.Module):
    """A causal layer, a loop over rows or columns in Python, and logits."""

    def __init__(self, loop):
        super().__init__()
        self.first = MaskedConv2d(2, 3, 3, mask_type="A")
        self.loop, self.out = loop, nn.Conv2d(4, 8, 1)

    def forward(self, x):
        return self.out(self.loop(self.first(x))).unflatten(1, (4, 2))


class LoopOfSingles(styles.RowLoop):
    """Makes its state without a word about its dtype, so that it cannot be run in float64."""

    def forward(self, x):
        gates = self.from_input(x)
        h = c = torch.zeros(x.shape[0], self.hidden, x.shape[3])
        rows = []
        for row in gates.unbind(2):
            o, f, i, g = (row + self.from_state(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            rows.append(h)
        return torch.stack(rows, 2)


@pytest.mark.parametrize("loop", [styles.RowLoop, styles.DiagonalLoop, LoopOfSingles])
def test_a_loop_that_accelerate_has_swapped_is_sampled(loop):
    torch.manual_seed(0)
    model = StrangersRecurrence(loop())
    genkernels.accelerate(model)
    assert isinstance(model.loop, AcceleratedLoop)
    fast = genkernels.fast_sampler(model, levels=4, in_channels=2)
    assert any(value.name == "loop memory" for value in fast.compile(1, 5).values)
    uniforms = torch.rand(3, 2, 5, 4)
    drawn = fast.sample(3, (5, 4), uniforms=uniforms)
    assert torch.equal(drawn, fast.sample(3, (5, 4), uniforms=uniforms, backend="full_forward"))
