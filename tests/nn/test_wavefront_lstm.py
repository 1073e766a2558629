"""`nn.RowLSTM` and `nn.DiagonalBiLSTM`: their parameters, their parts put together, and weights of public versions."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.wavefront_variants import flip, shift_down, skew, unskew
from torch import Tensor

from genkernels.nn import DiagonalBiLSTM, RowLSTM
from genkernels.nn.gate_conv import GateConv2d
from genkernels.ops import diagonal_bilstm, masked_conv2d, row_lstm
from genkernels.ops.wavefront_lstm.converters import reorder_gates, state_from_conv1d

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = [RowLSTM, DiagonalBiLSTM]


# --- the parts put together ---


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("shape", [(2, 4, 6, 7), (4, 6, 7)])
def test_a_row_layer_is_its_convolution_and_its_walk(mask_type, shape):
    layer, x = RowLSTM(4, 5, mask_type=mask_type, learned_state=True), torch.randn(shape)
    walk = layer.walk
    gates = masked_conv2d(x, walk.input_to_state.weight, walk.input_to_state.bias, mask_type=mask_type)
    assert walk.input_to_state.weight.shape == (20, 4, 1, 3)
    torch.testing.assert_close(layer(x), row_lstm(gates, walk.state_weight, walk.h0, walk.c0))


@pytest.mark.parametrize("shape", [(2, 4, 6, 7), (4, 6, 7)])
def test_a_diagonal_layer_is_its_convolutions_and_its_walks(shape):
    layer, x = DiagonalBiLSTM(4, 5, learned_state=True), torch.randn(shape)
    walks = layer.left, layer.right
    gates = [masked_conv2d(x, w.input_to_state.weight, w.input_to_state.bias, mask_type="B") for w in walks]
    states = [s for w in walks for s in (w.h0, w.c0)]
    assert walks[0].input_to_state.weight.shape == (20, 4, 1, 1)
    torch.testing.assert_close(layer(x), diagonal_bilstm(*gates, *(w.state_weight for w in walks), *states))


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("kernel", [(1, 1), (1, 3)])
@pytest.mark.parametrize("channels, units, groups", [(3, 16, 3), (7, 8, 3), (6, 6, 3), (5, 3, 2)])
def test_each_gate_has_the_colours_of_the_units(channels, units, groups, kernel, mask_type):
    """One convolution to 4h channels gives what four to h channels, each with its colour groups, give."""
    conv = GateConv2d(channels, units, kernel, gates=4, mask_type=mask_type, channel_groups=groups)
    x = torch.randn(2, channels, 4, 5)
    weights, biases = conv.weight.chunk(4), conv.bias.chunk(4)
    expected = torch.cat(
        [
            masked_conv2d(x, weight, bias, mask_type=mask_type, channel_groups=groups)
            for weight, bias in zip(weights, biases, strict=True)
        ],
        1,
    )
    torch.testing.assert_close(conv(x), expected)
    conv(x).square().sum().backward()
    assert (conv.weight.grad != 0).equal(conv.live_taps() != 0)


@pytest.mark.parametrize("layer", LAYERS)
def test_checkpoint_changes_no_gradient(layer):
    torch.manual_seed(0)
    kept = layer(3, 8, channel_groups=3, learned_state=True)
    again = layer(3, 8, channel_groups=3, learned_state=True, checkpoint=True)
    again.load_state_dict(kept.state_dict())
    x = torch.randn(2, 3, 5, 6)
    for module in (kept, again):
        module(x).square().sum().backward()
    for one, other in zip(kept.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_parameter_is_trained(layer):
    module = layer(3, 8, learned_state=True)
    before = copy.deepcopy(module.state_dict())
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        module(torch.randn(2, 3, 5, 6)).square().mean().backward()
        optimiser.step()
    for name, value in module.state_dict().items():
        assert not value.equal(before[name]), name


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dtype_and_memory_format_follow_the_input(layer, dtype, memory_format):
    module = layer(3, 8, channel_groups=3, dtype=dtype)
    x = torch.randn(2, 3, 5, 6).to(dtype).to(memory_format=memory_format)
    y = module(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("layer", LAYERS)
def test_on_the_meta_device_it_tells_the_shape_of_its_result(layer):
    y = layer(3, 8, channel_groups=3, device="meta")(torch.empty(2, 3, 6, 7, device="meta"))
    assert (y.device.type, y.shape) == ("meta", (2, 8, 6, 7))


# --- parameters and copies ---


def test_the_forget_gate_starts_open_and_the_states_at_zero():
    walk = RowLSTM(3, 8, learned_state=True).walk
    assert walk.input_to_state.bias.chunk(4)[1].eq(1).all()
    assert walk.input_to_state.bias.sum() == 8
    assert not walk.h0.any() and not walk.c0.any()
    assert 0 < walk.state_weight.abs().max() <= (3 * 8) ** -0.5


@pytest.mark.parametrize("learned_state", [False, True])
def test_the_state_dict_names_every_part(learned_state):
    walk = ["state_weight", *(["h0", "c0"] if learned_state else []), "input_to_state.weight", "input_to_state.bias"]
    assert list(RowLSTM(3, 8, learned_state=learned_state).state_dict()) == [f"walk.{name}" for name in walk]
    both = [f"{side}.{name}" for side in ("left", "right") for name in walk]
    assert list(DiagonalBiLSTM(3, 8, learned_state=learned_state, channel_groups=3).state_dict()) == both


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_computes_the_same_and_shares_nothing(way, layer):
    module, x = layer(3, 8, channel_groups=3, learned_state=True), torch.randn(2, 3, 6, 7)
    module(x).sum().backward()  # a layer that has been used
    twin = way(module)
    assert repr(twin) == repr(module)
    expected = module(x)
    assert twin(x).equal(expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert module(x).equal(expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_state_dict_makes_another_layer_the_same(layer):
    source, target = layer(3, 8, learned_state=True), layer(3, 8, learned_state=True)
    target.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 6, 7)
    assert target(x).equal(source(x))


# --- weights of public versions ---


def gate_values(before: Tensor, c: Tensor, order: str) -> tuple[Tensor, Tensor]:
    """(h, c) of an LSTM cell whose gates stand in the given order."""
    gate = {
        name: part.tanh() if name == "g" else part.sigmoid()
        for name, part in zip(order, before.chunk(4, 1), strict=True)
    }
    c = gate["f"] * c + gate["i"] * gate["g"]
    return gate["o"] * c.tanh(), c


def public_row_lstm(x: Tensor, conv: torch.nn.Conv1d, state: torch.nn.Conv1d, order: str) -> Tensor:
    """Loop over rows: a masked Conv1d(in, 4h, 3) of the row, and a Conv1d(h, 4h, 3) of the state."""
    mask = torch.tensor([1.0, 1.0, 0.0], dtype=x.dtype)
    h = c = x.new_zeros(x.shape[0], state.in_channels, x.shape[3])
    rows = []
    for row in x.unbind(2):
        h, c = gate_values(F.conv1d(row, conv.weight * mask, conv.bias, padding=1) + state(h), c, order)
        rows.append(h)
    return torch.stack(rows, 2)


def public_diagonal_lstm(x: Tensor, conv: torch.nn.Conv2d, state: torch.nn.Conv1d, order: str, clean: bool) -> Tensor:
    """Skew, loop over columns, unskew: a Conv2d(in, 4h, 1), and a Conv1d(h, 4h, 2) padded on top.

    ``clean`` sets the state outside the image back to zero after every column.
    """
    skewed, inside = skew(conv(x)), skew(torch.ones_like(x[:, :1]))
    h = c = x.new_zeros(x.shape[0], state.in_channels, x.shape[2])
    columns = []
    for column, here in zip(skewed.unbind(3), inside.unbind(3), strict=True):
        h, c = gate_values(column + state(F.pad(h, (1, 0))), c, order)
        if clean:
            h, c = h * here, c * here
        columns.append(h)
    return unskew(torch.stack(columns, 3), x.shape[3])


ORDERS = ["ifgo", "ofig", "ifog", "gofi"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("two_dimensional", [True, False])
def test_a_public_row_lstm_becomes_a_row_layer(order, bias, two_dimensional):
    conv = torch.nn.Conv1d(3, 20, 3, bias=bias).double()
    state = torch.nn.Conv1d(5, 20, 3, padding=1, bias=bias).double()
    weight = conv.weight.unsqueeze(2) if two_dimensional else conv.weight
    layer = RowLSTM.from_conv1d_loop(weight, conv.bias, state.weight, state.bias, gate_order=order, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), public_row_lstm(x, conv, state, order), rtol=1e-12, atol=1e-12)


def public_pair(*, input_bias: bool, state_bias: bool) -> tuple[list, list]:
    convs = [torch.nn.Conv2d(3, 20, 1, bias=input_bias).double() for _ in range(2)]
    return convs, [torch.nn.Conv1d(5, 20, 2, bias=state_bias).double() for _ in range(2)]


def converted(convs: list, states: list, order: str) -> DiagonalBiLSTM:
    return DiagonalBiLSTM.from_conv1d_loop(
        *(tuple(getattr(m, kind) for m in ms) for ms in (convs, states) for kind in ("weight", "bias")),
        gate_order=order,
        dtype=torch.float64,
    )


def public_bilstm(x: Tensor, convs: list, states: list, order: str, *, clean: bool = False) -> Tensor:
    left = public_diagonal_lstm(x, convs[0], states[0], order, clean)
    return left + shift_down(flip(public_diagonal_lstm(flip(x), convs[1], states[1], order, clean)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_public_diagonal_bilstm_becomes_a_diagonal_layer(order, bias):
    parts, x = public_pair(input_bias=bias, state_bias=False), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    expected = public_bilstm(x, *parts, order)
    torch.testing.assert_close(converted(*parts, order)(x), expected, rtol=1e-12, atol=1e-12)


def test_with_a_bias_in_the_state_part_it_is_the_loop_whose_state_stays_zero_outside_the_image():
    """The plain loop lets its state drift in the empty corners of the skewed map, and reads it at the edges."""
    parts, x = public_pair(input_bias=True, state_bias=True), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    got = converted(*parts, "ofig")(x)
    torch.testing.assert_close(got, public_bilstm(x, *parts, "ofig", clean=True), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(got, public_bilstm(x, *parts, "ofig"))


def test_gates_are_reordered_as_their_letters_say():
    blocks = {"i": 1.0, "f": 2.0, "g": 3.0, "o": 4.0}
    for order in map("".join, itertools.permutations("ifgo")):
        value = torch.cat([torch.full((2, 3), blocks[gate]) for gate in order])
        assert reorder_gates(value, order)[:, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


def test_index_0_of_a_diagonal_conv1d_is_the_row_above():
    weight = torch.stack([torch.zeros(8, 2), torch.ones(8, 2)], 2)  # 1 for its own row: the pixel beside
    assert state_from_conv1d(weight, front="diagonal")[0].eq(1).all()
    assert state_from_conv1d(weight, front="diagonal")[1].eq(0).all()


LETTERS = "gate_order: expected the letters i, f, g, o in some order; got "


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reorder_gates(torch.zeros(8), "ifo"), LETTERS + "'ifo'"),
        (lambda: reorder_gates(torch.zeros(8), "iffo"), LETTERS + "'iffo'"),
        (lambda: reorder_gates(torch.zeros(7), "ifgo"), r"value: expected four gates .*; got shape \[7\]"),
        (
            lambda: state_from_conv1d(torch.zeros(8, 2, 3), front="diagonal"),
            r"state_weight: expected \[4h, h, 2\]; got shape \[8, 2, 3\]",
        ),
        (
            lambda: state_from_conv1d(torch.zeros(8, 3, 3), front="row"),
            r"state_weight: expected \[4h, h, 3\]; got shape \[8, 3, 3\]",
        ),
        (lambda: state_from_conv1d(torch.zeros(8, 2, 3), front="up"), "front: expected 'row' or 'diagonal'; got 'up'"),
        (
            lambda: RowLSTM.from_conv1d_loop(torch.zeros(8, 3, 5), None, torch.zeros(8, 2, 3)),
            r"input_weight: expected \[8, 3, 1, 3\] in the end; got \[8, 3, 1, 5\]",
        ),
        (
            lambda: RowLSTM.from_conv1d_loop(torch.zeros(8, 3, 3), torch.zeros(4), torch.zeros(8, 2, 3)),
            r"input_bias: expected \[8\]; got \[4\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        call()


# --- bad arguments ---


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel_groups": 0}, "channel_groups: expected a whole number of at least 1; got 0"),
        ({"channel_groups": 5}, "in_channels: expected at least channel_groups = 5; got 4"),
        ({"channel_groups": 3, "hidden_channels": 2}, "hidden_channels: expected at least channel_groups = 3; got 2"),
        ({"hidden_channels": 0}, "hidden_channels: expected at least channel_groups = 1; got 0"),
    ],
)
def test_a_bad_argument_is_refused_at_construction(layer, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        layer(**{"in_channels": 4, "hidden_channels": 8} | arguments)


def test_a_bad_mask_type_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"^mask_type: expected 'A' or 'B'; got 'C'$"):
        RowLSTM(4, 8, mask_type="C")


@pytest.mark.parametrize("layer", LAYERS)
def test_a_bad_image_is_refused_by_name(layer):
    with pytest.raises(ValueError, match=r"^x: expected 4 channels.*; got shape \[2, 3, 5, 5\]$"):
        layer(4, 8)(torch.zeros(2, 3, 5, 5))
    wrong = r"^input_weight(_left)?: expected the dtype of x, torch.float64; got torch.float32$"
    with pytest.raises(TypeError, match=wrong):
        layer(4, 8)(torch.zeros(2, 4, 5, 5).double())
