"""Functions across the channels of a pixel, comparisons and choices, elementary functions: other people's models that
have them are sampled as their own full forward passes would, on every executor.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import cuda_emulated
from helpers.sampler_cases import logits_from_poisoned_memory, random_images
from helpers.sampler_checks import constant_program
from helpers.sampler_exact import assert_exact_on_every_executor
from helpers.sampler_nets import Plain
from torch import nn

import genkernels
from genkernels import backends, sampling
from genkernels.distributions import Categorical
from genkernels.nn import MaskedConv2d
from genkernels.sampling.executors import cuda
from genkernels.sampling.executors.pytorch import evaluate_across
from genkernels.sampling.program.instructions import REDUCE, ROW, Across, Function, Pointwise, Read, Value

pytestmark = [
    pytest.mark.skipif(backends.native() is None, reason="the native extension is not loaded"),
    pytest.mark.usefixtures("one_thread"),
]

WIDTH, LEVELS = 6, 4


class Net(nn.Module):
    """Causal features [N, WIDTH, H, W] of a grey image, what ``body`` makes of them, and the logits."""

    def __init__(self, body, **layers):
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.first, self.second = Plain("A", 1, WIDTH, 3, padding=1), Plain("B", WIDTH, WIDTH, 3, padding=1)
        self.out = nn.Conv2d(WIDTH, LEVELS, 1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)

    def forward(self, x):
        return self.out(self.second(self.body(self, self.first(x))))


def channels_last(function):
    return lambda net, y: function(net, y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def matrix():
    return nn.Parameter(torch.empty(WIDTH, WIDTH))


def by_hand(net, y):
    """The layer norm of published code: over channels, of [N, C, H, W]."""
    mean = y.mean(1, keepdim=True)
    variance = (y - mean).pow(2).mean(1, keepdim=True)
    return net.gain[:, None, None] * ((y - mean) / torch.sqrt(variance + 1e-6)) + net.shift[:, None, None]


def gain_and_shift():
    return {"gain": nn.Parameter(torch.empty(WIDTH)), "shift": nn.Parameter(torch.empty(WIDTH))}


def set_where(net, y):
    y = y.clone()
    y[y > 0.5] = 0.25
    return y


ACROSS = {
    "softmax": lambda net, y: y.softmax(1),
    "softmax of groups": lambda net, y: y.unflatten(1, (2, 3)).softmax(2).flatten(1, 2),
    "softmax of interleaved groups": lambda net, y: y.unflatten(1, (3, 2)).softmax(1).flatten(1, 2),
    "softmax over all of two dimensions of channels": lambda net, y: (
        y.unflatten(1, (3, 2)) - y.unflatten(1, (3, 2)).logsumexp((1, 2), keepdim=True)
    ).flatten(1, 2),
    "softmax over the last dimension": channels_last(lambda net, y: y.softmax(-1)),
    "softmax by heads": channels_last(lambda net, y: y.unflatten(3, (2, 3)).softmax(-1).flatten(3)),
    "softmax of rows of pixels": channels_last(lambda net, y: y.reshape(-1, WIDTH).softmax(1).view(y.shape)),
    "log-softmax": lambda net, y: y.log_softmax(1),
    "softmax of what several layers gave": lambda net, y: torch.cat([y, -y[:, :2]], 1).softmax(1)[:, 1:7],
    "softmax in another order": lambda net, y: y[:, [3, 1, 0, 5, 4, 2]].softmax(1),
    "softmax of shifted features": lambda net, y: F.pad(y, (1, 0, 1, 0))[..., :-1, :-1].softmax(1),
    "layer norm": channels_last(lambda net, y: net.norm(y)),
    "layer norm without gain": channels_last(lambda net, y: F.layer_norm(y, (WIDTH,))),
    "layer norm of rows of pixels": channels_last(lambda net, y: net.norm(y.reshape(-1, WIDTH)).view(y.shape)),
    "layer norm by hand": by_hand,
    "layer norm and activation": channels_last(lambda net, y: F.gelu(net.norm(y))),
    "RMS norm": channels_last(lambda net, y: net.rms(y)),
    "RMS norm by hand": lambda net, y: y * torch.rsqrt(torch.mean(y**2, dim=1, keepdim=True) + 1e-6),
    "unit vectors": lambda net, y: F.normalize(y, dim=1),
    "norms of order 1 and infinity": lambda net, y: (
        y / (1 + y.norm(1, 1, keepdim=True)) + y / (1 + torch.linalg.vector_norm(y, float("inf"), 1, keepdim=True))
    ),
    "deviations": lambda net, y: (y - y.mean(1, True)) / (0.1 + y.std(1, keepdim=True)) + y.var(1, False).unsqueeze(1),
    "variance and mean at once": lambda net, y: (
        lambda variance, mean: (y - mean) * (variance + 0.1).rsqrt()
    )(*torch.var_mean(y, 1, keepdim=True, correction=0)),
    "sums, not kept": lambda net, y: y - 0.2 * y.sum(1)[:, None] + y.unflatten(1, (2, 3)).sum(2).repeat(1, 3, 1, 1),
    "maxima": lambda net, y: (
        y * y.amax(1, True) + y.max(1, keepdim=True)[0] - y.max(dim=1)[0].unsqueeze(1) + y.amin(1, True)
    ),
    "maxout": lambda net, y: y.unflatten(1, (3, 2)).max(2).values.repeat(1, 2, 1, 1),
    "logsumexp": lambda net, y: y - y.logsumexp(1, keepdim=True),
    "a mixture by soft weights": lambda net, y: (
        (y[:, :3].softmax(1) * y[:, 3:]).sum(1, keepdim=True) + y
    ),
    "a gate for all channels": lambda net, y: y * torch.sigmoid(net.gate(y)),
}  # fmt: skip

CONDITIONS = {
    "a product with a comparison": lambda net, y: y * (y > 0) + 0.1 * y * (y <= 0),
    "all comparisons": lambda net, y: (
        (y > 0.1).to(y.dtype) + (y >= y.mean(1, True)) * y - 2.0 * (y < -0.2) + y * (y <= 0.3).float()
        + (y == y.amax(1, True)) * 0.5 + (y != y[:, :1]) * y
    ),
    "where": lambda net, y: torch.where(y > 0, y, 0.1 * y) + torch.where(y < 1, y, 0.0) + torch.where(y < 0, -1.0, y),
    "a constant condition": lambda net, y: torch.where(net.chosen[:, None, None] > 0, y, y.exp()),
    "masked fill": lambda net, y: y.masked_fill(y < 0, 0.3) + y.masked_fill(net.chosen[:, None, None] > 0, -2.0),
    "masked fill in place": lambda net, y: y.clone().masked_fill_(y > 1, 1.0),
    "set where it is so": set_where,
    "logic": lambda net, y: y.masked_fill(~((y > 1) & (y < 2) | (y < -1) ^ (y < -2)), 0.5) * torch.logical_not(y > 3),
    "truth values added": lambda net, y: y * ((y > 0) + (y > 1)) + y * ((y > 0).float() + (y > 1).float()),
    "truth values as whole numbers": lambda net, y: y * (2 * (y > 0).long() - 1),
    "truth of numbers": lambda net, y: y * y.relu().bool() + torch.logical_and(y.relu(), y < 1) * 0.5,
    "channels last": channels_last(lambda net, y: torch.where(y > net.chosen, y, -y)),
    "straight through": lambda net, y: y + ((y > 0).float() - y).detach(),
}  # fmt: skip

FUNCTIONS = {
    "powers": lambda net, y: y.pow(2) + y**3 + torch.square(y) + (y.abs() + 0.1) ** -1 + (y.abs() + 0.1) ** -0.5,
    "powers of any kind": lambda net, y: (y.abs() + 0.1) ** 1.7 + 2**y + (y.abs() + 0.2) ** y + y.abs() ** 0.5 + y**1,
    "roots and logarithms": lambda net, y: (
        y.abs().sqrt() + y.abs().log1p() + (y.abs() + 0.1).rsqrt() + (y.abs() + 0.1).log()
    ),
    "waves": lambda net, y: y.sin() + (3 * y).cos() * torch.expm1(0.1 * y),
    "signs": lambda net, y: torch.sign(y) * y.abs() + torch.sgn(y) * 0.1 + y.abs_(),
    "GELU by hand": lambda net, y: y * 0.5 * (1.0 + torch.erf(y / 2**0.5)),
    "extremes": lambda net, y: torch.maximum(y, -y) + torch.minimum(y, y.mean(1, True)) + torch.max(y, 0.5 - y),
    "scaled sums": lambda net, y: torch.addcmul(y, y, y, value=0.1) + torch.addcdiv(y, y, 1 + y**2) + torch.lerp(y, -y, 0.3),
    "PReLU": lambda net, y: net.prelu(y) + net.prelu_of_one(y),
    "hard activations": lambda net, y: F.hardsigmoid(y) + F.hardswish(y) + F.relu6(3 * y) + F.hardtanh(y),
    "smooth activations": lambda net, y: F.mish(y) + F.logsigmoid(y) + F.softsign(y) + F.tanhshrink(y) + F.celu(y, 0.3),
    "shrinking": lambda net, y: F.softshrink(y) + F.hardshrink(y) + F.threshold(y, 0.1, 0.2) + F.selu(y),
    "activations of channels that come last": channels_last(lambda net, y: F.logsigmoid(y) + F.mish(y).abs_().sqrt_()),
    "concat-ELU": lambda net, y: net.wide(F.elu(torch.cat([y, -y], 1))),
    "dropout": lambda net, y: F.dropout(net.drop(y), 0.5, net.training),
    "weight norm": lambda net, y: net.normed(y),
    "codes of positions": lambda net, y: y + torch.stack([
        torch.arange(y.shape[2]).view(-1, 1).expand(y.shape[2:]).sin(), torch.arange(y.shape[3]).cos().expand(y.shape[2:])
    ]).repeat(3, 1, 1),
    "a map of scales": lambda net, y: y * (1 + torch.arange(y.shape[3]) / 7) + y / (1 + torch.arange(y.shape[2])[:, None]),
}  # fmt: skip

MATRICES = {
    "einsum": lambda net, y: torch.einsum("oc,nchw->nohw", net.matrix, y),
    "einsum channels last": channels_last(lambda net, y: torch.einsum("nhwc,oc->nhwo", y, net.matrix)),
    "einsum of groups": lambda net, y: torch.einsum("ngchw,gcd->ngdhw", y.unflatten(1, (2, 3)), net.blocks).flatten(1, 2),
    "matrix times pixels": lambda net, y: (net.matrix @ y.flatten(2)).view_as(y),
    "pixels times matrix": channels_last(lambda net, y: y @ net.matrix),
    "bmm": lambda net, y: torch.bmm(net.matrix.expand(len(y), -1, -1), y.flatten(2)).view_as(y),
    "bmm of pixels": lambda net, y: torch.bmm(
        y.flatten(2).transpose(1, 2), net.matrix.expand(len(y), -1, -1)
    ).transpose(1, 2).view_as(y),
    "tensordot": lambda net, y: torch.tensordot(y, net.matrix, ([1], [0])).permute(0, 3, 1, 2),
    "linear": lambda net, y: F.linear(y.movedim(1, -1), net.matrix, net.chosen).movedim(-1, 1),
}  # fmt: skip


def made(body):
    return Net(
        body,
        norm=nn.LayerNorm(WIDTH),
        rms=nn.RMSNorm(WIDTH),
        gate=nn.Conv2d(WIDTH, 1, 1),
        prelu=nn.PReLU(WIDTH),
        prelu_of_one=nn.PReLU(),
        wide=nn.Conv2d(2 * WIDTH, WIDTH, 1),
        drop=nn.Dropout2d(0.5),
        normed=nn.utils.parametrizations.weight_norm(nn.Conv2d(WIDTH, WIDTH, 1)),
        chosen=nn.Parameter(torch.empty(WIDTH)),
        matrix=matrix(),
        blocks=nn.Parameter(torch.empty(2, 3, 3)),
        **gain_and_shift(),
    ).eval()


@pytest.mark.parametrize("name", [*ACROSS, *CONDITIONS, *FUNCTIONS, *MATRICES])
def test_levels_are_those_of_full_forward_passes_on_every_executor(name):
    net = made((ACROSS | CONDITIONS | FUNCTIONS | MATRICES)[name])
    fast = genkernels.fast_sampler(net, levels=LEVELS, in_channels=1)
    drawn = assert_exact_on_every_executor(fast, 3, (3, 4))
    assert len(drawn.unique()) > 1
    program = fast.compile(3, (3, 4))
    images = random_images(3, (1, 3, 4), LEVELS)
    with torch.no_grad():
        exact = net.double()(fast.table()[images.long()]).unsqueeze(2)
        theirs = net.float()(fast.table()[images.long()]).unsqueeze(2)
    allowed = 4 * (theirs - exact).abs().max() + 2e-6 * exact.abs().max()
    for logits in (sampling.teacher_forced(program, images, "cpu"), logits_from_poisoned_memory(program, images)):
        assert (logits - exact).abs().max() <= allowed


def transformer_like(net, y):
    """A block as in image transformers, without its attention: norm, wide layer, GELU, gate, residual."""
    last = y.permute(0, 2, 3, 1)
    y = y + (F.gelu(net.norm(last) @ net.matrix) * net.rms(last).softmax(-1)).permute(0, 3, 1, 2)
    return torch.where(y > y.mean(1, keepdim=True), y, 0.3 * y)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (4, 7)])
def test_images_of_every_shape_are_sampled_exactly(size):
    fast = genkernels.fast_sampler(made(transformer_like), levels=LEVELS, in_channels=1)
    for n in (1, 5):
        assert_exact_on_every_executor(fast, n, size)


# --- colours ----------------------------------------------------------------------------------------------------


class Coloured(nn.Module):
    """Features of three colours, each of whose groups sees the colours before it; ``body`` keeps the groups apart."""

    def __init__(self, body, out=3 * LEVELS):
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.first = MaskedConv2d(3, 9, 3, mask_type="A", channel_groups=3)
        self.second = MaskedConv2d(9, 9, 3, mask_type="B", channel_groups=3)
        self.out = MaskedConv2d(9, out, 1, mask_type="B", channel_groups=3)
        self.norm = nn.LayerNorm(3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)

    def forward(self, x):
        y = self.body(self, self.first(x).unflatten(1, (3, 3))).flatten(1, 2)  # [N, colour, feature, H, W]
        return self.out(self.second(y)).unflatten(1, (3, LEVELS)).transpose(1, 2)


COLOURED = {
    "softmax of each colour": lambda net, y: y.softmax(2),
    "layer norm of each colour": lambda net, y: net.norm(y.permute(0, 3, 4, 1, 2)).permute(0, 3, 4, 1, 2),
    "the largest of each colour": lambda net, y: y - y.amax(2, keepdim=True),
    "where": lambda net, y: torch.where(y > 0, y, y.mean(2, keepdim=True)),
}


@pytest.mark.parametrize("name", COLOURED)
def test_groups_of_channels_are_ready_when_their_colour_is(name):
    fast = genkernels.fast_sampler(Coloured(COLOURED[name]).eval(), levels=LEVELS, in_channels=3)
    assert_exact_on_every_executor(fast, 3, (3, 4))
    across = [i for i in fast.compile(2, (3, 4)).instructions() if isinstance(i, Across)]
    assert sorted(i.phase for i in across) == [0, 1, 2] or name == "where"


def test_log_softmax_of_the_logits_is_sampled():
    class Normalised(Coloured):
        def forward(self, x):
            return super().forward(x).log_softmax(1)

    fast = genkernels.fast_sampler(Normalised(lambda net, y: y.relu()).eval(), levels=LEVELS, in_channels=3)
    assert_exact_on_every_executor(fast, 3, (3, 4))


def test_a_function_across_colours_that_come_later_is_refused():
    with pytest.raises(
        sampling.NotTraceable,
        match="the logits of colour 0 depend on colour 1 of the same pixel, which layer 'first' lets through",
    ):
        genkernels.fast_sampler(Coloured(lambda net, y: y.softmax(1)).eval(), levels=LEVELS, in_channels=3)


# --- what it costs ----------------------------------------------------------------------------------------------


def program_of(body):
    return genkernels.fast_sampler(made(body), levels=LEVELS, in_channels=1).compile(2, (4, 5))


def at_a_pixel(program):
    return [i for i in program.instructions() if i.phase != ROW]


def test_a_layer_norm_before_a_linear_layer_is_one_instruction():
    program = program_of(channels_last(lambda net, y: net.norm(y) @ net.matrix))
    kinds = [type(i) for i in at_a_pixel(program)]
    assert kinds.count(Across) == 1 and Pointwise not in kinds


def test_a_layer_norm_before_padding_keeps_its_shift_apart():
    """The zeros around a normalised image are not shifted: its gain and shift are one instruction of their own."""
    program = program_of(channels_last(lambda net, y: net.norm(y)))
    assert [i.function.name for i in at_a_pixel(program) if isinstance(i, Pointwise)] == ["multiply_add"]


def test_one_channel_that_all_others_meet_is_one_span():
    program = program_of(lambda net, y: (y * torch.sigmoid(net.gate(y)) - y.mean(1, keepdim=True)).exp())
    met = [i for i in at_a_pixel(program) if isinstance(i, Pointwise) and len(i.operands) > 1]
    assert len(met) == 2
    for instruction in met:
        assert [read.channels for read in instruction.operands] == [((0, WIDTH),), ((0, 1),)]


def test_what_reads_rows_above_alone_is_computed_before_the_row():
    def shifted(net, y):
        above = F.pad(y, (0, 0, 1, 0))[:, :, :-1]
        return y + net.prelu(above.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2))

    program = program_of(shifted)
    assert [i.phase for i in program.instructions() if isinstance(i, Across)] == [ROW]
    assert "softmax(1 x 6 channels of v" in str(program)


# --- every function, every size of a group ----------------------------------------------------------------------

GROUP_FUNCTIONS = [Function("softmax"), Function("log_softmax"), Function("standardise", (1e-5,)), Function("sum")]
GROUP_FUNCTIONS += [Function("mean"), Function("max"), Function("logsumexp"), Function("variance", (1.0,))]


def across_program(numbers, function):
    """Images of one pixel: a function of given numbers [n, groups, size], its results as logits."""
    n, groups, size = numbers.shape
    program = constant_program(numbers.flatten(1))
    results = 1 if function.name in REDUCE else size
    spans = tuple((g * size, (g + 1) * size) for g in reversed(range(groups)))
    across = Across(
        "across", 0, 2, tuple((g * results, (g + 1) * results) for g in reversed(range(groups))), function,
        Read(1, 0, 0, spans),
    )  # fmt: skip
    channels = groups * results
    values = (*program.values[:2], Value(2, "logits", channels, (0,) * channels, 0, (0, 1)))
    return replace(
        program, values=values, distribution=Categorical(channels, 1), table=torch.linspace(0, 1, channels),
        steps=((across, program.steps[0][1]), ()), cache={},
    )  # fmt: skip


def on_native_executors(program, images, monkeypatch):
    monkeypatch.setattr(cuda, "DEVICE_TYPE", "cpu")
    monkeypatch.setattr(cuda, "device_of", lambda t: cuda_emulated.device())
    return [sampling.teacher_forced(program, images, backend).flatten(1) for backend in ("cpu", "cuda")]


@pytest.mark.parametrize("function", GROUP_FUNCTIONS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 7, 8, 16, 17, 33, 100])
def test_every_function_across_channels_is_exact_for_every_size_of_a_group(function, size, monkeypatch):
    torch.manual_seed(0)
    numbers = 3 * torch.randn(5, 3, size) + torch.tensor([0.0, 1.0, 1000.0])[:, None]
    images = torch.zeros(5, 1, 1, 1, dtype=torch.uint8)
    exact = evaluate_across(function, numbers.double()).flatten(1)
    theirs = evaluate_across(function, numbers).flatten(1)
    allowed = 4 * (theirs - exact).abs().max() + 1e-6 * exact[exact.isfinite()].abs().max() if size > 1 else 1e-3
    for ours in on_native_executors(across_program(numbers, function), images, monkeypatch):
        assert torch.equal(ours.isnan(), exact.isnan())
        assert (ours - exact).nan_to_num().abs().max() <= allowed


@pytest.mark.parametrize("function", GROUP_FUNCTIONS, ids=str)
def test_nan_and_infinity_go_where_pytorch_lets_them(function, monkeypatch):
    inf, nan = torch.inf, torch.nan
    groups = torch.tensor([
        [nan, 1, 2, 3, 4], [1, 2, 3, 4, nan], [inf, 1, 2, 3, 4], [-inf, 1, 2, 3, 4], [-inf] * 5, [inf, -inf, 1, 2, 3],
        [0, -50, -95, -101, -200], [1e15, 3e18, 1, 2, 3], [nan, inf, -inf, 1, 2], [88, 89, 90, -300, 0],
    ])  # fmt: skip
    expected = evaluate_across(function, groups).flatten()
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    for ours in on_native_executors(across_program(groups[None], function), images, monkeypatch):
        assert torch.allclose(ours[0], expected, rtol=1e-4, atol=1e-44, equal_nan=True), (ours, expected)


# --- what is refused --------------------------------------------------------------------------------------------

REFUSED = {
    "a mean over rows and columns": (
        lambda net, y: y - y.mean((2, 3), keepdim=True),
        r"layer 'mean': aten::mean over dimensions 2, 3 of \[\d, 6, 6, 7\] mixes pixels",
    ),
    "a softmax over columns": (
        lambda net, y: y.softmax(3), r"layer '_softmax': aten::_softmax over dimension 3 of .* mixes pixels",
    ),
    "a maximum over rows of channels that come last": (
        channels_last(lambda net, y: y - y.amax(1, keepdim=True)), r"aten::amax over dimension 1 of .* mixes pixels",
    ),
    "a layer norm over the image": (
        lambda net, y: F.layer_norm(y, y.shape[1:]),
        r"aten::native_layer_norm over dimensions 1, 2, 3 of \[\d, 6, 6, 7\] mixes pixels",
    ),
    "a group norm": (
        lambda net, y: F.group_norm(y, 2), "layer 'native_group_norm': aten::native_group_norm mixes pixels: it takes",
    ),
    "an instance norm": (lambda net, y: F.instance_norm(y), "layer 'instance_norm': instance_norm mixes pixels"),
    "a mean over the batch": (
        lambda net, y: y - y.mean(0, keepdim=True), "aten::mean over dimension 0 of .* mixes the images of a batch",
    ),
    "a sum of everything": (lambda net, y: y / y.sum(), "aten::sum over dimensions 0, 1, 2, 3 of .* mixes the images"),
    "truth values in a convolution": (
        lambda net, y: net.gate(y > 0) * y, "layer 'gate': aten::convolution of torch.bool; turn it into torch.float32",
    ),
    "elements picked by a condition": (
        lambda net, y: y[y > 0].sum() + y, "picks elements by truth values that depend on the image",
    ),
    "numbers set by a condition": (
        lambda net, y: y.clone().index_put_((y > 0,), y.flatten()), "index_put_ at places that depend on the image",
    ),
    "bits of numbers": (
        lambda net, y: y * ((y > 0).long() & 3), "aten::bitwise_and on bits; of truth values alone, got torch.int64",
    ),
    "bytes": (lambda net, y: y * (y > 0).byte(), "changes the dtype from torch.bool to torch.uint8"),
    "another precision": (lambda net, y: y * (y > 0).double(), "changes the dtype from torch.bool to torch.float64"),
    "a norm of another order": (lambda net, y: y / y.norm(3, 1, keepdim=True), "a norm of order 3"),
    "a random activation": (lambda net, y: F.rrelu(y), "draws random numbers"),
    "a matrix of the image": (
        lambda net, y: torch.bmm(y.flatten(2), y.flatten(2).transpose(1, 2)), "the weight depends on the image",
    ),
    "a matrix for each image": (
        lambda net, y: torch.bmm(net.blocks.repeat(1, 2, 2), y.flatten(2)).view_as(y), "a matrix for each image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_pixels_or_cannot_be_known_is_refused_with_the_layer_and_the_reason(name):
    body, message = REFUSED[name]
    net = made(body)
    with pytest.raises(sampling.NotTraceable, match=message):
        sampling.compile_program(net, lambda x, _: net(x), (2, 1, 6, 7), torch.linspace(0, 1, LEVELS))
