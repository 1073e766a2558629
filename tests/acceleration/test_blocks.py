"""``genkernels.accelerate`` on runs of convolution, norm and activation, in a Sequential or a forward of one's own."""

import pytest
import torch
from helpers import public_styles as styles
from helpers.accelerated import assert_same, pair, step
from torch import nn

import genkernels
from genkernels.ops.conv_bn_act.heuristics import always_kernel

pytestmark = pytest.mark.usefixtures("seeded")

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


BLOCKS = {
    "generator": (styles.generator, (2, 8, 1, 1), 3),
    "generator with bias": (lambda: styles.generator(bias=True), (2, 8, 1, 1), 3),
    "discriminator": (lambda: styles.discriminator(bias=True), (2, 3, 16, 16), 3),
    "attributes": (styles.AttributeGenerator, (3, 8), 2),
    "VAE decoder": (styles.VaeDecoder, (3, 5), 2),
    "ResNet": (styles.ResNetGenerator, (2, 6, 1, 1), 3),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_compute_what_their_layers_do(name):
    make, shape, runs = BLOCKS[name]
    plain, fast, _ = pair(make, swapped=runs)
    x = torch.randn(shape)
    assert_same(step(fast, x), step(plain, x))
    assert_same(step(fast.eval(), x), step(plain.eval(), x))


def test_a_skip_reads_what_its_layer_gives():
    report = genkernels.accelerate(styles.ResNetGenerator())
    assert [entry.detail for entry in report.swapped if entry.kind == "Residual"] == ["conv2 + norm2: one operator"] * 2


def test_a_frozen_norm_and_a_replaced_layer_count():
    plain, fast, _ = pair(styles.discriminator, swapped=3)
    x = torch.randn(2, 3, 16, 16)
    for model in (plain, fast):
        model[3].eval()
    assert_same(step(fast, x), step(plain, x))
    for model in (plain, fast):
        model[1] = nn.Identity()
    assert_same(step(fast, x), step(plain, x))
    assert_same({"y": fast[:3](x)}, {"y": plain[:3](x)})


def test_small_calls_are_left_to_pytorch(monkeypatch):
    _, fast, _ = pair(styles.discriminator, swapped=3)

    def refuse(*_, **__):
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(genkernels.ops, "conv2d_bn_act", refuse)
    fast(torch.randn(2, 3, 16, 16))
    with always_kernel(), pytest.raises(AssertionError, match="the kernel was called"):
        fast(torch.randn(2, 3, 16, 16))


def test_a_tiny_call_that_has_come_before_goes_to_the_layers_themselves(monkeypatch):
    plain, fast, _ = pair(styles.discriminator, swapped=3)
    x = torch.randn(2, 3, 16, 16)
    fast(x), plain(x)  # moves the running statistics

    def refuse(*_, **__):
        raise AssertionError("the runs were looked at")

    monkeypatch.setattr(genkernels.acceleration.sequential, "run_layers", refuse)
    torch.testing.assert_close(fast(x), plain(x))
    with pytest.raises(AssertionError, match="the runs were looked at"):
        fast(torch.randn(3, 3, 16, 16))
    with always_kernel(), pytest.raises(AssertionError, match="the runs were looked at"):
        fast(x)
    sequential = next(
        m for m in fast.modules() if type(m).__mro__[1] is genkernels.acceleration.sequential.AcceleratedSequential
    )
    sequential.append(nn.Threshold(2, 7))
    assert (fast(x) == 7).all(), "a layer added later runs"


def test_a_run_before_a_child_that_is_swapped_too(monkeypatch):
    def make():
        conv = nn.Conv2d(4, 4, 3, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), styles.Residual(4), styles.MASKED["data"]())

    plain, fast, _ = pair(make, swapped=3)
    calls = []
    conv2d_bn_act = genkernels.ops.conv2d_bn_act
    monkeypatch.setattr(genkernels.ops, "conv2d_bn_act", lambda *a, **k: calls.append(1) or conv2d_bn_act(*a, **k))
    with always_kernel():
        torch.testing.assert_close(fast(X), plain(X), rtol=1e-4, atol=1e-4)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "options",
    [{"affine": False}, {"track_running_stats": False}, {"affine": False, "track_running_stats": False}, {"eps": 0.8}],
    ids=str,
)
def test_every_batch_norm(options):
    plain, fast, _ = pair(lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, **options), nn.ReLU(True)))
    for mode in (True, False):
        assert_same(step(fast.train(mode), X), step(plain.train(mode), X))


def test_frozen_parameters_get_no_gradient():
    plain, fast, _ = pair(styles.discriminator, swapped=3)
    for model in (plain, fast):
        model[2].requires_grad_(False)
        model[3].weight.requires_grad_(False)
    x = torch.randn(2, 3, 16, 16)
    assert_same(step(fast, x), step(plain, x))  # the same names have one
    assert fast[2].weight.grad is None


def test_a_trace_holds_one_operator_where_the_choice_depends_on_gradients():
    """jit.trace traces a second time, without gradients, and compares the graphs."""
    plain, fast, _ = pair(lambda: nn.Sequential(nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh()).eval())
    x = torch.randn(6, 64, 32, 32)  # 19 million multiply-adds: the kernel's without gradients, PyTorch's with them
    traced = torch.jit.trace(fast, x)
    assert "conv_act" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), plain(x), rtol=1e-4, atol=1e-4)
