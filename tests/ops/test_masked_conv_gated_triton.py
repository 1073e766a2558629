"""The gate in the Triton kernels of the masked convolution: against float64, both halves of every unit in one tile."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.grids import DTYPES, assert_within_bound, laid_out, name_of, nan_in_fresh_memory, pairwise
from helpers.strided import in_turn, strided, whole_numbers
from helpers.triton_device import DEVICE, INTERPRETED, overflow_is_an_error, triton_tests
from torch import Tensor

from genkernels.ops import masked_conv2d_gated

pytestmark = [*triton_tests, pytest.mark.usefixtures("one_small_tile")]

AXES = {
    "dtype": DTYPES,
    "size": ((1, 4), (5, 1), (3, 7)),
    # In, units. Below and above 16, from where on a step of the sum stays within a tap; one tile of 2h and several.
    "channels": ((3, 9), (17, 34), (35, 3)),
    "groups": (1, 2, 3),
    "kernel": ((1, 1), (3, 3), (1, 5)),
    "mask_type": ("A", "B"),
    "bias": (True, False),
    "addend": ("none", "contiguous", "expanded_pixels"),
    "x_layout": ("contiguous", "window_channels_last"),
    "grad_layout": ("contiguous", "channels_last"),
}


def live_taps(outputs: int, inputs: int, kernel: tuple[int, int], mask_type: str, groups: int) -> Tensor:
    """The mask, written down channel by channel: both halves of a unit have the unit's colour."""
    live = torch.zeros(outputs, inputs, *kernel)
    height, width = kernel
    live[:, :, : height // 2] = 1
    live[:, :, height // 2, : width // 2] = 1
    for o in range(outputs):
        for c in range(inputs):
            of_unit, of_input = o % (outputs // 2) * groups // (outputs // 2), c * groups // inputs
            live[o, c, height // 2, width // 2] = of_input < of_unit or (of_input == of_unit and mask_type == "B")
    return live


def plain(inputs: dict[str, Tensor], grad_output: Tensor, live: Tensor) -> list[Tensor]:
    """y and all gradients in plain PyTorch, in the dtype of the inputs."""
    leaves = {name: t.detach().contiguous().requires_grad_() for name, t in inputs.items()}
    padding = [k // 2 for k in live.shape[2:]]
    z = F.conv2d(leaves["x"], leaves["weight"] * live.to(leaves["weight"]), leaves.get("bias"), padding=padding)
    a, b = (z + leaves["addend"] if "addend" in leaves else z).chunk(2, 1)
    y = a.tanh() * b.sigmoid()
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad_output)]


def ours(inputs: dict[str, Tensor], grad_output: Tensor, **options) -> list[Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    y = masked_conv2d_gated(**leaves, **options)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad_output)]


@pytest.mark.parametrize("case", pairwise(AXES), ids=name_of)
def test_result_and_gradients_are_within_the_bound(case):
    generator = torch.Generator().manual_seed(0)
    (channels, units), size = case["channels"], case["size"]
    options = {"mask_type": case["mask_type"], "channel_groups": case["groups"]}

    def random(*shape, layout="contiguous"):
        values = torch.randn(shape, generator=generator).to(DEVICE, case["dtype"])
        return laid_out(values, layout) if len(shape) == 4 else values

    inputs = {"x": random(2, channels, *size, layout=case["x_layout"])}
    inputs["weight"] = random(2 * units, channels, *case["kernel"]) * 0.2
    if case["bias"]:
        inputs["bias"] = random(2 * units)
    if case["addend"] == "expanded_pixels":
        inputs["addend"] = random(2, 2 * units, 1, 1)
    elif case["addend"] != "none":
        inputs["addend"] = random(2, 2 * units, *size, layout=case["addend"])
    grad_output = random(2, units, *size, layout=case["grad_layout"])
    with nan_in_fresh_memory():
        got = ours(inputs, grad_output, **options)
        with torch.no_grad():
            assert masked_conv2d_gated(**inputs, **options).equal(got[0]), "what is kept for backward changes y"
    live = live_taps(2 * units, channels, case["kernel"], options["mask_type"], options["channel_groups"])
    assert all(t.dtype == case["dtype"] for t in got)
    assert_within_bound(
        ("y", *inputs),
        got,
        lambda *t: plain(dict(zip(inputs, t, strict=False)), t[-1], live),
        [*inputs.values(), grad_output],
        eps=torch.finfo(case["dtype"]).eps,  # the features are kept, and their gradient handed on, in the storage type
    )
    assert not got[2][live.to(DEVICE) == 0].any(), "a masked tap has a gradient"


@pytest.mark.parametrize("image", [(1, 17, 4, 1), (2, 1, 1, 5)])
def test_single_dimensions_have_any_stride(image):
    n, channels, *size = image
    shapes = {"x": image, "weight": (34, channels, 3, 1), "bias": (34,), "addend": (n, 34, *size), "y": (n, 17, *size)}
    values = {name: whole_numbers(shape, k).to(DEVICE) * 0.2 for k, (name, shape) in enumerate(shapes.items())}
    *inputs, grad_output = values.items()
    expected = ours(dict(inputs), grad_output[1], mask_type="B")
    for strides in itertools.islice(in_turn(list(shapes.values())), 3, None, 11):
        tensors = {name: strided(t, own) for (name, t), own in zip(values.items(), strides, strict=True)}
        got = ours(tensors, tensors.pop("y"), mask_type="B")
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_second_derivatives_are_those_of_pytorch():
    shapes = {"x": (1, 3, 2, 3), "weight": (4, 3, 1, 3), "bias": (4,), "addend": (1, 4, 2, 3)}
    inputs = {name: torch.randn(shape, device=DEVICE, requires_grad=True) for name, shape in shapes.items()}
    live = live_taps(4, 3, (1, 3), "B", 1).to(DEVICE)

    def in_pytorch(x, weight, bias, addend):
        a, b = (F.conv2d(x, weight * live, bias, padding=(0, 1)) + addend).chunk(2, 1)
        return a.tanh() * b.sigmoid()

    def penalty(y):
        grads = torch.autograd.grad(y.square().sum(), list(inputs.values()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), list(inputs.values()))

    got, expected = penalty(masked_conv2d_gated(**inputs, mask_type="B")), penalty(in_pytorch(**inputs))
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_addends_further_apart_than_31_bits_reach():
    """Three images of an addend whose last starts beyond 2**31 elements; only what is used is ever touched."""
    units, far = 17, 2**30 + 64
    memory = torch.empty(2 * far + 2 * units * 6, dtype=torch.float16, device=DEVICE)
    addend = memory.as_strided((3, 2 * units, 2, 3), (far, 1, 6 * units, 2 * units))
    addend.copy_(torch.randn(addend.shape))
    x, weight = torch.randn(3, 17, 2, 3, device=DEVICE).half(), torch.randn(2 * units, 17, 1, 3, device=DEVICE).half()
    with overflow_is_an_error():
        got = masked_conv2d_gated(x, weight, None, addend, mask_type="B")
    assert got.equal(masked_conv2d_gated(x, weight, None, addend.clone(), mask_type="B"))


# --- on a GPU alone ---


@pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a GPU")
def test_a_cuda_graph_captures_it_and_torch_compile_and_autocast_give_the_same():
    shapes = {"x": (2, 32, 9, 8), "weight": (64, 32, 1, 3), "bias": (64,), "addend": (2, 64, 9, 8)}
    inputs = {name: torch.randn(shape, device=DEVICE) for name, shape in shapes.items()}
    grad_output = torch.randn(2, 32, 9, 8, device=DEVICE)
    expected = ours(inputs, grad_output, mask_type="B")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ours(inputs, grad_output, mask_type="B")
    graph.replay()
    assert all(a.equal(b) for a, b in zip(captured, expected, strict=True))

    def step(x, weight, bias, addend):
        with torch.autocast("cuda", torch.bfloat16):
            return masked_conv2d_gated(x, weight, bias, addend, mask_type="B")

    leaves = [t.requires_grad_() for t in inputs.values()]
    eager, compiled = step(*leaves), torch.compile(step, fullgraph=True)(*leaves)
    assert eager.dtype == torch.bfloat16
    assert compiled.equal(eager)
    assert compiled.stride() == eager.stride()
    grads = [torch.autograd.grad(y.float().sum(), leaves) for y in (eager, compiled)]
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))
