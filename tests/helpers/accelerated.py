"""A model and its accelerated copy, side by side."""

import copy
import io

import torch

import genkernels
from genkernels.ops.conv_bn_act.heuristics import always_kernel


def step(model, x):
    """Output, gradients by name and buffers, with the kernels at every size."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    with always_kernel():
        y = model(x)
    y.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads, **{name: b.clone() for name, b in model.named_buffers()}}


def assert_same(got, expected, masks=()):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        mask = dict(masks).get(name, 1)
        torch.testing.assert_close(got[name] * mask, value * mask, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: n + m)


def assert_compiles(fast, plain, x):
    """In one graph with its backward, to the same result; leaves the gradients of both."""
    torch.compiler.reset()
    y, expected = torch.compile(fast, fullgraph=True, backend="aot_eager")(x), plain(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for result in (y, expected):
        result.square().sum().backward()


def reloaded(model):
    """The whole module, saved and loaded."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pair(make, *, swapped=1, example=None):
    """A model and its accelerated copy."""
    plain = make()
    fast = copy.deepcopy(plain)
    report = genkernels.accelerate(fast, example=example)
    assert len(report.swapped) == swapped, str(report)
    return plain, fast, report
