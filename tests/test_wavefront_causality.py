"""The recurrent layers and PixelRNN: no future sub-pixel is reached, and, on diagonals, no past one missed."""

import itertools

import pytest
import torch
from helpers.causality import colours_of_features, future_reached, jacobian_pattern, make_transparent, past, past_missed
from helpers.wavefront_variants import VARIANTS, correct
from torch import Tensor, nn

from genkernels.models import PixelRNN
from genkernels.nn import DiagonalBiLSTM, RowLSTM
from genkernels.ops import diagonal_bilstm

pytestmark = pytest.mark.usefixtures("one_thread")


def up_to_itself(colours: int, height: int, width: int) -> Tensor:
    """The pattern of a mask-B layer that sees everything up to its own sub-pixel, itself included."""
    own = torch.eye(colours * height * width, dtype=torch.bool)
    return past(colours, height, width) | own.view(colours, height, width, colours, height, width)


def leaks_and_misses(pattern: Tensor) -> tuple[int, int]:
    """Of a mask-B layer."""
    allowed = up_to_itself(*pattern.shape[:3])
    return int((pattern & ~allowed).sum()), int((allowed & ~pattern).sum())


def of_gates(recurrence, *, random_signs: bool = False):
    """A layer of one channel from a function of two gates [N, 4h, H, W] and the weights of public code."""
    generator = torch.Generator().manual_seed(0)
    units = 3

    def weights(*shape: int) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        return values - 0.5 if random_signs else values * 0.3 + 0.1

    to_gates, states = weights(2, 4 * units, 1), weights(2, 4 * units, units, 2)

    def layer(x: Tensor) -> Tensor:
        left, right = (torch.einsum("oc,nchw->nohw", to_gates[k], x) for k in range(2))
        return recurrence(left, right, (states[0], states[1])).sum(1, keepdim=True).unsqueeze(1)

    return layer


def ours(left: Tensor, right: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    # Kernel index 1 of public code is the pixel beside, index 0 the pixel above.
    return diagonal_bilstm(left, right, *(w.permute(2, 0, 1).flip(0) for w in weights))


# --- the seven ways of public code ------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.__name__)
def test_the_instrument_finds_in_each_variant_what_is_wrong_with_it(variant):
    assert int(up_to_itself(1, 7, 7).sum()) == 1225
    assert leaks_and_misses(jacobian_pattern(of_gates(variant), (1, 7, 7))) == VARIANTS[variant]


@pytest.mark.parametrize("size", [(7, 7), (4, 6), (6, 3), (1, 5), (5, 1)])
def test_ours_reaches_what_it_should_and_nothing_else(size):
    assert leaks_and_misses(jacobian_pattern(of_gates(ours), (1, *size))) == (0, 0)
    assert leaks_and_misses(jacobian_pattern(of_gates(ours, random_signs=True), (1, *size)))[0] == 0


@pytest.mark.parametrize("size", [(7, 7), (4, 6), (6, 3), (1, 5), (5, 1)])
def test_ours_computes_what_the_correct_loop_computes(size):
    x = torch.randn(2, 1, *size, dtype=torch.float64)
    torch.testing.assert_close(of_gates(ours)(x), of_gates(correct)(x), rtol=1e-12, atol=1e-12)


# --- the layers -------------------------------------------------------------------------------------------

WIDTHS = [(1, 1, 4), (3, 3, 16), (3, 7, 8), (2, 5, 3), (3, 6, 6)]  # colours, channels in, units


def coloured(layer: nn.Module, colours: int, channels: int):
    """The layer as a function of colours: every channel gets the colour of its block."""
    block = torch.arange(channels) * colours // channels
    return colours_of_features(lambda x: layer(x[:, block]), colours)


@pytest.mark.parametrize("colours, channels, units", WIDTHS)
@pytest.mark.parametrize("size", [(4, 5), (3, 2)])
def test_a_diagonal_layer_reaches_all_up_to_its_own_sub_pixel_and_nothing_else(colours, channels, units, size):
    layer = make_transparent(DiagonalBiLSTM(channels, units, channel_groups=colours, learned_state=True))
    pattern = jacobian_pattern(coloured(layer, colours, channels), (colours, *size))
    assert torch.equal(pattern, up_to_itself(colours, *size))


def row_lstm_reach(colours: int, height: int, width: int, mask_type: str) -> Tensor:
    """What a Row LSTM should reach: through the input, own and left; through the state, a triangle above."""
    pattern = torch.zeros(colours, height, width, colours, height, width, dtype=torch.bool)
    for c, y, x in itertools.product(range(colours), range(height), range(width)):
        for p, q in itertools.product(range(y + 1), range(width)):
            if p < y:
                # A state p rows below sees cells up to y - p columns beside it, and each of them its left neighbour.
                # The cell whose state it is may see all of its own colours: what follows mixes them.
                for d in range(colours):
                    cells = [k for k in range(width) if abs(k - x) <= y - p]
                    centre = q in cells and (mask_type == "B" or d < colours - 1)
                    pattern[c, y, x, d, p, q] = centre or q + 1 in cells
            elif q == x - 1:
                pattern[c, y, x, :, p, q] = True
            elif q == x:
                pattern[c, y, x, : c + (mask_type == "B"), p, q] = True
    return pattern


@pytest.mark.parametrize("colours, channels, units", WIDTHS)
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("size", [(4, 6), (5, 2)])
def test_a_row_layer_reaches_a_triangle_above_it_and_nothing_else(colours, channels, units, mask_type, size):
    layer = make_transparent(RowLSTM(channels, units, channel_groups=colours, mask_type=mask_type, learned_state=True))
    pattern = jacobian_pattern(coloured(layer, colours, channels), (colours, *size))
    assert torch.equal(pattern, row_lstm_reach(colours, *size, mask_type))
    assert leaks_and_misses(pattern)[0] == 0


@pytest.mark.parametrize("layer", [DiagonalBiLSTM, RowLSTM])
def test_random_weights_of_both_signs_reach_no_future_sub_pixel(layer):
    torch.manual_seed(0)
    pattern = jacobian_pattern(colours_of_features(layer(3, 16, channel_groups=3).double(), 3), (3, 4, 5))
    assert leaks_and_misses(pattern)[0] == 0


def test_gates_whose_colours_are_grouped_in_one_row_are_caught():
    """As one masked convolution to 4h channels would group them: blocks of 4h, not of each h."""
    layer = DiagonalBiLSTM(3, 16, channel_groups=3)
    for walk in (layer.left, layer.right):
        walk.input_to_state.unit_groups = 1
        walk.input_to_state.channel_groups = 3
    pattern = jacobian_pattern(colours_of_features(make_transparent(layer), 3), (3, 2, 2))
    assert leaks_and_misses(pattern)[0] > 0


# --- the model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colours, hidden", [(1, 5), (3, 8), (3, 16)])
@pytest.mark.parametrize("height, width", [(4, 6), (6, 3), (2, 13)])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_diagonal_pixelrnn_sees_all_that_is_past_and_nothing_else(colours, hidden, height, width, layers):
    model = make_transparent(PixelRNN(colours, hidden, layers, 3, head_channels=7))
    pattern = jacobian_pattern(model, (colours, height, width))
    assert (future_reached(pattern), past_missed(pattern)) == (0, 0)


@pytest.mark.parametrize("colours, hidden", [(1, 5), (3, 8), (3, 16)])
@pytest.mark.parametrize("height, width", [(4, 6), (6, 3), (2, 13)])
def test_a_row_pixelrnn_sees_no_future(colours, hidden, height, width):
    model = make_transparent(PixelRNN(colours, hidden, 2, 3, recurrence="row", head_channels=7))
    assert future_reached(jacobian_pattern(model, (colours, height, width))) == 0


@pytest.mark.parametrize("recurrence", ["row", "diagonal"])
def test_the_default_pixelrnn_with_its_random_weights_sees_no_future(recurrence):
    torch.manual_seed(0)
    model = PixelRNN(recurrence=recurrence).double()
    assert future_reached(jacobian_pattern(model, (1, 7, 7))) == 0


def test_without_its_column_of_zeros_a_pixelrnn_would_miss_the_last_pixel_of_the_row_above():
    """As the docstring of PixelRNN says; this is why that column is there."""
    model = make_transparent(PixelRNN(1, 4, 2, 2))

    def bare(x: Tensor) -> Tensor:
        return model.layers(x).unsqueeze(2)

    missed = past(1, 5, 9) & ~jacobian_pattern(bare, (1, 5, 9))
    expected = torch.zeros_like(missed)
    for y, x in itertools.product(range(1, 5), range(5)):
        expected[0, y, x, 0, y - 1, 8] = True  # the first layer reaches three columns to the right
    assert torch.equal(missed, expected)
