"""``GENKERNELS_VERBOSE=1``: says which implementation ran and why, with a line that makes the same call again."""

import pytest
import torch
from helpers import public_styles as styles
from helpers.fresh_process import run_fresh

import genkernels
from genkernels import nn, ops
from genkernels.ops.core import verbose

torch64 = {"dtype": torch.float64}
needs_native = pytest.mark.skipif(
    genkernels.backends.native() is None, reason="the native extension is not loaded: the reference runs everywhere"
)


@pytest.fixture(autouse=True)
def on(monkeypatch):
    monkeypatch.setattr(verbose, "_ON", True)
    monkeypatch.setattr(verbose, "_said", set())


def discriminator(**options):
    """Its middle block is large enough for the kernel, the others are not."""
    model = styles.discriminator(width=64).to(**options)
    genkernels.accelerate(model)
    return model


def masked(style):
    model = styles.MASKED[style]()
    genkernels.accelerate(model)
    return model


CPU, TORCH, REFERENCE = "the CPU kernel", "PyTorch's own operators", "the reference in plain PyTorch"
WINOGRAD, COL2IM, DIRECT = (f"{CPU} {name}" for name in ("winograd", "col2im", "direct"))
CALLS = {
    "blocks": (
        lambda: discriminator()(torch.randn(16, 3, 16, 16)), [TORCH, WINOGRAD, TORCH], "33.6 million multiply-adds",
    ),
    "blocks, evaluation": (
        lambda: discriminator().eval()(torch.randn(16, 3, 16, 16)),
        [TORCH, WINOGRAD, TORCH], "0.524 million multiply-adds",
    ),
    "blocks, float64": (
        lambda: discriminator(**torch64)(torch.randn(16, 3, 16, 16, **torch64)),
        [TORCH] * 3, "no native kernel for torch.float64",
    ),
    "own layer": (
        lambda: nn.ConvTransposeBnAct2d(8, 4, 3, 2, 1, 1, activation="tanh")(torch.randn(2, 8, 4, 5)),
        [TORCH], "9 taps",
    ),
    "block": (
        lambda: ops.conv2d_bn_act(torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4)),
        [DIRECT], "0.00778 million multiply-adds",
    ),
    "image": (
        lambda: ops.conv_transpose2d_bn_act(torch.randn(2, 8, 4, 4), torch.randn(8, 3, 4, 4), stride=2, padding=1,
                                            batch_norm=True, training=True),
        [COL2IM], "16 taps, contiguous",
    ),
    "block, float64": (
        lambda: ops.conv2d_bn_act(torch.randn(2, 3, 8, 8, **torch64), torch.randn(4, 3, 3, 3, **torch64)),
        [REFERENCE], "no native kernel for torch.float64",
    ),
    "masked": (
        lambda: masked("interleaved")(torch.randn(2, 6, 8, 8)), [CPU + " first_layer_nchw"], "it skips what is masked",
    ),
    "masked, channels_last": (
        lambda: masked("data")(torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)),
        [CPU + " im2row"], "channels_last",
    ),
    "masked, float64": (
        lambda: nn.MaskedConv2d(3, 4, 3, mask_type="A", **torch64)(torch.randn(3, 8, 8, **torch64)),
        [REFERENCE], "no native kernel for torch.float64",
    ),
    "row": (lambda: ops.row_lstm(torch.randn(2, 8, 4, 5), torch.randn(3, 8, 2)), [CPU], "sweeps the image in one call"),
    "one diagonal": (
        lambda: ops.diagonal_lstm(torch.randn(1, 8, 4, 5), torch.randn(2, 8, 2), mirrored=True), [CPU], "mirrored=True",
    ),
    "diagonal layer": (lambda: nn.DiagonalBiLSTM(3, 4)(torch.randn(2, 3, 4, 5)), [CPU], "diagonal_bilstm"),
}  # fmt: skip


@needs_native
@pytest.mark.parametrize("name", CALLS)
def test_it_says_what_ran_and_its_line_makes_the_same_call(name, capsys):
    call, implementations, reason = CALLS[name]
    capsys.readouterr()
    call()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 2)[2].split(", ")[0] for line in said] == implementations, said
    assert any(reason in line for line in said), said
    for line in said:
        verbose._said.clear()
        eval(line.split("; again with: ")[1], {"torch": torch, "genkernels": genkernels})
        assert capsys.readouterr().err.splitlines() == [line]


def test_it_says_so_once_for_each_shape_and_never_of_the_trials(capsys):
    layer = styles.MASKED["data"]()
    genkernels.accelerate(layer)
    assert capsys.readouterr().err == ""
    for size in (5, 6, 5):
        layer(torch.randn(2, 4, size, size))
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_instance_norm_says_what_ran(monkeypatch, capsys):
    layer = nn.InstanceNormAct2d(3, affine=True, activation="relu")
    x = torch.randn(2, 3, 6, 6)
    layer(x)
    assert "instance_norm_act: PyTorch's own operators, 216 values, gradients; again with: " in capsys.readouterr().err
    monkeypatch.setattr(verbose, "_said", set())
    with torch.no_grad():
        layer(x)
    assert "instance_norm_act: the CPU kernel planes, it walks each image once; again with: " in capsys.readouterr().err


def test_the_environment_switches_it_on():
    code = """
        import contextlib, io, torch, genkernels
        with contextlib.redirect_stderr(io.StringIO()) as said:
            genkernels.nn.MaskedConv2d(1, 2, 3, mask_type="A")(torch.randn(1, 1, 4, 4))
        print(said.getvalue().count("genkernels: masked_conv2d: "))
    """
    assert run_fresh(code, GENKERNELS_VERBOSE="1") == "1"


def test_it_is_silent_otherwise(monkeypatch, capsys):
    monkeypatch.setattr(verbose, "_ON", False)
    nn.MaskedConv2d(1, 2, 3, mask_type="A")(torch.randn(1, 1, 4, 4))
    assert capsys.readouterr().err == ""
