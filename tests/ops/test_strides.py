"""Every operation gives the same whatever the strides: those of single dimensions, expanded ones, and overlaps.

The oracle is the operation itself in float64, which PyTorch's own operators compute, on a plain contiguous copy of the
same values. What the strides of a dimension of size 1 are, PyTorch leaves open, and a kernel must not step by them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.grids import needs_native
from helpers.strided import dense, in_turn, overlapping, plain, strided, whole_numbers
from torch import Tensor, nn

import genkernels
import genkernels.nn as gk
from genkernels import ops, sampling
from genkernels.models import PixelCNN
from genkernels.ops.conv_bn_act.heuristics import always_kernel
from genkernels.ops.core.strides import strides_of
from genkernels.sampling.request import check_request

pytestmark = [needs_native, pytest.mark.usefixtures("one_thread")]

Shape = tuple[int, ...]


# --- the operations ---


def conv_shapes(kernel: Shape, vectors: int = 1) -> Callable[[Shape, int], list[Shape]]:
    return lambda image, outputs: [image, (outputs, image[1], *kernel), *[(outputs,)] * vectors]


def turned_shapes(image: Shape, outputs: int) -> list[Shape]:
    return [image, (image[1], outputs, 4, 4), (outputs,), (outputs,), (outputs,)]


def normed_shapes(image: Shape, outputs: int) -> list[Shape]:
    n, c, h, w = image
    return [(n, c, h, w if h * w > 1 else 2), (c,), (c,)]  # one pixel has no variance


def gated_shapes(image: Shape, outputs: int) -> list[Shape]:
    n, c, h, w = image
    return [image, (2 * outputs, c, 3, 3), (2 * outputs,), (n, 2 * outputs, h, w)]


def walk_shapes(walks: int, taps: int) -> Callable[[Shape, int], list[Shape]]:
    def shapes(image: Shape, units: int) -> list[Shape]:
        n, _, h, w = image
        states = [(units,)] * (2 * walks)
        return [*[(n, 4 * units, h, w)] * walks, *[(taps, 4 * units, units)] * walks, *states]

    return shapes


def layer_shapes(walks: int, taps: int, kernel: Shape) -> Callable[[Shape, int], list[Shape]]:
    def shapes(image: Shape, units: int) -> list[Shape]:
        inputs = [[(4 * units, image[1], *kernel)] * walks, [(4 * units,)] * walks]
        return [image, *itertools.chain(*inputs), *[(taps, 4 * units, units)] * walks, *[(units,)] * (2 * walks)]

    return shapes


@dataclass(frozen=True)
class Operation:
    """A function of tensors, and the shapes of these by the image's [N, C, H, W] and the result's channels."""

    function: Callable[..., Tensor]
    shapes: Callable[[Shape, int], list[Shape]]
    scale: float = 1.0  # of the inputs but the first, where gates are not to be shut


def operation(function: Callable[..., Tensor], shapes: Callable[[Shape, int], list[Shape]], **options) -> Operation:
    scale = 1.0 if "conv2d" in function.__name__ or "transpose" in function.__name__ else 0.1
    return Operation(functools.partial(function, **options), shapes, scale)


def batch_normed(function: Callable[..., Tensor], **options) -> Callable[..., Tensor]:
    return lambda x, weight, bias, bn_weight, bn_bias: function(
        x, weight, bias, bn_weight=bn_weight, bn_bias=bn_bias, stride=2, batch_norm=True, training=True,
        activation="tanh", eps=0.1, **options,
    )  # fmt: skip


OPERATIONS = {
    "masked_conv2d": operation(ops.masked_conv2d, conv_shapes((3, 3)), mask_type="B", activation="relu"),
    "masked_conv2d A 1x3": operation(ops.masked_conv2d, conv_shapes((1, 3)), mask_type="A"),
    "masked_conv2d 3x1": operation(ops.masked_conv2d, conv_shapes((3, 1)), mask_type="B", dilation=2),
    "masked_conv2d 1x1": operation(ops.masked_conv2d, conv_shapes((1, 1)), mask_type="B", activation="relu"),
    "masked_conv2d_gated": Operation(functools.partial(ops.masked_conv2d_gated, mask_type="A"), gated_shapes, 0.1),
    "row_lstm": operation(ops.row_lstm, walk_shapes(1, 3)),
    "diagonal_lstm": operation(ops.diagonal_lstm, walk_shapes(1, 2), mirrored=True),
    "diagonal_bilstm": operation(ops.diagonal_bilstm, walk_shapes(2, 2), checkpoint=True),
    "row_lstm_layer": operation(ops.row_lstm_layer, layer_shapes(1, 3, (1, 3))),
    "diagonal_lstm_layer": operation(ops.diagonal_lstm_layer, layer_shapes(1, 2, (1, 1)), checkpoint=True),
    "diagonal_bilstm_layer": operation(ops.diagonal_bilstm_layer, layer_shapes(2, 2, (3, 3))),
    "instance_norm_act": Operation(functools.partial(ops.instance_norm_act, activation="tanh", eps=0.1), normed_shapes),
    "conv2d_bn_act 1x1": operation(ops.conv2d_bn_act, conv_shapes((1, 1)), activation="leaky_relu"),
    "conv2d_bn_act 3x1": operation(ops.conv2d_bn_act, conv_shapes((3, 1)), padding=(1, 0), activation="relu"),
    "conv2d_bn_act training": Operation(batch_normed(ops.conv2d_bn_act, padding=(2, 3)), conv_shapes((4, 4), 3), 0.5),
    "conv_transpose2d_bn_act": operation(
        ops.conv_transpose2d_bn_act, lambda *sizes: turned_shapes(*sizes)[:3], stride=2, padding=1, activation="relu"
    ),
    "conv_transpose2d_bn_act training": Operation(
        batch_normed(ops.conv_transpose2d_bn_act, padding=(2, 1), output_padding=1), turned_shapes, 0.5
    ),
}


# --- the comparison ---


def results(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor, along: Sequence[Tensor]
) -> list[Tensor]:
    """y, its gradients by upstream, and the gradients of these along directions by everything (or no directions)."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    upstream = upstream.detach().requires_grad_(bool(along))
    options = {"allow_unused": True, "materialize_grads": True}
    y = function(*leaves)
    found = [y, *torch.autograd.grad(y, leaves, upstream, create_graph=bool(along), **options)]
    if along:
        found += torch.autograd.grad(found[1:], [*leaves, upstream], along, **options)
    return [t.detach() for t in found]


class Call:
    """An operation's call on fixed values: inputs, upstream gradient and directions of the second derivatives."""

    def __init__(self, one: Operation, image: Shape, outputs: int) -> None:
        self.one = one
        shapes = one.shapes(image, outputs)
        inputs = [whole_numbers(shape, k) * (one.scale if k else 1) for k, shape in enumerate(shapes)]
        with torch.no_grad():
            y = one.function(*inputs)
        self.count = len(inputs)
        self.values = [*inputs, whole_numbers(y.shape, 50)]
        self.values += [whole_numbers(shape, 60 + k) for k, shape in enumerate(shapes)]

    def results(self, tensors: Sequence[Tensor], *, second: bool) -> list[Tensor]:
        return results(
            self.one.function, tensors[: self.count], tensors[self.count], tensors[self.count + 1 :] if second else []
        )

    def expected(self, tensors: Sequence[Tensor], *, second: bool) -> list[Tensor]:
        """Of the same values in plain contiguous tensors, in float64."""
        return self.results([plain(t, torch.float64) for t in tensors], second=second)


def assert_close(got: Sequence[Tensor], expected: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape
        error, size = float((ours - theirs).abs().max()), max(1.0, float(theirs.abs().max()))
        assert error <= 1e-4 * size, f"{error:g} of {size:g}: {[(tuple(t.shape), t.stride()) for t in tensors]}"


# --- single dimensions ---


def with_single_dimensions() -> Iterator[tuple[Shape, int]]:
    """Images and numbers of outputs of which each and every two are 1; else lines and channels beyond a register."""
    sizes = (2, 17, 3, 18, 17)  # N, C, H, W, outputs
    for count in (1, 2, 4, 5):
        for single in itertools.combinations(range(5), count):
            n, c, h, w, outputs = (1 if k in single else size for k, size in enumerate(sizes))
            yield (n, c, h, w), outputs


def check_single_dimensions(one: Operation, image: Shape, outputs: int) -> None:
    call = Call(one, image, outputs)
    expected = call.expected(call.values, second=True)
    for turn, strides in enumerate(in_turn([t.shape for t in call.values])):
        tensors = [strided(t, own, turn % 3) for t, own in zip(call.values, strides, strict=True)]
        got = call.results(tensors, second=turn % 16 == 3)
        assert_close(got, expected[: len(got)], tensors)


@pytest.mark.parametrize("name", OPERATIONS)
def test_single_dimensions_have_any_stride(name):
    for image, outputs in with_single_dimensions():
        check_single_dimensions(OPERATIONS[name], image, outputs)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if "training" in name or "transpose" in name])
def test_they_do_where_kernels_of_4x4_take_another_form(name):
    for image in ((2, 64, 24, 1), (2, 64, 1, 24), (1, 64, 8, 9)):
        check_single_dimensions(OPERATIONS[name], image, 64)


def test_the_tensors_of_these_tests_are_what_pytorch_calls_dense():
    for image, _ in with_single_dimensions():
        values = whole_numbers(image, 0)
        for strides in dense(image):
            t = strided(values, strides)
            assert t.equal(values)
            assert t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)


def test_a_transposed_image_of_one_column_is_read_as_it_is():
    x = torch.randn(2, 64, 1, 512).transpose(2, 3)
    assert x.is_contiguous()
    assert x.stride(3) == 512
    weight = torch.randn(64, 64, 4, 4)
    for _ in range(2):  # a call that has come before may take a shorter way
        y = ops.conv_transpose2d_bn_act(x, weight, stride=2, padding=1)
        torch.testing.assert_close(y, F.conv_transpose2d(plain(x), weight, None, 2, 1), rtol=1e-3, atol=1e-3)
        y = ops.masked_conv2d(x, weight[..., :3, :3], mask_type="B")
        assert y.equal(ops.masked_conv2d(plain(x), weight[..., :3, :3], mask_type="B"))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "MaskedConv2d": lambda: gk.MaskedConv2d(17, 17, 3, padding=1, mask_type="B", activation="relu"),
    "RowLSTM": lambda: gk.RowLSTM(17, 17, learned_state=True),
    "DiagonalBiLSTM": lambda: gk.DiagonalBiLSTM(17, 17, learned_state=True),
    "ConvBnAct2d": lambda: gk.ConvBnAct2d(17, 17, 3, padding=1, activation="tanh"),
    "ConvTransposeBnAct2d": lambda: gk.ConvTransposeBnAct2d(17, 17, 4, 2, 1, activation="tanh"),
    "InstanceNormAct2d": lambda: gk.InstanceNormAct2d(17, affine=True, activation="tanh"),
    "an accelerated block": lambda: accelerated_block(),
}


def accelerated_block() -> nn.Module:
    model = nn.Sequential(nn.ConvTranspose2d(17, 17, 4, 2, 1), nn.BatchNorm2d(17), nn.Tanh())
    assert len(genkernels.accelerate(model).swapped) == 1
    return model


@pytest.mark.parametrize("name", MODULES)
def test_so_have_those_of_what_modules_get(name):
    torch.manual_seed(0)
    module = MODULES[name]()
    one = Operation(module, lambda image, _: [image])
    for image in ((2, 17, 18, 1), (2, 17, 1, 18), (1, 17, 3, 18)):
        with always_kernel():
            call = Call(one, image, 17)
            expected = call.results(call.values, second=False)
            for strides in in_turn([t.shape for t in call.values]):
                tensors = [strided(t, own) for t, own in zip(call.values, strides, strict=True)]
                assert_close(call.results(tensors, second=False), expected, tensors)


def test_a_gradient_of_a_transposed_result_is_taken_as_it_is():
    x, weight = whole_numbers((3, 17, 18, 1), 0).requires_grad_(), whole_numbers((17, 17, 3, 3), 1)
    upstream = whole_numbers((3, 17, 1, 18), 2)
    for _ in range(2):
        y = ops.masked_conv2d(x, weight, mask_type="B", activation="relu")
        (got,) = torch.autograd.grad(y.transpose(2, 3), x, upstream)
        y = ops.masked_conv2d(x, weight, mask_type="B", activation="relu")
        (expected,) = torch.autograd.grad(y, x, plain(upstream.transpose(2, 3)))
        assert got.equal(expected)


@pytest.mark.parametrize("backend", ["cpu", "torch", "full_forward"])
@pytest.mark.parametrize("size", [(1, 5, 1), (1, 1, 6), (3, 1, 1), (3, 4, 1)])
def test_so_have_those_of_what_a_sampler_gets(backend, size):
    torch.manual_seed(0)
    model = PixelCNN(size[0], 6, 1, 4).eval()
    uniforms = torch.rand(1, *size)
    levels, known = torch.randint(4, uniforms.shape).to(torch.uint8), torch.rand(uniforms.shape) < 0.3
    table = model._scaled(torch.arange(4))

    def draw(*tensors: Tensor) -> Tensor:
        uniforms, levels, known = tensors
        shape = (1, *size)
        options = {
            "uniforms": uniforms,
            "given": levels,
            "known": known,
            "temperature": 1.0,
            "top_k": None,
            "generator": None,
        }
        request = check_request(shape, 4, torch.device("cpu"), **options)
        # As a request made by hand has them: what is to be drawn, and where to.
        request.free, request.images = (like(t, tensors[1]) for t in (request.free, request.images))
        return sampling.sample(model, model.predict, table, request, backend=backend)

    def like(t: Tensor, other: Tensor) -> Tensor:
        return unpoisoned(t, other.stride())

    expected = draw(uniforms, levels, known)
    for strides in in_turn([uniforms.shape] * 3):
        tensors = [unpoisoned(t, own) for t, own in zip((uniforms, levels, known), strides, strict=True)]
        assert draw(*tensors).equal(expected)


def unpoisoned(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(values.shape, strides, dtype=values.dtype).copy_(values)


# --- expanded and overlapping ones ---


@pytest.mark.parametrize("name", OPERATIONS)
def test_elements_may_share_memory(name):
    images = [(2, 17, 3, 18), (1, 17, 3, 18), (2, 1, 4, 17), (2, 17, 17, 1)]
    for turn in range(12):
        call = Call(OPERATIONS[name], images[turn % 4], (17, 1, 9)[turn % 3])
        tensors = []
        for k, t in enumerate(call.values):
            found = overlapping(t.shape)
            tensors.append(strided(t, found[(turn + 5 * k) % len(found)], turn % 3))
        second = turn in (2, 7)
        assert_close(call.results(tensors, second=second), call.expected(tensors, second=second), tensors)


# --- one place ---


def test_kernels_are_given_settled_strides_alone():
    # What asks PyTorch for strides: PyTorch's own rule for layouts, the key of a call, a promise about gradients, and
    # the views of a traced tensor.
    allowed = {"ops/core/strides.py", "ops/core/layout.py", "ops/core/prepared_call.py", "ops/conv_bn_act/dispatch.py"}
    allowed |= {"sampling/trace/rearranging.py"}
    folder = Path(ops.__file__).parents[1]
    files = [*(folder / "ops").rglob("*.py"), *(folder / "sampling").rglob("*.py")]
    asking = {str(path.relative_to(folder)) for path in files if ".stride(" in path.read_text()}
    assert asking == allowed


def test_dense_tensors_of_one_order_in_memory_have_one_settled_set_of_strides():
    for image, _ in with_single_dimensions():
        orders: dict[tuple, set] = {}
        for strides in dense(image):
            kept = tuple(step for size, step in zip(image, strides, strict=True) if size > 1)
            orders.setdefault(kept, set()).add(strides_of(strided(torch.zeros(image), strides)))
        assert all(len(settled) == 1 for settled in orders.values())
