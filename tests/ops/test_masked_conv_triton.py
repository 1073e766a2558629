"""The Triton kernels of the masked convolution: against float64, taps that do not exist, indices, tilings."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.grids import DENSE, DTYPES, laid_out, nan_in_fresh_memory, pairwise, short
from helpers.strided import in_turn, strided, whole_numbers
from helpers.triton_device import DEVICE, INTERPRETED, overflow_is_an_error, triton_tests

from genkernels.ops import masked_conv2d
from ops.test_masked_conv import dead_taps, gradients
from ops.test_masked_conv_grid import Case, check

pytestmark = [*triton_tests, pytest.mark.usefixtures("one_small_tile")]

if torch.cuda.is_available() or INTERPRETED:
    from genkernels.triton_conv import launch

AXES = {
    "dtype": DTYPES,
    "batch": (0, 1, 2),
    "size": ((1, 1), (1, 9), (6, 1), (5, 5), (3, 7)),
    # Below and above 16, from where on a step of the sum stays within a tap; one tile and several.
    "channels": ((1, 5), (3, 18), (18, 3), (17, 34), (34, 17)),
    "groups": ((1, "blocks"), (2, "blocks"), (3, "blocks"), (3, "interleaved")),
    "kernel": ((1, 1), (3, 3), (1, 5), (5, 1)),
    "dilation": ((1, 1), (2, 1), (1, 2)),
    "mask_type": ("A", "B"),
    "bias": (True, False),
    "activation": (None, "relu"),
    "x_layout": ("contiguous", "channels_last", "window_channels_last", "expanded_batch"),
    "weight_layout": ("contiguous", "channels_last", "every_second"),
    "grad_layout": ("contiguous", "channels_last", "expanded_pixels"),
}


@pytest.fixture
def every_tiling(monkeypatch):
    """Every candidate runs, and the last one's result counts; gives the tilings that have run."""
    done = []

    def run_all(key, candidates, run, device):
        for tile in candidates:
            run(tile)
            done.append(tile)
        return candidates[0]

    monkeypatch.setattr(launch, "choose", run_all)
    return done


@pytest.mark.parametrize("case", [Case(**row) for row in pairwise(AXES)], ids=str)
def test_result_and_gradients_are_within_the_bound(case):
    check(case, DEVICE)


@pytest.mark.parametrize(("image", "outputs"), [((1, 17, 4, 1), 17), ((2, 1, 1, 5), 17), ((2, 18, 1, 1), 1)])
def test_single_dimensions_have_any_stride(image, outputs):
    shapes = [image, (outputs, image[1], 3, 1), (outputs,), (image[0], outputs, *image[2:])]
    values = [whole_numbers(shape, k).to(DEVICE) for k, shape in enumerate(shapes)]
    expected = gradients(*values, mask_type="B", activation="relu")
    for strides in itertools.islice(in_turn(shapes), 3, None, 11):
        tensors = [strided(t, own) for t, own in zip(values, strides, strict=True)]
        got = gradients(*tensors, mask_type="B", activation="relu")
        assert all(a.equal(b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("channels", "kernel", "groups", "layout"),
    [((7, 5), (3, 3), 1, "blocks"), ((7, 5), (3, 3), 3, "interleaved"), ((18, 33), (1, 3), 3, "blocks")],
)
def test_what_stands_in_a_masked_weight_is_never_read(channels, kernel, groups, layout):
    inputs, outputs = channels
    dead = dead_taps(outputs, inputs, kernel, "A", groups, layout).to(DEVICE)
    x, grad = torch.randn(1, inputs, 3, 3, device=DEVICE), torch.randn(1, outputs, 3, 3, device=DEVICE)
    weight = torch.randn(dead.shape, device=DEVICE).masked_fill(dead, 0)
    options = {"mask_type": "A", "channel_groups": groups, "group_layout": layout}
    expected = gradients(x, weight, None, grad, **options)
    got = gradients(x, weight.masked_fill(dead, torch.nan), None, grad, **options)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("channels", [3, 17])
def test_a_nan_reaches_the_pixels_that_see_it_and_no_others(channels):
    sees = torch.zeros(6, 7, dtype=torch.bool)
    for row, column in itertools.product(range(3), range(5)):
        if (row, column) < (1, 2):
            sees[3 - (row - 1), 4 - (column - 2)] = True
    x, weight = torch.randn(1, channels, 6, 7, device=DEVICE), torch.randn(5, channels, 3, 5, device=DEVICE).abs()
    x[0, :, 3, 4] = torch.nan
    y = masked_conv2d(x, weight, mask_type="A", activation="relu").cpu()
    assert y[0].isnan().all(0).equal(sees)
    assert y[0].isnan().any(0).equal(sees)


@pytest.mark.parametrize("layout", DENSE)
def test_the_same_call_gives_the_same_bits(layout):
    tensors = [torch.randn(shape, device=DEVICE) for shape in ((2, 17, 4, 5), (5, 17, 1, 3), (5,), (2, 5, 4, 5))]
    tensors[0] = laid_out(tensors[0], layout)
    first, second = (gradients(*tensors, mask_type="B", activation="relu") for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("needs", [n for n in itertools.product((True, False), repeat=3) if any(n)])
def test_each_gradient_is_the_same_whichever_others_are_asked_for(needs):
    values = [torch.randn(shape, device=DEVICE) for shape in ((2, 17, 3, 4), (18, 17, 1, 3), (18,))]
    grad = torch.randn(2, 18, 3, 4, device=DEVICE)
    everything = gradients(*values, grad, mask_type="B", activation="relu")[1:]
    inputs = [t.requires_grad_(need) for t, need in zip(values, needs, strict=True)]
    with nan_in_fresh_memory():
        masked_conv2d(*inputs, mask_type="B", activation="relu").backward(grad)
    for leaf, expected, need in zip(inputs, everything, needs, strict=True):
        assert leaf.grad.equal(expected) if need else leaf.grad is None


@pytest.mark.parametrize("channels, which", [((3, 4), "x"), ((17, 4), "x"), ((3, 17), "grad_output")])
def test_images_further_apart_than_31_bits_reach(channels, which):
    """Three images in one tensor whose last starts beyond 2**31 elements; only what is used is ever touched.

    Their distance is less: a stride that needs 64 bits would make Triton calculate in these by itself.
    """
    inputs, outputs = channels
    x, grad = (torch.randn(3, c, 3, 2, device=DEVICE).half() for c in channels)
    weight, bias = torch.randn(outputs, inputs, 3, 3, device=DEVICE).half(), torch.randn(outputs, device=DEVICE).half()
    near, far = x if which == "x" else grad, 2**30 + 64
    near = near.contiguous(memory_format=torch.channels_last)
    memory = torch.empty(2 * far + near[0].numel(), dtype=torch.float16, device=DEVICE)
    apart = memory.as_strided(near.shape, (far, *near.stride()[1:])).copy_(near)
    given = [(near, grad), (apart, grad)] if which == "x" else [(x, near), (x, apart)]
    expected, got = [], []
    with overflow_is_an_error():
        for (image, gradient), results in zip(given, (expected, got), strict=True):
            results += gradients(image, weight, bias, gradient, mask_type="B", activation="relu")
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("offset", [1, 3])
def test_tensors_off_16_byte_alignment(offset):
    def shifted(*shape):
        values = torch.randn(shape, device=DEVICE).half().contiguous(memory_format=torch.channels_last)
        memory = torch.empty(values.numel() + offset, dtype=values.dtype, device=DEVICE)
        return memory[offset:].as_strided(shape, values.stride()).copy_(values)

    x, weight, grad = shifted(1, 32, 3, 4), shifted(16, 32, 1, 3), shifted(1, 16, 3, 4)
    expected = gradients(x.clone(), weight.clone(), None, grad.clone(), mask_type="B")
    for ours, theirs in zip(gradients(x, weight, None, grad, mask_type="B"), expected, strict=True):
        assert ours.equal(theirs)


def test_second_derivatives_are_those_of_pytorch():
    x, weight, bias = (torch.randn(s, device=DEVICE, requires_grad=True) for s in ((1, 3, 3, 3), (4, 3, 3, 3), (4,)))
    live = ~dead_taps(4, 3, (3, 3), "B", 1, "blocks").to(DEVICE)

    def penalty(conv):
        grads = torch.autograd.grad(conv().square().sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), (x, weight, bias))

    got = penalty(lambda: masked_conv2d(x, weight, bias, mask_type="B", activation="relu"))
    expected = penalty(lambda: F.conv2d(x, weight * live, bias, padding=1).relu())
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


# --- on a GPU alone ---

on_gpu = pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a GPU")


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("tf32", [True, False])
@pytest.mark.parametrize("layout", DENSE)
def test_every_tiling_of_a_large_convolution_is_exact_on_whole_numbers(every_tiling, monkeypatch, layout, tf32, dtype):
    if tf32 and dtype != torch.float32:
        pytest.skip("TF32 is about float32")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    shapes = (4, 64, 32, 32), (96, 64, 3, 3), (96,), (4, 96, 32, 32)
    x, weight, bias, grad = (torch.randint(-2, 3, s, device=DEVICE).to(dtype) for s in shapes)
    x, grad = laid_out(x, layout), laid_out(grad, layout).mul_(torch.rand(4, 1, 32, 32, device=DEVICE) < 0.1)
    got = gradients(x, weight, bias, grad, mask_type="B")
    inputs = [t.double().requires_grad_() for t in (x, weight, bias)]
    live = ~dead_taps(96, 64, (3, 3), "B", 1, "blocks").to(DEVICE)
    y = F.conv2d(inputs[0], inputs[1] * live, inputs[2], padding=1)
    for ours, exact in zip(got, (y.detach(), *torch.autograd.grad(y, inputs, grad.double())), strict=True):
        assert ours.equal(exact.to(dtype))
    assert len(set(every_tiling)) > 2


@on_gpu
def test_a_cuda_graph_captures_forward_and_backward():
    tensors = [torch.randn(s, device=DEVICE) for s in ((2, 32, 9, 8), (16, 32, 3, 3), (16,), (2, 16, 9, 8))]
    expected = gradients(*tensors, mask_type="B", activation="relu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(*tensors, mask_type="B", activation="relu")
    for t in captured:
        t.fill_(torch.nan)
    graph.replay()
    assert all(a.equal(b) for a, b in zip(captured, expected, strict=True))


@on_gpu
def test_the_callers_stream_is_used():
    tensors = [torch.randn(s, device=DEVICE) for s in ((2, 32, 9, 8), (16, 32, 3, 3), (16,), (2, 16, 9, 8))]
    expected = gradients(*tensors, mask_type="B")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x = tensors[0] * 2
        got = gradients(x, *tensors[1:], mask_type="B")
        event = stream.record_event()
        assert not event.query()  # nothing has waited for the sleep
    event.synchronize()
    assert got[2].equal(expected[2] * 2)


@pytest.mark.skipif(torch.cuda.device_count() < 2 or INTERPRETED, reason="needs two GPUs")
def test_tensors_on_another_gpu_than_the_current_one():
    tensors = [torch.randn(s) for s in ((2, 32, 9, 8), (16, 32, 3, 3), (16,), (2, 16, 9, 8))]
    first, second = (
        gradients(*(t.to(f"cuda:{index}") for t in tensors), mask_type="B", activation="relu") for index in (0, 1)
    )
    assert torch.cuda.current_device() == 0
    assert all(a.cpu().equal(b.cpu()) for a, b in zip(first, second, strict=True))


@on_gpu
def test_torch_compile_and_autocast():
    x, weight = torch.randn(2, 32, 9, 8, device=DEVICE), torch.randn(16, 32, 3, 3, device=DEVICE, requires_grad=True)
    x = x.contiguous(memory_format=torch.channels_last)

    def step(x, weight):
        with torch.autocast("cuda", torch.bfloat16):
            return masked_conv2d(x, weight, mask_type="B", activation="relu")

    eager, compiled = step(x, weight), torch.compile(step, fullgraph=True)(x, weight)
    assert eager.dtype == torch.bfloat16
    assert compiled.equal(eager)
    assert compiled.stride() == eager.stride() == (9 * 8 * 16, 1, 8 * 16, 16)
    grads = [torch.autograd.grad(y.float().sum(), weight)[0] for y in (eager, compiled)]
    assert grads[0].equal(grads[1])
