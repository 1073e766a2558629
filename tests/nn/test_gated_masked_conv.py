"""`nn.GatedMaskedConv2d` computes the two stacks of the paper, with no tap and no colour out of order."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genkernels.nn import GatedMaskedConv2d, MaskedConv2d
from genkernels.nn.gate_conv import GateConv2d


def layer(
    mask_type: str = "B", kernel_size: int = 3, groups: int = 1, hidden: int = 8, condition: int | None = None
) -> GatedMaskedConv2d:
    channels = hidden if mask_type == "B" else max(groups, 1)
    return GatedMaskedConv2d(
        channels, hidden, kernel_size, mask_type=mask_type, channel_groups=groups, condition_channels=condition
    )


def inputs(module: GatedMaskedConv2d, height: int = 4, width: int = 5, dtype: torch.dtype = torch.float64):
    vertical, horizontal = (torch.randn(2, module.in_channels, height, width, dtype=dtype) for _ in range(2))
    if module.condition_channels is None:
        return vertical, horizontal
    return vertical, horizontal, torch.randn(2, module.condition_channels, dtype=dtype)


def by_the_paper(
    module: GatedMaskedConv2d, vertical: Tensor, horizontal: Tensor, condition: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Square kernels full of zeros, plain convolutions, gates half by half: nothing of the code under test."""
    h, k, groups = module.hidden_channels, module.kernel_size, module.channel_groups
    centre = k // 2 + 1  # of kernels two larger, so that mask A has a row to move up into
    first_row = centre - k // 2 - (module.mask_type == "A")
    square = vertical.new_zeros(2 * h, module.in_channels, k + 2, k + 2)
    square[:, :, first_row : first_row + k // 2 + 1, 1:-1] = module.vertical.weight
    above = F.conv2d(vertical, square, module.vertical.bias, padding=centre)

    row = module.horizontal.weight.clone()
    row[..., k // 2 + 1 :] = 0
    for unit in range(h):
        for channel in range(module.in_channels):
            of_unit, of_channel = unit * groups // h, channel * groups // module.in_channels
            if of_channel > of_unit or (of_channel == of_unit and module.mask_type == "A"):
                row[[unit, unit + h], channel, 0, k // 2] = 0
    beside = F.conv2d(horizontal, row, module.horizontal.bias, padding=(0, k // 2))
    beside = beside + F.conv2d(above, module.vertical_to_horizontal.weight)
    if condition is not None:
        bias = torch.einsum("oc,nc->no", module.condition.weight, condition)[:, :, None, None]
        above, beside = above + bias[:, : 2 * h], beside + bias[:, 2 * h :]

    out = module.out.weight.clone()
    for unit in range(h):
        for channel in range(h):
            if channel * groups // h > unit * groups // h:
                out[unit, channel] = 0
    new_vertical = above[:, :h].tanh() * above[:, h:].sigmoid()
    new_horizontal = F.conv2d(beside[:, :h].tanh() * beside[:, h:].sigmoid(), out, module.out.bias)
    return new_vertical, new_horizontal + (horizontal if module.mask_type == "B" else 0)


@pytest.mark.parametrize("size", [(4, 5), (1, 3), (3, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_type": "A", "kernel_size": 7},
        {"kernel_size": 5, "condition": 3},
        {"mask_type": "A", "kernel_size": 3, "groups": 3, "condition": 3},
        {"groups": 3},
        {"groups": 2, "hidden": 5, "kernel_size": 1},
    ],
    ids=str,
)
def test_it_computes_what_the_paper_says(options, size):
    torch.manual_seed(0)
    module = layer(**options).double()
    x = inputs(module, *size)
    for got, expected in zip(module(*x), by_the_paper(module, *x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask_type, groups", [("A", 1), ("B", 3)])
def test_it_is_accurate_in_every_dtype(mask_type, groups, dtype):
    torch.manual_seed(0)
    module = layer(mask_type, 5, groups, hidden=16, condition=4).to(dtype)
    x = inputs(module, dtype=dtype)
    exact = by_the_paper(copy.deepcopy(module).double(), *(t.double() for t in x))
    for got, expected in zip(module(*x), exact, strict=True):
        assert got.dtype == dtype
        # Sums of up to 400 products of numbers near one, of which several are rounded to the storage type in between.
        assert (got - expected).abs().max() <= 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_channels_last_in_is_channels_last_out(mask_type):
    module = layer(mask_type, groups=3, condition=2).float()
    vertical, horizontal, condition = inputs(module, dtype=torch.float32)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (vertical, horizontal)]
    for got, expected in zip(module(*last, condition), module(vertical, horizontal, condition), strict=True):
        assert got.is_contiguous(memory_format=torch.channels_last) and not got.is_contiguous()
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_its_gradients_are_right_and_dead_taps_get_none(mask_type):
    torch.manual_seed(0)
    module = layer(mask_type, 3, 2, hidden=3, condition=2).double()
    x = tuple(t.requires_grad_() for t in inputs(module, 3, 3))
    assert torch.autograd.gradcheck(module, x, fast_mode=True)
    sum(y.square().sum() for y in module(*x)).backward()
    for conv in (module.horizontal, module.out):
        assert (conv.weight.grad != 0).equal(conv.live_taps() != 0)
    for weight in (module.vertical.weight, module.vertical_to_horizontal.weight, module.condition.weight):
        assert (weight.grad != 0).all()


def test_a_condition_biases_both_halves_of_both_gates():
    torch.manual_seed(0)
    module = layer(condition=3).double()
    vertical, horizontal, condition = inputs(module)
    h = module.hidden_channels
    for block, stack in enumerate(("vertical", "vertical", "horizontal", "horizontal")):
        changed = copy.deepcopy(module)
        with torch.no_grad():
            changed.condition.weight[block * h : (block + 1) * h] += 1
        before, after = (m(vertical, horizontal, condition) for m in (module, changed))
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert same == ([False, True] if stack == "vertical" else [True, False])


def test_a_class_as_one_hot_condition_is_the_papers_own_bias():
    """V^T h with a one-hot h: each class has a bias of its own, the same at every pixel."""
    module = layer(condition=4).double()
    vertical, horizontal = torch.zeros(2, 8, 3, 3).double(), torch.zeros(2, 8, 3, 3).double()
    condition = torch.eye(4, dtype=torch.float64)[[1, 3]]
    plain = layer().double()
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if k != "condition.weight"})
    for image, label in enumerate((1, 3)):
        with torch.no_grad():
            plain.vertical.bias.copy_(module.vertical.bias + module.condition.weight[:16, label])
        got, expected = module(vertical, horizontal, condition)[0][image], plain(vertical, horizontal)[0][image]
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_a_map_conditions_every_place_by_its_own_vector(mask_type):
    torch.manual_seed(0)
    module = layer(mask_type, condition=3).double()
    vertical, horizontal, condition = inputs(module)
    height, width = vertical.shape[2:]
    everywhere = condition[:, :, None, None].expand(-1, -1, height, width).contiguous()
    expected = module(vertical, horizontal, condition)
    for got, same in zip(module(vertical, horizontal, everywhere), expected, strict=True):
        torch.testing.assert_close(got, same)
    changed = everywhere.clone()
    changed[:, :, 1, 2] += 1
    for got, before in zip(module(vertical, horizontal, changed), expected, strict=True):
        moved = (got - before).abs().amax((0, 1)) > 1e-9
        assert moved[1, 2] and moved.sum() == 1


def test_it_is_rebuilt_from_its_state_dict_and_prints_its_arguments():
    module = layer("A", 7, 3, condition=5)
    twin = layer("A", 7, 3, condition=5)
    twin.load_state_dict(module.state_dict())
    x = inputs(module, dtype=torch.float32)
    assert all(a.equal(b) for a, b in zip(module(*x), twin(*x), strict=True))
    assert {name: list(value.shape) for name, value in module.state_dict().items()} == {
        "vertical.weight": [16, 3, 4, 7], "vertical.bias": [16],
        "horizontal.weight": [16, 3, 1, 7], "horizontal.bias": [16],
        "vertical_to_horizontal.weight": [16, 16, 1, 1],
        "out.weight": [8, 8, 1, 1], "out.bias": [8],
        "condition.weight": [32, 5],
    }  # fmt: skip
    assert "3, 8, kernel_size=7, mask_type='A', channel_groups=3, condition_channels=5" in repr(module)


def test_under_autocast_it_computes_in_16_bit_and_its_gradients_are_float32():
    torch.manual_seed(0)
    module = layer(groups=3, condition=2)
    x = inputs(module, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vertical, horizontal = module(*x)
    assert vertical.dtype == torch.bfloat16
    for got, expected in zip((vertical, horizontal), module(*x), strict=True):
        torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
    (vertical.sum() + horizontal.sum()).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())


# --- colours behind gates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("channels, units, groups", [(3, 64, 3), (8, 8, 3), (5, 3, 2)])
@pytest.mark.parametrize("gates", [2, 4])
def test_each_gate_has_the_colours_of_the_units(channels, units, groups, gates, mask_type):
    conv = GateConv2d(channels, units, (1, 3), gates=gates, mask_type=mask_type, channel_groups=groups)
    alone = MaskedConv2d(channels, units, (1, 3), mask_type=mask_type, channel_groups=groups)
    assert conv.live_taps().equal(alone.live_taps().repeat(gates, 1, 1, 1))


def illegal_pairs(hidden: int) -> int:
    """Of a gated 1x1 from 2h to h and a 1x1 behind it: pairs of a unit and an input of a later colour it reads.

    Interleaved colours, c % 3, and a gate of the two halves of 2h, as in public code.
    """
    to_gates = MaskedConv2d(
        2 * hidden, 2 * hidden, 1, mask_type="B", channel_groups=3, group_layout="interleaved"
    ).live_taps()[:, :, 0, 0]
    out = MaskedConv2d(hidden, hidden, 1, mask_type="B", channel_groups=3, group_layout="interleaved")
    reads = out.live_taps()[:, :, 0, 0] @ (to_gates[:hidden] + to_gates[hidden:]) > 0
    later = torch.arange(2 * hidden)[None] % 3 > torch.arange(hidden)[:, None] % 3
    assert reads.numel() == 2 * hidden**2
    return int((reads & later).sum())


def test_a_gate_of_the_halves_of_interleaved_channels_mixes_colours_unless_three_divides_them():
    """Why this layer counts the groups within each half: at the paper's own width a third of all pairs go wrong."""
    assert illegal_pairs(128) == 10_965
    assert illegal_pairs(126) == 0


# --- bad arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_type": "C"}, "mask_type: expected 'A' or 'B'; got 'C'"),
        ({"kernel_size": 4}, "kernel_size: expected an odd number, .*; got 4"),
        ({"kernel_size": (3, 3)}, r"kernel_size: expected an odd number, .*; got \(3, 3\)"),
        ({"kernel_size": -1}, "kernel_size: expected an odd number, .*; got -1"),
        ({"in_channels": 4}, "in_channels: expected hidden_channels = 8 with mask_type 'B', .*; got 4"),
        ({"channel_groups": 0}, "channel_groups: expected a whole number of at least 1; got 0"),
        ({"channel_groups": 9}, "in_channels: expected at least channel_groups = 9; got 8"),
        ({"condition_channels": 0}, "condition_channels: expected None or a whole number of at least 1; got 0"),
    ],
)
def test_a_bad_argument_is_refused_with_its_name(arguments, message):
    good = {"in_channels": 8, "hidden_channels": 8, "kernel_size": 3, "mask_type": "B"}
    with pytest.raises(ValueError, match=f"^{message}$"):
        GatedMaskedConv2d(**good | arguments)


def test_a_condition_is_required_where_there_is_one_and_refused_where_there_is_none():
    x = torch.zeros(1, 8, 3, 3)
    with pytest.raises(ValueError, match=r"^condition: expected \[N, 5\]; got None$"):
        layer(condition=5)(x, x)
    with pytest.raises(ValueError, match=r"^condition: expected None; got a tensor$"):
        layer()(x, x, torch.zeros(1, 5))


def test_the_mask_type_must_be_said():
    with pytest.raises(TypeError, match="mask_type"):
        GatedMaskedConv2d(8, 8, 3)


def test_a_fresh_stack_of_any_depth_keeps_the_size_of_its_features():
    torch.manual_seed(0)
    vertical = horizontal = torch.rand(4, 3, 12, 12)
    stack = nn.ModuleList([layer("A", 7, 3, hidden=64)] + [layer("B", 3, 3, hidden=64) for _ in range(12)])
    for depth, module in enumerate(stack, 1):
        vertical, horizontal = module(vertical, horizontal)
        assert 0.1 < vertical.std() < 0.6, depth
        assert 0.3 < horizontal.std() / depth**0.5 < 1.5, depth  # the residuals add up
