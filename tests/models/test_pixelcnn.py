"""PixelCNN: an exact likelihood, whatever its options, and a model that its configuration rebuilds."""

import itertools
import math

import pytest
import torch
from helpers.likelihood import assert_probabilities_sum_to_one, every_image

from genkernels.models import PixelCNN, bits_per_dim
from genkernels.nn import MaskedConv2d

OPTIONS = {
    "plain": {},
    "residual": {"residual": True},
    "head": {"head_channels": 9},
    "residual with a head": {"residual": True, "head_channels": 9},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("channels, height, width", [(1, 2, 2), (3, 1, 1), (2, 1, 2)])
def test_the_probabilities_of_all_images_sum_to_one(options, channels, height, width):
    torch.manual_seed(0)
    model = PixelCNN(channels, 8, 2, 3, **options)
    assert_probabilities_sum_to_one(model, every_image(3, channels, height, width))


def test_the_probabilities_of_all_81_grey_2x2_images_of_3_levels_sum_to_one_in_float32_too():
    torch.manual_seed(1)
    images = every_image(3, 1, 2, 2)
    assert len(images) == 81
    assert PixelCNN(levels=3).log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels, levels", [(1, 2), (1, 256), (3, 5)])
def test_log_prob_is_the_sum_of_each_sub_pixels_log_softmax(channels, levels, memory_format):
    torch.manual_seed(0)
    model = PixelCNN(channels, 8, 2, levels).double().to(memory_format=memory_format)
    images = torch.randint(0, levels, (2, channels, 3, 4))
    logits = model(images.to(memory_format=memory_format))
    assert logits.shape == (2, levels, channels, 3, 4)
    expected = torch.zeros(2, dtype=torch.float64)
    for n, c, i, j in itertools.product(range(2), range(channels), range(3), range(4)):
        scores = [logits[n, k, c, i, j].item() for k in range(levels)]
        total = math.log(sum(math.exp(score) for score in scores))
        expected[n] += scores[images[n, c, i, j]] - total
    assert torch.allclose(model.log_prob(images), expected, rtol=1e-12)
    assert torch.allclose(model.log_prob(images.to(memory_format=memory_format)), expected, rtol=1e-12)


def test_uint8_long_and_float_images_are_the_same_images():
    model = PixelCNN(1, 8, 2, 256)
    images = torch.randint(0, 256, (2, 1, 5, 4), dtype=torch.uint8)
    expected = model.log_prob(images)
    for dtype in (torch.int64, torch.int32, torch.float32, torch.float64):
        assert torch.equal(model.log_prob(images.to(dtype)), expected)


def test_a_model_is_rebuilt_from_its_config_and_state_dict():
    options = {
        "kernel_size": 5,
        "first_kernel_size": 3,
        "residual": True,
        "head_channels": 9,
        "image_size": (4, 6),
    }
    model = PixelCNN(3, 8, 2, 7, **options)
    twin = PixelCNN(**model.config)
    twin.load_state_dict(model.state_dict())
    images = torch.randint(0, 7, (2, 3, 4, 6))
    assert torch.equal(twin(images), model(images))
    assert twin.config == model.config and twin.image_size == (4, 6)


def test_the_default_is_a_7x7_mask_a_layer_then_seven_3x3_mask_b_layers_then_1x1_to_the_levels():
    layers = list(PixelCNN().layers)
    assert all(isinstance(layer, MaskedConv2d) for layer in layers)
    shape = [
        (layer.mask_type, layer.kernel_size[0], layer.in_channels, layer.out_channels, layer.activation)
        for layer in layers
    ]
    hidden = [("B", 3, 64, 64, "relu")] * 7
    assert shape == [("A", 7, 1, 64, "relu"), *hidden, ("B", 1, 64, 256, None)]


def test_a_residual_model_has_2h_features_between_its_blocks():
    model = PixelCNN(1, 8, 3, 4, residual=True)
    widths = [tuple(layer.weight.shape[:2]) for layer in model.modules() if isinstance(layer, MaskedConv2d)]
    assert widths == [(16, 1), *[(8, 16), (8, 8), (16, 8)] * 3, (4, 16)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_features_keep_their_size_through_a_fresh_stack_of_any_depth(options):
    torch.manual_seed(0)
    for depth in (2, 9):
        logits = PixelCNN(1, 64, depth, 16, **options)(torch.randint(0, 16, (4, 1, 8, 8)))
        assert 0.05 < logits.std().item() < 5, depth


def test_a_compiled_model_gives_the_same_likelihood_and_gradients():
    torch.manual_seed(0)
    model = PixelCNN(3, 8, 1, 4)
    images = torch.randint(0, 4, (2, 3, 4, 5), dtype=torch.uint8)
    expected = model.log_prob(images)
    gradients = torch.autograd.grad(expected.sum(), list(model.parameters()))
    compiled = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")
    nats = compiled(images)
    assert torch.allclose(nats, expected, rtol=1e-5)
    for got, wanted in zip(torch.autograd.grad(nats.sum(), list(model.parameters())), gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_a_bfloat16_model_gives_its_likelihood_in_float32():
    torch.manual_seed(0)
    model = PixelCNN(1, 16, 2, 8)
    images = torch.randint(0, 8, (2, 1, 6, 6))
    expected = model.log_prob(images)
    nats = model.bfloat16().log_prob(images)
    assert nats.dtype == torch.float32
    assert torch.allclose(nats, expected, rtol=0.02)


def test_bits_per_dim_of_uniform_guessing_are_the_bits_of_a_level():
    assert bits_per_dim(3 * 32 * 32 * math.log(256), 3 * 32 * 32) == pytest.approx(8)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"in_channels": 0}, "in_channels: expected a whole number of at least 1; got 0"),
        (
            {"in_channels": 3, "hidden_channels": 2},
            "hidden_channels: expected a whole number of at least 3; got 2",
        ),
        ({"num_layers": -1}, "num_layers: expected a whole number of at least 0; got -1"),
        ({"levels": 1}, "levels: expected a whole number in 2 .. 256; got 1"),
        ({"levels": 257}, "levels: expected a whole number in 2 .. 256; got 257"),
        ({"kernel_size": 4}, "kernel_size: expected an odd number"),
        ({"first_kernel_size": 6}, "first_kernel_size: expected an odd number"),
        ({"head_channels": 0}, "head_channels: expected a whole number of at least 1; got 0"),
        ({"image_size": (3, 4, 5)}, r"image_size: expected one number or \(height, width\); got \(3, 4, 5\)"),
        ({"image_size": 0}, "image_size: expected a whole number of at least 1; got 0"),
    ],
)
def test_a_wrong_constructor_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelCNN(**arguments)
