"""`nn.MaskedConv2d` is an `nn.Conv2d` in every way but the taps that it lacks."""

import copy
import pickle

import pytest
import torch
from helpers.accelerated import reloaded
from torch import nn

from genkernels.nn import MaskedConv2d
from genkernels.ops import masked_conv2d


def layer(**options) -> MaskedConv2d:
    return MaskedConv2d(4, 8, 3, **{"mask_type": "B"} | options)


# --- a drop-in for nn.Conv2d ---


def test_it_is_a_conv2d_with_the_initial_weights_of_one():
    for options in ({}, {"bias": False}, {"dilation": 2}):
        torch.manual_seed(0)
        theirs = nn.Conv2d(4, 8, 3, padding="same", **options)
        torch.manual_seed(0)
        ours = layer(**options)
        assert isinstance(ours, nn.Conv2d)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            assert ours.state_dict()[name].equal(value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_type": "A", "dilation": (2, 3), "bias": False},
        {"channel_groups": 3, "group_layout": "interleaved", "activation": "relu"},
    ],
)
@pytest.mark.parametrize("shape", [(2, 4, 6, 7), (4, 6, 7)])
def test_it_calls_the_operator_with_its_own_arguments(options, shape):
    module, x = layer(**options), torch.randn(shape)
    arguments = {"mask_type": "B"} | {name: value for name, value in options.items() if name != "bias"}
    assert module(x).equal(masked_conv2d(x, module.weight, module.bias, **arguments))


def test_it_equals_the_usual_subclass_that_multiplies_by_a_mask():
    module, x = layer(channel_groups=2), torch.randn(2, 4, 6, 7)
    conv = nn.Conv2d(4, 8, 3, padding="same")
    conv.weight.data, conv.bias.data = module.weight * module.live_taps(), module.bias
    torch.testing.assert_close(module(x), conv(x))


@pytest.mark.parametrize(
    ("arguments", "kernel_size"),
    [
        ({"kernel_size": 5, "padding": 2}, (5, 5)),
        ({"kernel_size": (3, 7), "padding": (1, 3)}, (3, 7)),
        ({"kernel_size": 3, "padding": (2, 2), "dilation": 2}, (3, 3)),
        ({"kernel_size": (1, 3), "padding": "same"}, (1, 3)),
        ({"kernel_size": 1, "padding": 0, "stride": (1, 1), "groups": 1, "padding_mode": "zeros"}, (1, 1)),
    ],
)
def test_the_padding_that_keeps_the_size_is_accepted_as_a_number_too(arguments, kernel_size):
    module = MaskedConv2d(4, 8, mask_type="A", **arguments)
    assert module.weight.shape == (8, 4, *kernel_size)
    assert module(torch.randn(1, 4, 9, 9)).shape == (1, 8, 9, 9)


def test_it_trains_and_leaves_masked_weights_where_they_are():
    module = layer(mask_type="A", channel_groups=4)
    before = module.weight.detach().clone()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimiser.zero_grad()
        module(torch.randn(2, 4, 6, 7)).square().mean().backward()
        optimiser.step()
    assert (module.weight != before).equal(module.live_taps() != 0)


def test_device_dtype_and_memory_format_follow_the_module():
    module = layer(dtype=torch.float64)
    assert module(torch.randn(1, 4, 5, 5, dtype=torch.float64)).dtype == torch.float64
    module = layer().to(torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(1, 4, 5, 5).to(torch.bfloat16, memory_format=torch.channels_last)
    module(x).sum().backward()
    assert module(x).dtype == torch.bfloat16
    assert module.weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_on_the_meta_device_it_tells_the_shape_of_its_result():
    y = layer(device="meta", dtype=torch.bfloat16)(torch.empty(2, 4, 6, 7, device="meta", dtype=torch.bfloat16))
    assert (y.device.type, y.shape, y.dtype) == ("meta", (2, 8, 6, 7), torch.bfloat16)


def test_a_parametrised_weight_is_used_and_trained():
    module = nn.utils.parametrizations.weight_norm(layer())
    x = torch.randn(2, 4, 6, 7)
    assert module(x).equal(masked_conv2d(x, module.weight, module.bias, mask_type="B"))
    module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_functional_call_gives_per_sample_gradients():
    module, x = layer(activation="relu"), torch.randn(5, 4, 6, 7)

    def loss(parameters, image):
        return torch.func.functional_call(module, parameters, (image,)).square().sum()

    parameters = {name: value.detach() for name, value in module.named_parameters()}
    got = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, image in enumerate(x):
        module.zero_grad()
        module(image).square().sum().backward()
        for name, value in module.named_parameters():
            torch.testing.assert_close(got[name][i], value.grad)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "MaskedConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=same, mask_type='B')"),
        (
            {"channel_groups": 2, "activation": "relu", "bias": False, "dilation": 2},
            "MaskedConv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=same, dilation=(2, 2), "
            "bias=False, mask_type='B', channel_groups=2, group_layout='blocks', activation='relu')",
        ),
    ],
)
def test_it_prints_as_conv2d_does_and_with_what_it_adds(options, text):
    assert repr(layer(**options)) == text


# --- copies and checkpoints ---

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": reloaded,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_computes_the_same_and_shares_nothing(way):
    module, x = layer(channel_groups=2, activation="relu"), torch.randn(2, 4, 6, 7)
    module(x).sum().backward()  # a layer that has been used
    twin = COPIES[way](module)
    assert repr(twin) == repr(module)
    assert twin(x).equal(module(x))
    with torch.no_grad():
        twin.weight.zero_()
    assert module.weight.any()


@pytest.mark.parametrize(("bias", "keys"), [(True, ["weight", "bias"]), (False, ["weight"])])
def test_the_state_dict_is_that_of_conv2d_both_ways(bias, keys):
    module = layer(bias=bias)
    assert list(module.state_dict()) == keys
    conv = nn.Conv2d(4, 8, 3, padding=1, bias=bias)
    conv.load_state_dict(module.state_dict())
    twin = layer(bias=bias)
    twin.load_state_dict(conv.state_dict())
    assert twin.weight.equal(module.weight)


def public_checkpoint(module: MaskedConv2d, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """As written by versions that register their mask as a buffer."""
    return {**copy.deepcopy(module.state_dict()), "mask": mask}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bool])
@pytest.mark.parametrize("channel_groups", [1, 3])
def test_a_checkpoint_that_carries_the_same_mask_loads(channel_groups, dtype):
    source, target = (layer(channel_groups=channel_groups) for _ in range(2))
    checkpoint = public_checkpoint(source, source.live_taps().to(dtype))
    keys = list(checkpoint)
    assert str(target.load_state_dict(checkpoint, strict=True)) == "<All keys matched successfully>"
    assert target.weight.equal(source.weight)
    assert list(checkpoint) == keys, "the caller's dictionary was changed"
    assert list(target.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (3, 3), (1, 4, 3, 3), (8, 1, 3, 3)])
def test_a_mask_that_is_the_same_for_all_channels_may_be_stored_once(shape):
    source, target = layer(mask_type="A"), layer(mask_type="A")
    mask = source.live_taps()[0, 0].expand(shape)
    target.load_state_dict(public_checkpoint(source, mask))
    assert target.weight.equal(source.weight)


def test_a_checkpoint_with_a_mask_loads_inside_a_larger_model():
    source, target = (
        nn.Sequential(layer(), nn.Sequential(nn.ReLU(), MaskedConv2d(8, 8, 5, mask_type="A"))) for _ in range(2)
    )
    checkpoint = source.state_dict()
    checkpoint["0.mask"], checkpoint["1.1.mask"] = source[0].live_taps(), source[1][1].live_taps()
    target.load_state_dict(checkpoint, strict=True)
    assert all(a.equal(b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(layer(mask_type="A").live_taps(), id="of the other type"),
        pytest.param(layer(channel_groups=2).live_taps(), id="with colour groups"),
        pytest.param(torch.ones(1, 1, 3, 3), id="of ones"),
        pytest.param(MaskedConv2d(4, 8, 5, mask_type="B").live_taps(), id="of another kernel"),
        pytest.param(torch.ones(2, 1, 3, 3), id="of other channels"),
        pytest.param(torch.ones(1, 8, 4, 3, 3), id="of too many dimensions"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_whose_mask_differs_is_refused_by_name(mask, strict):
    source, model = layer(), nn.Sequential(layer())
    checkpoint = {f"0.{name}": value for name, value in public_checkpoint(source, mask).items()}
    with pytest.raises(
        RuntimeError, match=r"0\.mask: .*differs.*mask_type='B', channel_groups=1, group_layout='blocks'"
    ):
        model.load_state_dict(checkpoint, strict=strict)


def test_an_unknown_key_is_still_refused():
    with pytest.raises(RuntimeError, match=r"Unexpected key.*masks"):
        layer().load_state_dict({**layer().state_dict(), "masks": torch.ones(3)})


# --- bad arguments ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 2}, r"kernel_size: expected odd numbers.*; got \(2, 2\)"),
        ({"kernel_size": (3, 4)}, r"kernel_size: expected odd numbers.*; got \(3, 4\)"),
        ({"kernel_size": 2, "padding": 1}, r"kernel_size: expected odd numbers.*; got \(2, 2\)"),
        ({"padding": 0}, r"padding: expected 'same' or its equal here, \(1, 1\); got \(0, 0\)"),
        ({"padding": "valid"}, r"padding: expected 'same' or its equal here, \(1, 1\); got 'valid'"),
        (
            {"padding": 1, "dilation": 2},
            r"padding: expected 'same' or its equal here, \(2, 2\); got \(1, 1\)",
        ),
        ({"stride": 2, "padding": 1}, r"stride: .*\(1, 1\).*; got \(2, 2\)"),
        ({"stride": 2}, r"stride: .*\(1, 1\).*; got \(2, 2\)"),
        ({"groups": 2}, r"groups: .*1.*; got 2"),
        ({"groups": 3}, r"groups: .*1.*; got 3"),
        ({"padding_mode": "circular"}, r"padding_mode: .*'zeros'.*; got 'circular'"),
        ({"padding_mode": "reflect", "padding": 1}, r"padding_mode: .*'zeros'.*; got 'reflect'"),
        ({"mask_type": "C"}, r"mask_type: expected 'A' or 'B'; got 'C'"),
        ({"mask_type": None}, r"mask_type: expected 'A' or 'B'; got None"),
        ({"channel_groups": 0}, r"channel_groups: expected a whole number of at least 1; got 0"),
        ({"channel_groups": 5}, r"in_channels: expected at least channel_groups = 5; got 4"),
        (
            {"out_channels": 2, "channel_groups": 3},
            r"out_channels: expected at least channel_groups = 3; got 2",
        ),
        ({"group_layout": "rows"}, r"group_layout: expected 'blocks' or 'interleaved'; got 'rows'"),
        ({"activation": "gelu"}, r"activation: expected None or 'relu'; got 'gelu'"),
        ({"dilation": 0}, r"dilation: expected .*at least 1; got .*0"),
        ({"dilation": (1, 0), "padding": (1, 0)}, r"dilation: expected .*at least 1; got \(1, 0\)"),
    ],
)
def test_a_bad_argument_is_refused_at_construction_with_name_expectation_and_value(arguments, message):
    good = {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "mask_type": "B"}
    with pytest.raises(ValueError, match=f"^{message}$"):
        MaskedConv2d(**good | arguments)


def test_the_mask_type_must_be_said():
    with pytest.raises(TypeError, match="mask_type"):
        MaskedConv2d(4, 8, 3)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3, 5, 5), ValueError, r"x: expected 4 channels.*; got shape \[2, 3, 5, 5\]"),
        (torch.zeros(5, 5), ValueError, r"x: expected \[N, C, H, W\] or \[C, H, W\]; got shape \[5, 5\]"),
        (
            torch.zeros(2, 4, 5, 5, dtype=torch.uint8),
            TypeError,
            "x: expected a floating-point dtype; got torch.uint8",
        ),
        (
            torch.zeros(2, 4, 5, 5, dtype=torch.half),
            TypeError,
            "weight: expected the dtype of x, torch.float16; got.*32",
        ),
    ],
)
def test_a_bad_image_is_refused_by_name(x, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        layer()(x)
