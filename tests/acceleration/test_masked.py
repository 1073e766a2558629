"""``genkernels.accelerate`` on masked convolutions of every style: results, and masks and weights that change later."""

import copy

import pytest
import torch
from helpers import public_styles as styles
from helpers.accelerated import assert_same, pair, step
from torch import nn

import genkernels
from genkernels.acceleration import masked
from genkernels.ops.conv_bn_act.heuristics import always_kernel

pytestmark = pytest.mark.usefixtures("seeded")

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("style", styles.MASKED)
def test_masked_convolutions_of_every_style(style, monkeypatch):
    plain, fast, report = pair(styles.MASKED[style])
    assert report.swapped[0].swapped == "masked_conv2d"
    x = torch.randn(2, 6 if style in ("blocks", "interleaved") else 4, 7, 9)
    # Where the zeros are written into the weight, the original leaves a gradient for the masked taps.
    assert_same(step(fast, x), step(plain, x), {"weight": plain.mask} if style == "data" else {})
    calls = []
    masked_conv2d = genkernels.ops.masked_conv2d
    monkeypatch.setattr(genkernels.ops, "masked_conv2d", lambda *a, **k: calls.append(1) or masked_conv2d(*a, **k))
    fast(x)
    assert calls


def test_another_mask_from_a_checkpoint_counts():
    plain, fast, _ = pair(lambda: styles.MultipliesItsWeight("B", 4, 6, 3, padding=1))
    other = styles.MultipliesItsWeight("A", 4, 6, 3, padding=1)
    fast.load_state_dict(other.state_dict())
    torch.testing.assert_close(fast(X), other(X))
    fast.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fast(X), plain(X))


@pytest.mark.parametrize("how", ["load_state_dict", "copy_", "data", "new parameter", "init"])
def test_weights_that_come_later_lose_their_masked_taps_as_in_the_original(how):
    torch.manual_seed(0)
    original = nn.Sequential(styles.WritesItsWeight("A", 8, 8, 3, padding=1))
    model = copy.deepcopy(original)
    assert genkernels.accelerate(model).entries[0].swapped == "masked_conv2d"
    new = {name: torch.randn_like(t) if name != "0.mask" else t for name, t in original.state_dict().items()}
    for each in (original, model):
        layer = each[0]
        if how == "load_state_dict":
            each.load_state_dict(new)
        elif how == "copy_":
            with torch.no_grad():
                layer.weight.copy_(new["0.weight"])
        elif how == "data":
            layer.weight.data.copy_(new["0.weight"])
        elif how == "new parameter":
            layer.weight = nn.Parameter(new["0.weight"].clone())
        else:
            torch.manual_seed(1)
            nn.init.normal_(layer.weight)
        each(torch.randn(1, 8, 6, 6))
    assert model[0].weight.equal(original[0].weight)


class MaskIsAParameter(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mask = nn.Parameter(styles.spatial_mask("B", 3).double(), requires_grad=False)

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


def test_a_mask_that_is_a_frozen_parameter():
    plain, fast, _ = pair(lambda: MaskIsAParameter(4, 6, 3, padding=1))
    assert_same(step(fast, X), step(plain, X), {"weight": plain.mask.float()})


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("dims", [2, 3, 4])
def test_masks_of_every_dtype_and_shape(dtype, dims):
    def make():
        layer = styles.WritesItsWeight("A", 4, 6, 3, padding=1)
        layer.mask = layer.mask[0, 0].detach().expand([1, 4, 3, 3][4 - dims :]).clone().to(dtype)
        return layer

    plain, fast, _ = pair(make)
    torch.testing.assert_close(fast(X), plain(X))


def hide(mask):
    mask[:, :, 1, 1] = False


MASK_CHANGES = {
    "in place": lambda layer: hide(layer.visible),
    "through .data": lambda layer: hide(layer.visible.data),
    "replaced": lambda layer: setattr(layer, "visible", torch.zeros_like(layer.visible)),
    "loaded": lambda layer: layer.load_state_dict({**layer.state_dict(), "visible": torch.zeros(1, 1, 3, 3)}),
}


@pytest.mark.parametrize("change", MASK_CHANGES)
def test_a_mask_changed_after_the_swap_counts(change):
    plain, fast, _ = pair(lambda: styles.MultipliesItsWeight("B", 4, 6, 3, padding=1))
    fast(X)
    for model in (plain, fast):
        MASK_CHANGES[change](model)
    torch.testing.assert_close(fast(X), plain(X))
    if change == "loaded":
        genkernels.accelerate(fast)
        fast.load_state_dict({**fast.state_dict(), "visible": plain.visible})
        torch._dynamo.reset()
        compiled = torch.compile(fast, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(X), plain(X))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["mask", "rows"])
def test_a_layer_that_casts_its_input_goes_on_taking_what_it_took(rows, dtype):
    def make():
        layer = styles.CastsItsInput("B", 4, 6, 3, padding=1)
        layer.visible = styles.KeepsRows("B", 4, 6, 3).mask.bool() if rows else layer.visible
        return layer

    plain, fast, _ = pair(make)
    x = (4 * X).to(dtype)
    with always_kernel():
        assert torch.equal(fast(x), plain(x))
        torch.testing.assert_close(fast(x.float()), plain(x.float()))
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = fast(x), plain(x)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_layer_that_casts_to_its_own_dtype(dtype):
    class Casts(styles.MultipliesItsWeight):
        def forward(self, x):
            return super().forward(x.to(dtype))

    plain, fast, report = pair(lambda: Casts("B", 4, 6, 3, padding=1).to(dtype))
    assert report.swapped[0].detail == "3x3, mask B"
    x = X.to(dtype)
    tolerance = {torch.float16: 2e-2}.get(dtype, 1e-1)
    torch.testing.assert_close(fast(x), plain(x), rtol=tolerance, atol=tolerance)


def test_masks_on_a_gpu_are_read_once_for_each_tensor_and_version(monkeypatch):
    layer, mask, value, read = nn.Identity(), torch.ones(3, 3), torch.ones(3, 3), []
    monkeypatch.setattr(masked, "_same", lambda a, b: read.append(1) or torch.equal(a, b))
    for number, expected in ((1, False), (0, True), (1, False)):
        mask[0, 0] = number
        assert [masked._other_elsewhere(layer, [(mask, value)]) for _ in range(2)] == [expected] * 2
    assert masked._other_elsewhere(layer, [(torch.zeros(3, 3), value)])
    assert len(read) == 4
