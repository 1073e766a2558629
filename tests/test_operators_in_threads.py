"""Forward and backward passes of the operators in several threads at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from genkernels.nn import (
    ConvBnAct2d,
    ConvTransposeBnAct2d,
    DiagonalBiLSTM,
    GatedMaskedConv2d,
    InstanceNormAct2d,
    MaskedConv2d,
    RowLSTM,
)

THREADS, ROUNDS = 6, 3

LAYERS = {
    "masked_conv2d": lambda: MaskedConv2d(6, 8, 3, mask_type="B"),
    "masked_conv2d, gated": lambda: GatedMaskedConv2d(6, 6, 3, mask_type="B"),
    "row_lstm": lambda: RowLSTM(6, 8),
    "diagonal_lstm": lambda: DiagonalBiLSTM(6, 8),
    "instance_norm_act": lambda: InstanceNormAct2d(6, affine=True, activation="relu"),
    "conv_bn_act": lambda: ConvBnAct2d(6, 8, 4, stride=2, padding=1),
    "conv_transpose_bn_act": lambda: ConvTransposeBnAct2d(6, 8, 4, stride=2, padding=1),
}


def results(layer, k):
    """Output and gradients for an input of the thread's own; the parameters are everyone's."""
    x = torch.randn(2, 6, 6 + k % 2, 8, generator=torch.Generator().manual_seed(k)).requires_grad_()
    y = torch.cat(layer(x, x.tanh())) if isinstance(layer, GatedMaskedConv2d) else layer(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("name", LAYERS)
def test_an_operator_gives_every_thread_what_it_gives_one(name, one_thread):
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()  # a training step's statistics would depend on the threads' order
    expected = [results(layer, k) for k in range(THREADS)]
    barrier = threading.Barrier(THREADS)

    def run(k):
        barrier.wait()
        return [results(layer, k) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(THREADS) as pool:
        got = list(pool.map(run, range(THREADS)))
    for mine, rounds in zip(expected, got, strict=True):
        for tensors in rounds:
            assert all(torch.equal(a, b) for a, b in zip(tensors, mine, strict=True))
