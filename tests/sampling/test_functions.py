"""Comparisons and choices, elementary functions, products with matrices, in other people's models."""

import pytest
import torch
import torch.nn.functional as F
from helpers.sampler_bodies import assert_followed, channels_last, compile_without_running

from genkernels import backends, sampling

pytestmark = [
    pytest.mark.skipif(backends.native() is None, reason="the native extension is not loaded"),
    pytest.mark.usefixtures("one_thread"),
]


def set_where(net, y):
    y = y.clone()
    y[y > 0.5] = 0.25
    return y


CONDITIONS = {
    "a product with a comparison": lambda net, y: y * (y > 0) + 0.1 * y * (y <= 0),
    "all comparisons": lambda net, y: (
        (y > 0.1).to(y.dtype) + (y >= y.mean(1, True)) * y - 2.0 * (y < -0.2) + y * (y <= 0.3).float()
        + (y == y.amax(1, True)) * 0.5 + (y != y[:, :1]) * y
    ),
    "where": lambda net, y: torch.where(y > 0, y, 0.1 * y) + torch.where(y < 1, y, 0.0) + torch.where(y < 0, -1.0, y),
    "numbers for truth": lambda net, y: (
        y * torch.where(y > 0, 1.0, 0.3) + torch.where(y[:, :1] > 0, y[:, 1:2], y[:, 2:3])
    ),
    "one channel of the image": lambda net, y: y + torch.where(y[:, 0] > 0, y[:, 1], -y[:, 2].abs().sqrt())[:, None],
    "a constant condition": lambda net, y: torch.where(net.gain[:, None, None] > 0, y, y.exp()),
    "masked fill": lambda net, y: y.masked_fill(y < 0, 0.3) + y.masked_fill(net.gain[:, None, None] > 0, -2.0),
    "masked fill in place": lambda net, y: y.clone().masked_fill_(y > 1, 1.0),
    "set where it is so": set_where,
    "logic": lambda net, y: y.masked_fill(~((y > 1) & (y < 2) | (y < -1) ^ (y < -2)), 0.5) * torch.logical_not(y > 3),
    "logic with a constant": lambda net, y: y.masked_fill((y > 0) & (net.gain > 0)[:, None, None], 0.5),
    "counted": lambda net, y: y * (y > 0).sum(1, keepdim=True) + (y < 0).to(y.dtype).mean(1, keepdim=True),
    "truth values added": lambda net, y: y * ((y > 0) + (y > 1)) + y * ((y > 0).float() + (y > 1).float()),
    "truth values as whole numbers": lambda net, y: y * (2 * (y > 0).long() - 1),
    "truth of numbers": lambda net, y: y * y.relu().bool() + torch.logical_and(y.relu(), y < 1) * 0.5,
    "channels last": channels_last(lambda net, y: torch.where(y > net.gain, y, -y)),
    "straight through": lambda net, y: y + ((y > 0).float() - y).detach(),
}  # fmt: skip

FUNCTIONS = {
    "powers": lambda net, y: y.pow(2) + y**3 + torch.square(y) + (y.abs() + 0.1) ** -1 + (y.abs() + 0.1) ** -0.5,
    "powers of any kind": lambda net, y: (y.abs() + 0.1) ** 1.7 + 2**y + (y.abs() + 0.2) ** y + y.abs() ** 0.5 + y**1,
    "roots and logarithms": lambda net, y: (
        y.abs().sqrt() + y.abs().log1p() + (y.abs() + 0.1).rsqrt() + (y.abs() + 0.1).log()
    ),
    "waves": lambda net, y: y.sin() + (3 * y).cos() * torch.expm1(0.1 * y),
    "signs": lambda net, y: torch.sign(y) * y.abs() + torch.sgn(y) * 0.1 + y.abs_(),
    "GELU by hand": lambda net, y: y * 0.5 * (1.0 + torch.erf(y / 2**0.5)),
    "extremes": lambda net, y: torch.maximum(y, -y) + torch.minimum(y, y.mean(1, True)) + torch.max(y, 0.5 - y),
    "between two tensors": lambda net, y: y.clamp(y[:, :1], y[:, 1:2] + 1) + y.clamp(max=net.gain[:, None, None]),
    "scaled sums": lambda net, y: (
        torch.addcmul(y, y, y, value=0.1) + torch.addcdiv(y, y, 1 + y**2) + torch.lerp(y, -y, 0.3)
    ),
    "PReLU": lambda net, y: net.prelu(y) + net.prelu_of_one(y),
    "hard activations": lambda net, y: F.hardsigmoid(y) + F.hardswish(y) + F.relu6(3 * y) + F.hardtanh(y),
    "smooth activations": lambda net, y: F.mish(y) + F.logsigmoid(y) + F.softsign(y) + F.tanhshrink(y) + F.celu(y, 0.3),
    "shrinking": lambda net, y: F.softshrink(y) + F.hardshrink(y) + F.threshold(y, 0.1, 0.2) + F.selu(y),
    "activations of channels that come last": channels_last(lambda net, y: F.logsigmoid(y) + F.mish(y).abs_().sqrt_()),
    "concat-ELU": lambda net, y: net.wide(F.elu(torch.cat([y, -y], 1))),
    "dropout": lambda net, y: F.dropout(net.drop(y), 0.5, net.training),
    "weight norm": lambda net, y: net.normed(y),
    "codes of positions": lambda net, y: y + torch.stack([
        torch.arange(y.shape[2])[:, None].sin().expand(y.shape[2:]), torch.arange(y.shape[3]).cos().expand(y.shape[2:]),
    ]).repeat(3, 1, 1),
    "a map of scales": lambda net, y: (
        y * (1 + torch.arange(y.shape[3]) / 7) + y / (1 + torch.arange(y.shape[2])[:, None])
    ),
}  # fmt: skip

MATRICES = {
    "einsum": lambda net, y: torch.einsum("oc,nchw->nohw", net.matrix, y),
    "einsum channels last": channels_last(lambda net, y: torch.einsum("nhwc,oc->nhwo", y, net.matrix)),
    "einsum of groups": lambda net, y: (
        torch.einsum("ngchw,gcd->ngdhw", y.unflatten(1, (2, 3)), net.blocks).flatten(1, 2)
    ),
    "matrix times pixels": lambda net, y: (net.matrix @ y.flatten(2)).view_as(y),
    "pixels times matrix": channels_last(lambda net, y: y @ net.matrix),
    "bmm": lambda net, y: torch.bmm(net.matrix.expand(len(y), -1, -1), y.flatten(2)).view_as(y),
    "bmm of pixels": lambda net, y: torch.bmm(
        y.flatten(2).transpose(1, 2), net.matrix.expand(len(y), -1, -1)
    ).transpose(1, 2).view_as(y),
    "tensordot": lambda net, y: torch.tensordot(y, net.matrix, ([1], [0])).permute(0, 3, 1, 2),
    "linear": lambda net, y: F.linear(y.movedim(1, -1), net.matrix, net.gain).movedim(-1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CONDITIONS, *FUNCTIONS, *MATRICES])
def test_models_with_such_functions_are_sampled_as_by_full_forward_passes(name):
    assert_followed((CONDITIONS | FUNCTIONS | MATRICES)[name])


# --- what is refused --------------------------------------------------------------------------------------------

REFUSED = {
    "truth values in a convolution": (
        lambda net, y: F.conv2d(y > 0, net.gate.weight) * y,
        "layer 'convolution': aten::convolution of torch.bool; turn it into torch.float32",
    ),
    "elements picked by a condition": (
        lambda net, y: y[y > 0].sum() + y, "picks elements by truth values that depend on the image",
    ),
    "numbers set by a condition": (
        lambda net, y: y.clone().index_put_((y > 0,), y.flatten()), "index_put_ at places that depend on the image",
    ),
    "bits of numbers": (
        lambda net, y: y * ((y > 0).long() & 3), "aten::bitwise_and on bits; of truth values alone, got torch.int64",
    ),
    "a rounded quotient": (
        lambda net, y: torch.div(y, 2, rounding_mode="floor"), r"a quotient that is rounded \(floor\)",
    ),
    "bytes": (lambda net, y: y * (y > 0).byte(), "changes the dtype from torch.bool to torch.uint8"),
    "another precision": (lambda net, y: y * (y > 0).double(), "changes the dtype from torch.bool to torch.float64"),
    "a norm of another order": (lambda net, y: y / y.norm(3, 1, keepdim=True), "a norm of order 3"),
    "a random activation": (lambda net, y: F.rrelu(y), "draws random numbers"),
    "a matrix of the image": (
        lambda net, y: torch.bmm(y.flatten(2), y.flatten(2).transpose(1, 2)), "aten::convolution of attention scores",
    ),
    "a matrix for each image": (
        lambda net, y: torch.bmm(net.blocks.repeat(1, 2, 2), y.flatten(2)).view_as(y), "a matrix for each image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_known_is_refused_with_the_layer_and_the_reason(name):
    body, message = REFUSED[name]
    with pytest.raises(sampling.NotTraceable, match=message):
        compile_without_running(body)
