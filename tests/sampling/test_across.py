"""Functions across the channels of a pixel: softmax, norms, sums, maxima, in other people's models and one by one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import cuda_emulated
from helpers.sampler_bodies import (
    LEVELS,
    WIDTH,
    Net,
    assert_followed,
    channels_last,
    compile_without_running,
    program_of,
)
from helpers.sampler_cases import random_images
from helpers.sampler_checks import constant_program
from helpers.sampler_exact import assert_exact_on_every_executor
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


def by_hand(net, y):
    """The layer norm of published code: over channels, of [N, C, H, W]."""
    mean = y.mean(1, keepdim=True)
    variance = (y - mean).pow(2).mean(1, keepdim=True)
    return net.gain[:, None, None] * ((y - mean) / torch.sqrt(variance + 1e-6)) + net.shift[:, None, None]


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
    "RMS norm as one operator": channels_last(
        lambda net, y: torch.ops.aten._fused_rms_norm(y, [WIDTH], net.rms.weight, 1e-5)[0]
    ),
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
    "sums without a dimension of channels": lambda net, y: (
        y / (1 + y.pow(2).sum(1).sqrt())[:, None] + y.permute(0, 2, 3, 1).amax(-1).exp().clamp(max=3).unsqueeze(1)
    ),
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


@pytest.mark.parametrize("name", ACROSS)
def test_models_with_functions_across_channels_are_sampled_as_by_full_forward_passes(name):
    assert_followed(ACROSS[name])


def transformer_like(net, y):
    """A block as in image transformers, without its attention: norm, wide layer, GELU, gate, residual."""
    last = y.permute(0, 2, 3, 1)
    y = y + (F.gelu(net.norm(last) @ net.matrix) * net.rms(last).softmax(-1)).permute(0, 3, 1, 2)
    return torch.where(y > y.mean(1, keepdim=True), y, 0.3 * y)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (4, 7)])
def test_images_of_every_shape_are_sampled_exactly(size):
    fast = genkernels.fast_sampler(Net(transformer_like), levels=LEVELS, in_channels=1)
    for n in (1, 5):
        assert_exact_on_every_executor(fast, n, size)


@pytest.mark.parametrize("width", [1, 9])
def test_signals_are_sampled_exactly(width):
    def body(net, y):  # [N, C, W], and channels last
        y = y.squeeze(2)
        return (y.softmax(1) - net.norm(y.transpose(1, 2)).transpose(1, 2) + y.mean(1, keepdim=True)).unsqueeze(2)

    fast = genkernels.fast_sampler(Net(body), random_images(2, (1, 1, 9), LEVELS), levels=LEVELS)
    assert_exact_on_every_executor(fast, 3, (1, width))


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


def test_a_constant_map_for_all_channels_is_kept_once():
    program = program_of(lambda net, y: y * torch.arange(y.shape[2] * y.shape[3]).view(y.shape[2:]).sin())
    (kept,) = (v for v in program.values if v.constant is not None)
    assert kept.constant.shape == (1, 1, 4, 5)


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
    _, groups, size = numbers.shape
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


@pytest.mark.filterwarnings("ignore:var\\(\\)")  # of one number
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
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_pixels_or_images_is_refused_with_the_layer_and_the_reason(name):
    body, message = REFUSED[name]
    with pytest.raises(sampling.NotTraceable, match=message):
        compile_without_running(body)
