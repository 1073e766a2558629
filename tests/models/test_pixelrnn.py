"""PixelRNN: an exact likelihood, whatever its options, and a model that its configuration rebuilds."""

import pytest
import torch
from helpers.likelihood import assert_drawn_from_their_own_conditionals, assert_probabilities_sum_to_one, every_image
from torch import nn

from genkernels.models import PixelRNN
from genkernels.nn import DiagonalBiLSTM, MaskedConv2d, RowLSTM

OPTIONS = {
    "diagonal": {"recurrence": "diagonal"},
    "row": {"recurrence": "row"},
    "diagonal without learned states": {"learned_state": False},
    "row checkpointed": {"recurrence": "row", "checkpoint": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("channels, height, width", [(1, 2, 2), (3, 1, 1), (2, 1, 2)])
def test_the_probabilities_of_all_images_sum_to_one(options, channels, height, width):
    torch.manual_seed(0)
    model = PixelRNN(channels, 8, 2, 3, **options)
    assert_probabilities_sum_to_one(model, every_image(3, channels, height, width))


@pytest.mark.parametrize("recurrence", ["row", "diagonal"])
def test_the_probabilities_of_all_81_grey_2x2_images_of_3_levels_sum_to_one_in_float32_too(recurrence):
    torch.manual_seed(1)
    images = every_image(3, 1, 2, 2)
    assert len(images) == 81
    model = PixelRNN(levels=3, recurrence=recurrence)
    assert model.log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("recurrence", ["row", "diagonal"])
def test_every_sub_pixel_is_drawn_from_its_own_conditional(recurrence):
    torch.manual_seed(0)
    assert_drawn_from_their_own_conditionals(PixelRNN(3, 8, 2, 4, recurrence=recurrence, image_size=(3, 4)))


def test_a_model_is_rebuilt_from_its_config_and_state_dict():
    options = {
        "recurrence": "row",
        "first_kernel_size": 5,
        "head_channels": 9,
        "learned_state": False,
        "checkpoint": True,
        "image_size": (4, 6),
    }
    model = PixelRNN(3, 8, 2, 7, **options)
    twin = PixelRNN(**model.config)
    twin.load_state_dict(model.state_dict())
    images = torch.randint(0, 7, (2, 3, 4, 6))
    assert torch.equal(twin(images), model(images))
    assert twin.config == model.config and twin.image_size == (4, 6)


@pytest.mark.parametrize("recurrence, layer", [("row", RowLSTM), ("diagonal", DiagonalBiLSTM)])
def test_the_default_is_the_papers_mnist_model(recurrence, layer):
    """7x7 mask A to 2h, seven blocks (LSTM to h, 1x1 to 2h), two times ReLU + 1x1, and 1x1 to the levels."""
    first, *blocks, relu, head, head2, last = PixelRNN(recurrence=recurrence).layers
    assert (first.mask_type, first.kernel_size, first.out_channels, first.activation) == ("A", (7, 7), 32, None)
    assert len(blocks) == 7
    for block in blocks:
        assert isinstance(block.lstm, layer)
        assert (block.lstm.in_channels, block.lstm.hidden_channels) == (32, 16)
        assert (block.up.kernel_size, block.up.in_channels, block.up.out_channels) == ((1, 1), 16, 32)
    assert isinstance(relu, nn.ReLU)
    shapes = [(conv.mask_type, conv.in_channels, conv.out_channels, conv.activation) for conv in (head, head2, last)]
    assert shapes == [("B", 32, 32, "relu"), ("B", 32, 32, "relu"), ("B", 32, 2, None)]


@pytest.mark.parametrize("recurrence", ["row", "diagonal"])
def test_a_deep_coloured_model_keeps_the_size_of_its_features_and_gradients(recurrence):
    torch.manual_seed(0)
    for depth in (2, 12, 16):
        model = PixelRNN(3, 16, depth, 256, recurrence=recurrence)
        images = torch.randint(0, 256, (2, 3, 6, 7), dtype=torch.uint8)
        logits = model(images)
        assert 0.02 < logits.std().item() < 5, depth
        (-model.log_prob(images).mean() / images[0].numel()).backward()
        norms = [layer.weight.grad.norm().item() for layer in model.modules() if isinstance(layer, MaskedConv2d)]
        assert min(norms) > 1e-5 and max(norms) < 10, depth


@pytest.mark.parametrize("recurrence", ["row", "diagonal"])
def test_checkpoint_changes_no_gradient(recurrence):
    torch.manual_seed(0)
    kept = PixelRNN(1, 8, 2, 4, recurrence=recurrence)
    again = PixelRNN(**kept.config | {"checkpoint": True})
    again.load_state_dict(kept.state_dict())
    images = torch.randint(0, 4, (2, 1, 6, 5))
    for model in (kept, again):
        model.log_prob(images).sum().backward()
    for one, other in zip(kept.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recurrence", ["row", "diagonal"])
def test_a_compiled_model_gives_the_same_likelihood_and_gradients(recurrence):
    torch.manual_seed(0)
    torch.compiler.reset()
    model = PixelRNN(3, 8, 1, 4, recurrence=recurrence)
    images = torch.randint(0, 4, (2, 3, 4, 5), dtype=torch.uint8)
    expected = model.log_prob(images)
    gradients = torch.autograd.grad(expected.sum(), list(model.parameters()))
    nats = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")(images)
    assert torch.allclose(nats, expected, rtol=1e-5)
    for got, wanted in zip(torch.autograd.grad(nats.sum(), list(model.parameters())), gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_bfloat16_model_gives_its_likelihood_in_float32():
    torch.manual_seed(0)
    model = PixelRNN(1, 16, 2, 8)
    images = torch.randint(0, 8, (2, 1, 6, 6))
    expected = model.log_prob(images)
    nats = model.bfloat16().log_prob(images)
    assert nats.dtype == torch.float32
    assert torch.allclose(nats, expected, rtol=0.02)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"in_channels": 0}, "in_channels: expected a whole number of at least 1; got 0"),
        ({"in_channels": 3, "hidden_channels": 2}, "hidden_channels: expected a whole number of at least 3; got 2"),
        ({"num_layers": -1}, "num_layers: expected a whole number of at least 0; got -1"),
        ({"levels": 1}, "levels: expected a whole number in 2 .. 256; got 1"),
        ({"recurrence": "column"}, "recurrence: expected 'row' or 'diagonal'; got 'column'"),
        ({"first_kernel_size": 6}, "first_kernel_size: expected an odd number; got 6"),
        ({"head_channels": 0}, "head_channels: expected a whole number of at least 1; got 0"),
        ({"image_size": 0}, "image_size: expected a whole number of at least 1; got 0"),
    ],
)
def test_a_wrong_constructor_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelRNN(**arguments)
