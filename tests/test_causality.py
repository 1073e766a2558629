"""No sub-pixel depends on itself or a later one, and on every earlier one that a chain of taps leads to."""

import pytest
import torch
from helpers.causality import (
    colours_of_features,
    future_reached,
    jacobian_pattern,
    make_transparent,
    past,
    past_missed,
    reachable,
)
from torch import nn

from genkernels.models import PixelCNN
from genkernels.nn import MaskedConv2d


def masked_stack(colours: int, features: int, *layers: tuple[int, str]) -> nn.Sequential:
    widths = [colours] + [features] * len(layers)
    return nn.Sequential(
        *(
            MaskedConv2d(inputs, outputs, size, mask_type=mask_type, channel_groups=colours, activation="relu")
            for inputs, outputs, (size, mask_type) in zip(widths, widths[1:], layers, strict=False)
        )
    )


# --- the layer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colours, features", [(1, 5), (2, 5), (3, 3), (3, 8), (3, 64)])
@pytest.mark.parametrize("layers", [((7, "A"),), ((3, "A"), (3, "B")), ((5, "A"), (1, "B"), (3, "B"))], ids=str)
def test_a_stack_of_masked_layers_reaches_exactly_what_its_taps_lead_to(layers, colours, features):
    shape = (colours, 4, 6)
    stack = make_transparent(masked_stack(colours, features, *layers))
    pattern = jacobian_pattern(colours_of_features(stack, colours), shape)
    assert torch.equal(pattern, reachable(layers, *shape))
    assert future_reached(pattern) == 0


def test_random_weights_of_both_signs_reach_no_future_sub_pixel():
    torch.manual_seed(0)
    stack = masked_stack(3, 64, (7, "A"), (3, "B"), (3, "B")).double()
    assert future_reached(jacobian_pattern(colours_of_features(stack, 3), (3, 5, 4))) == 0


# --- the model ------------------------------------------------------------------------------------------

MODELS = {
    "plain": {},
    "residual": {"residual": True},
    "with a head": {"head_channels": 10},
    "residual with a head": {"residual": True, "head_channels": 10},
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("colours, hidden", [(1, 7), (3, 8), (3, 64)])
@pytest.mark.parametrize("height, width", [(4, 6), (6, 3)])
def test_pixelcnn_reaches_exactly_what_its_taps_lead_to(options, colours, hidden, height, width):
    model = make_transparent(PixelCNN(colours, hidden, 2, 3, **options))
    pattern = jacobian_pattern(model, (colours, height, width))
    assert torch.equal(pattern, reachable([(7, "A"), (3, "B"), (3, "B")], colours, height, width))
    assert future_reached(pattern) == 0


def test_the_default_pixelcnn_misses_245_of_the_3240_past_pixels_on_9x9_as_its_cone_predicts():
    model = make_transparent(PixelCNN(hidden_channels=4, levels=2))
    pattern = jacobian_pattern(model, (1, 9, 9))
    assert int(past(1, 9, 9).sum()) == 3240
    assert future_reached(pattern) == 0
    assert past_missed(pattern) == 245


def test_more_layers_do_not_shrink_the_blind_spot():
    patterns = [reachable([(7, "A")] + [(3, "B")] * depth, 1, 9, 9) for depth in (4, 5, 7, 12)]
    assert [past_missed(pattern) for pattern in patterns] == [375, 245, 245, 245]


def test_each_colour_sees_the_colours_before_it_in_its_own_pixel():
    model = make_transparent(PixelCNN(3, 64, 2, 4))
    pattern = jacobian_pattern(model, (3, 2, 3))
    inside = torch.stack([pattern[:, i, j, :, i, j] for i in range(2) for j in range(3)])
    assert torch.equal(inside, torch.ones(3, 3).tril(-1).bool().expand(6, 3, 3))


# --- the instrument itself ------------------------------------------------------------------------------


def replace_layer(model: PixelCNN, index: int, layer: nn.Module) -> PixelCNN:
    model.layers[index] = layer
    return model


def test_a_first_layer_that_sees_its_own_pixel_is_caught():
    leaking = MaskedConv2d(1, 6, 7, mask_type="B", activation="relu")
    model = make_transparent(replace_layer(PixelCNN(1, 6, 2, 3), 0, leaking))
    assert future_reached(jacobian_pattern(model, (1, 4, 5))) == 4 * 5  # every pixel, itself


def test_a_layer_without_a_mask_is_caught():
    model = replace_layer(PixelCNN(1, 6, 2, 3), 1, nn.Conv2d(6, 6, 3, padding=1))
    torch.manual_seed(0)
    assert future_reached(jacobian_pattern(model.double(), (1, 4, 5))) > 0
    assert future_reached(jacobian_pattern(make_transparent(model), (1, 4, 5))) > 0


def test_colours_that_are_not_grouped_are_caught():
    ungrouped = MaskedConv2d(8, 8, 3, mask_type="B", activation="relu")
    model = make_transparent(replace_layer(PixelCNN(3, 8, 2, 3), 1, ungrouped))
    pattern = jacobian_pattern(model, (3, 4, 5))
    assert future_reached(pattern) == 4 * 5 * 3  # in every pixel R sees R and G, and G sees G


def test_groups_laid_out_in_two_ways_in_one_model_are_caught():
    interleaved = MaskedConv2d(8, 8, 3, mask_type="B", channel_groups=3, group_layout="interleaved")
    model = make_transparent(replace_layer(PixelCNN(3, 8, 2, 3), 1, interleaved))
    assert future_reached(jacobian_pattern(model, (3, 4, 5))) > 0


def test_a_smaller_kernel_is_caught_as_past_pixels_missed():
    model = make_transparent(PixelCNN(1, 6, 2, 3, kernel_size=1))
    pattern = jacobian_pattern(model, (1, 4, 12))
    assert past_missed(pattern) > past_missed(reachable([(7, "A"), (3, "B"), (3, "B")], 1, 4, 12))
    assert torch.equal(pattern, reachable([(7, "A"), (1, "B"), (1, "B")], 1, 4, 12))
