"""Gated PixelCNN: no blind spot, an exact likelihood, classes, and a model that its configuration rebuilds."""

import pytest
import torch
from helpers.causality import future_reached, jacobian_pattern, make_transparent, past, past_missed
from helpers.likelihood import (
    assert_drawn_from_their_own_conditionals,
    assert_probabilities_sum_to_one,
    every_image,
    train_a_little,
)
from helpers.tracing import assert_traceable
from torch import nn

from genkernels.models import GatedPixelCNN, PixelCNN
from genkernels.nn import MaskedConv2d
from genkernels.ops.masked_conv.reference import gate
from genkernels.train.data.sources import open_dataset, quantise

CLASSES = 5


def pattern_of(model: GatedPixelCNN, colours: int, height: int, width: int) -> torch.Tensor:
    if model.num_classes is None:
        return jacobian_pattern(model, (colours, height, width))
    label = torch.tensor([CLASSES - 1])
    return jacobian_pattern(lambda x: model(x, label.expand(len(x))), (colours, height, width))


def leaks_and_misses(model: nn.Module, colours: int, height: int, width: int) -> tuple[int, int]:
    pattern = pattern_of(make_transparent(model), colours, height, width)
    return future_reached(pattern), past_missed(pattern)


# --- causality --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, CLASSES])
@pytest.mark.parametrize("colours, hidden", [(1, 7), (2, 5), (3, 8), (3, 64)])
@pytest.mark.parametrize("height, width", [(4, 6), (6, 3)])
def test_a_pixel_sees_all_that_is_past_and_nothing_else(colours, hidden, height, width, classes):
    model = GatedPixelCNN(colours, hidden, 3, 2, num_classes=classes, head_channels=10)
    assert leaks_and_misses(model, colours, height, width) == (0, 0)


@pytest.mark.parametrize("height, width", [(1, 6), (6, 1), (2, 9)])
def test_so_it_does_on_single_rows_and_columns(height, width):
    assert leaks_and_misses(GatedPixelCNN(1, 4, 5, 2), 1, height, width) == (0, 0)


@pytest.mark.parametrize("colours", [1, 3])
def test_random_weights_of_both_signs_reach_no_future_sub_pixel(colours):
    torch.manual_seed(0)
    model = GatedPixelCNN(colours, 64, 3, 4).double()
    assert future_reached(jacobian_pattern(model, (colours, 5, 4))) == 0


@pytest.mark.parametrize("first, kernel, layers", [(3, 3, 1), (7, 3, 2), (5, 5, 1), (3, 1, 2)])
def test_its_field_of_view_is_the_rectangle_that_its_docstring_says(first, kernel, layers):
    model = make_transparent(GatedPixelCNN(1, 4, layers, 2, kernel_size=kernel, first_kernel_size=first))
    height, width = 7, 9
    radius = first // 2 + layers * (kernel // 2)
    rows, columns = torch.arange(height), torch.arange(width)
    above = rows[:, None] - rows[None]  # [i, k]
    beside = (columns[:, None] - columns[None]).abs()  # [j, l]
    inside = (above <= radius + 1)[:, None, :, None] & (beside <= radius)[None, :, None, :]
    expected = past(1, height, width)[0, :, :, 0] & inside
    pattern = jacobian_pattern(model, (1, height, width))[0, :, :, 0]
    # Left of it in the rows above, what the horizontal stack brings along comes on top.
    to_the_right = columns[None, :] >= columns[:, None]
    own_row_or_right = (above == 0)[:, None, :, None] | to_the_right[None, :, None, :]
    assert torch.equal(pattern & own_row_or_right, expected & own_row_or_right)
    assert (pattern | ~expected).all()


def test_plain_pixelcnn_has_the_blind_spot_that_the_two_stacks_close():
    """245 of the 3,240 past pixels of 9x9, with the same kernels."""
    assert leaks_and_misses(PixelCNN(1, 4, 7, 2), 1, 9, 9) == (0, 245)
    assert leaks_and_misses(GatedPixelCNN(1, 4, 7, 2), 1, 9, 9) == (0, 0)


# --- the instrument itself: what public code gets wrong is seen ---------------------------------------------


def test_a_shift_in_every_layer_leaves_55_of_1176_past_pixels_unseen():
    model = GatedPixelCNN(1, 4, 3, 2)
    for layer in model.layers[1:]:
        layer.shift = 1
    assert int(past(1, 7, 7).sum()) == 1176
    assert leaks_and_misses(model, 1, 7, 7) == (0, 55)
    assert leaks_and_misses(GatedPixelCNN(1, 4, 3, 2), 1, 7, 7) == (0, 0)


def test_no_shift_at_all_shows_the_rest_of_the_row():
    model = GatedPixelCNN(1, 4, 3, 2)
    model.layers[0].shift = 0
    leaks, _ = leaks_and_misses(model, 1, 7, 7)
    assert leaks == 7 * sum(range(1, 8))  # in each row every pixel sees itself and all to its right


def test_gates_whose_colours_are_grouped_in_one_row_are_caught():
    """As one masked convolution to 2h channels would group them: blocks of 2h, not of each h."""

    class InOneRow(MaskedConv2d):
        def forward(self, input, addend):
            return gate(super().forward(input) + addend)

    model = GatedPixelCNN(3, 64, 1, 2)
    for layer in model.layers:
        conv = layer.horizontal
        layer.horizontal = InOneRow(
            conv.in_channels, conv.out_channels, conv.kernel_size, mask_type=conv.mask_type, channel_groups=3
        )
    assert leaks_and_misses(model, 3, 2, 3)[0] > 0
    assert leaks_and_misses(GatedPixelCNN(3, 64, 1, 2), 3, 2, 3) == (0, 0)


def test_a_residual_in_the_mask_a_layer_is_caught():
    model = GatedPixelCNN(1, 1, 1, 2)
    model.layers[0].mask_type = "B"  # decides about the residual alone, once the layer is built
    assert leaks_and_misses(model, 1, 3, 4)[0] == 3 * 4  # every pixel, itself


# --- likelihood and sampling --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("channels, height, width", [(1, 2, 2), (3, 1, 1), (2, 1, 2)])
def test_the_probabilities_of_all_images_sum_to_one(channels, height, width, classes):
    torch.manual_seed(0)
    model = GatedPixelCNN(channels, 8, 1, 3, num_classes=classes, head_channels=8)
    images = every_image(3, channels, height, width)
    assert_probabilities_sum_to_one(model, images, None if classes is None else torch.tensor([2]))


def test_they_do_in_float32_at_the_default_width_too():
    torch.manual_seed(1)
    images = every_image(3, 1, 2, 2)
    assert GatedPixelCNN(levels=3).log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("classes", [None, 3])
def test_every_sub_pixel_is_drawn_from_its_own_conditional(classes):
    torch.manual_seed(0)
    model = GatedPixelCNN(3, 8, 2, 4, num_classes=classes, image_size=(3, 4))
    assert_drawn_from_their_own_conditionals(model, 2, None if classes is None else torch.tensor([0, 2]))


# --- classes ------------------------------------------------------------------------------------------------


def test_every_class_has_a_distribution_of_its_own_and_images_do_not_mix():
    torch.manual_seed(0)
    model = GatedPixelCNN(1, 16, 2, 4, num_classes=3)
    images = torch.randint(0, 4, (1, 1, 4, 5)).expand(3, 1, 4, 5)
    nats = model.log_prob(images, torch.arange(3))
    assert nats.unique().numel() == 3
    for label in range(3):
        assert torch.allclose(model.log_prob(images[:1], torch.tensor([label])), nats[label], rtol=1e-5)


def test_a_conditional_model_learns_what_the_classes_mean():
    """Images of one grey level each, which the label alone decides."""
    torch.manual_seed(0)
    labels = torch.arange(3)
    images = labels.view(3, 1, 1, 1).expand(3, 1, 3, 3)
    model = GatedPixelCNN(1, 8, 1, 3, num_classes=3, head_channels=8, image_size=3)
    train_a_little(model, images, labels, steps=60)
    assert model.log_prob(images, labels).exp().min() > 0.9
    assert model.log_prob(images, labels.roll(1)).exp().max() < 0.1
    drawn = model.sample(3, condition=labels, uniforms=torch.full((3, 1, 3, 3), 0.5))
    assert torch.equal(drawn.long(), images)


@pytest.mark.parametrize(
    "condition, message",
    [
        (None, r"condition: expected int64 labels \[2\] in 0 .. 2; got None"),
        ([0, 1], r"condition: expected int64 labels \[2\] in 0 .. 2; got \[0, 1\]"),
        (torch.zeros(2), r"condition: expected int64 labels \[2\] in 0 .. 2; got torch.float32 \[2\]"),
        (torch.zeros(3).long(), r"condition: expected int64 labels \[2\] in 0 .. 2; got torch.int64 \[3\]"),
        (torch.zeros(2, 1).long(), r"condition: expected int64 labels \[2\] in 0 .. 2; got torch.int64 \[2, 1\]"),
        (torch.tensor([0, 3]), r"condition: expected int64 labels \[2\] in 0 .. 2; got 0 .. 3"),
        (torch.tensor([-1, 1]), r"condition: expected int64 labels \[2\] in 0 .. 2; got -1 .. 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused_everywhere(condition, message):
    model = GatedPixelCNN(1, 4, 0, 2, num_classes=3, image_size=2)
    images = torch.zeros(2, 1, 2, 2)
    for call in (lambda: model(images, condition), lambda: model.log_prob(images, condition),
                 lambda: model.sample(2, condition=condition)):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{message}$"):
            call()


def test_a_model_without_classes_takes_no_labels():
    with pytest.raises(ValueError, match="condition: GatedPixelCNN takes none; got Tensor"):
        GatedPixelCNN(1, 4, 0, 2)(torch.zeros(1, 1, 2, 2), torch.tensor([0]))


# --- as a module --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 4])
def test_a_model_is_rebuilt_from_its_config_and_state_dict(classes):
    options = {
        "num_classes": classes, "kernel_size": 5, "first_kernel_size": 3, "head_channels": 9, "image_size": (4, 6),
    }  # fmt: skip
    model = GatedPixelCNN(3, 8, 2, 7, **options)
    twin = GatedPixelCNN(**model.config)
    twin.load_state_dict(model.state_dict())
    images, labels = torch.randint(0, 7, (2, 3, 4, 6)), None if classes is None else torch.tensor([3, 0])
    assert torch.equal(twin(images, labels), model(images, labels))
    assert twin.config == model.config and twin.image_size == (4, 6)


def test_the_default_is_a_7x7_mask_a_layer_then_eight_3x3_mask_b_layers_and_a_head():
    model = GatedPixelCNN()
    shapes = [(layer.mask_type, layer.kernel_size, layer.in_channels, layer.hidden_channels) for layer in model.layers]
    assert shapes == [("A", 7, 1, 64), *[("B", 3, 64, 64)] * 8]
    assert [tuple(layer.weight.shape) for layer in model.head[1:]] == [(64, 64, 1, 1)] * 2 + [(256, 64, 1, 1)]
    assert model.classes is None and all(layer.condition is None for layer in model.layers)


@pytest.mark.parametrize("classes", [None, 4])
def test_features_and_logits_are_channels_last_and_every_parameter_is_trained(classes):
    torch.manual_seed(0)
    model = GatedPixelCNN(1, 8, 2, 4, num_classes=classes)
    images, labels = torch.randint(0, 4, (4, 1, 5, 6)), None if classes is None else torch.arange(4)
    layouts = []
    for layer in model.layers:
        layer.register_forward_hook(
            lambda _, __, out: layouts.extend(y.is_contiguous(memory_format=torch.channels_last) for y in out)
        )
    model.log_prob(images, labels).sum().backward()
    assert model(images, labels).stride(1) == 1 and all(layouts)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_features_keep_their_size_through_a_fresh_stack_of_any_depth():
    torch.manual_seed(0)
    for depth in (1, 6, 16):
        model = GatedPixelCNN(3, 32, depth, 16)
        images = torch.randint(0, 16, (2, 3, 8, 8))
        assert 0.2 < model(images).std().item() < 2, depth
        (-model.log_prob(images).mean() / images[0].numel()).backward()
        norms = [layer.weight.grad.norm().item() for layer in model.modules() if isinstance(layer, nn.Conv2d)]
        assert min(norms) > 1e-5 and max(norms) < 10, depth


@pytest.mark.parametrize("colours, classes", [(1, None), (3, 4)])
def test_its_forward_pass_can_be_traced_for_sampling(colours, classes):
    model = GatedPixelCNN(colours, 8, 2, 4, num_classes=classes, image_size=(4, 6))
    assert_traceable(model, None if classes is None else torch.tensor([1, 3]))


def test_a_compiled_model_gives_the_same_likelihood_and_gradients():
    torch.manual_seed(0)
    torch.compiler.reset()
    model = GatedPixelCNN(3, 8, 1, 4, num_classes=3)
    images, labels = torch.randint(0, 4, (2, 3, 4, 5), dtype=torch.uint8), torch.tensor([2, 0])
    expected = model.log_prob(images, labels)
    gradients = torch.autograd.grad(expected.sum(), list(model.parameters()))
    nats = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")(images, labels)
    assert torch.allclose(nats, expected, rtol=1e-5)
    for got, wanted in zip(torch.autograd.grad(nats.sum(), list(model.parameters())), gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_and_under_autocast_it_gives_its_likelihood_in_float32():
    torch.manual_seed(0)
    model = GatedPixelCNN(3, 16, 2, 8, num_classes=2)
    images, labels = torch.randint(0, 8, (2, 3, 6, 6)), torch.tensor([0, 1])
    expected = model.log_prob(images, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model.log_prob(images, labels)
    for nats in (cast, model.bfloat16().log_prob(images, labels)):
        assert nats.dtype == torch.float32
        assert torch.allclose(nats, expected, rtol=0.02)


def test_it_learns_real_digits():
    pytest.importorskip("sklearn", reason="the embedded digits need the extra 'cli'")
    data = open_dataset("digits")
    train, test = quantise(data.train, 4), quantise(data.test, 4)[:100]
    torch.manual_seed(0)
    model = GatedPixelCNN(1, 16, 2, 4, num_classes=10, head_channels=16)
    for batch, labels in zip(train[:960].split(32), data.train_labels[:960].split(32), strict=True):
        train_a_little(model, batch, labels, steps=1, lr=0.01)
    right, wrong = (-model.log_prob(test, (data.test_labels[:100] + k) % 10).mean().item() for k in (0, 1))
    assert right < 0.7 * 64 * 1.386  # guessing costs ln 4 for each of 64 pixels
    assert right < wrong


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"in_channels": 0}, "in_channels: expected a whole number of at least 1; got 0"),
        ({"in_channels": 3, "hidden_channels": 2}, "hidden_channels: expected a whole number of at least 3; got 2"),
        ({"num_layers": -1}, "num_layers: expected a whole number of at least 0; got -1"),
        ({"levels": 1}, "levels: expected a whole number in 2 .. 256; got 1"),
        ({"num_classes": 0}, "num_classes: expected a whole number of at least 1; got 0"),
        ({"kernel_size": 4}, "kernel_size: expected an odd number"),
        ({"first_kernel_size": 6}, "first_kernel_size: expected an odd number"),
        ({"first_kernel_size": 1}, "first_kernel_size: expected a whole number of at least 3; got 1"),
        ({"head_channels": 0}, "head_channels: expected a whole number of at least 1; got 0"),
        ({"image_size": 0}, "image_size: expected a whole number of at least 1; got 0"),
    ],
)
def test_a_wrong_constructor_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GatedPixelCNN(**arguments)
