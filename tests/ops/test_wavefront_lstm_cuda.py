"""The CUDA kernels of the wavefront LSTM: emulated on this machine's processor, and on a GPU where there is one.

The sources are the same, and so are the tests. Emulated devices are made small, so that a few units and images already
take clusters of blocks, and weights that do not fit. On a GPU the same limits are given to the planner.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence

import pytest
import torch
from helpers import cuda_emulated
from helpers.cuda_places import PLACES, Place, on_gpu
from helpers.grids import assert_accurate, laid_out, name_of, nan_in_fresh_memory, pairwise, widened, with_rounding
from helpers.strided import in_turn, strided
from helpers.wavefront_directions import (
    DIAGONAL,
    MIRRORED,
    OTHER_TAPS,
    ROW,
    SWEEPS,
    bilstm_inputs,
    inputs_for,
    plain_bilstm,
    plain_sweep,
    rounded_inputs,
    with_gradients,
)
from torch import Tensor

from genkernels.ops import diagonal_bilstm, row_lstm
from genkernels.ops.wavefront_lstm import dispatch, gpu
from genkernels.ops.wavefront_lstm.geometry import Geometry

H100 = (132, 232_448, 8)
A100 = (108, 166_912, 1)


def compute_float32(place: Place, *, exactly: bool) -> None:
    place.patch.setattr(gpu, "float32_precision", lambda: "ieee" if exactly else "tf32")


@pytest.fixture(params=PLACES)
def place(request, monkeypatch) -> Iterator[Place]:
    if request.param == "emulated":
        monkeypatch.setitem(dispatch.KERNELS, "CPU", gpu)
    one = Place(request.param, monkeypatch, gpu)
    one.pretend((8, 100_000, 4))
    compute_float32(one, exactly=True)
    return one


# --- everything against float64 ---

# What is multiplied, and with 16 bits kept for backward, is rounded to this; TF32 has the bits of float16.
ROUNDED_TO = {"float32": torch.float32, "tf32": torch.float16, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WAYS = {str(sweep): sweep for sweep in (*SWEEPS, *OTHER_TAPS[1:3], *OTHER_TAPS[-2:])}
BOTH = "both"


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: everything that selects a path through the kernels."""

    kind: str = "float32"
    way: str = BOTH
    batch: int = 2
    size: tuple[int, int] = (5, 7)
    units: int = 16
    states: bool = True
    checkpoint: bool = False
    gates_layout: str = "contiguous"
    grad_layout: str = "contiguous"
    limits: tuple[int, int, int] = (8, 100_000, 4)

    __str__ = name_of


LAYOUTS = ("contiguous", "channels_last", "window_channels_last", "rows_and_columns_swapped", "expanded_pixels")
AXES = {
    "kind": tuple(KINDS),
    "way": (BOTH, *WAYS),
    "batch": (0, 1, 3, 5),
    # Fronts of one cell, single rows and columns, more cells than a tile has rows.
    "size": ((1, 1), (1, 9), (11, 1), (4, 4), (3, 8), (18, 3), (3, 20)),
    # Odd, a group of eight and one more, operands that need padding, several groups of result columns.
    "units": (1, 3, 8, 9, 16, 24, 40),
    "states": (True, False),
    "checkpoint": (True, False),
    "gates_layout": LAYOUTS,
    "grad_layout": LAYOUTS,
    # Room for everything; one block, weights in L2 for the most part; many blocks, little room; one for all images.
    "limits": ((8, 100_000, 4), (8, 30_000, 1), (64, 40_000, 4), (2, 200_000, 2)),
}
CASES = [Case(**row) for row in pairwise(AXES)]


def tensors(case: Case) -> tuple[list[Tensor | None], Tensor]:
    """What the function takes, and a gradient of its result; in float64 with the values of the case's dtype."""
    sweep, dtype = None if case.way == BOTH else WAYS[case.way], KINDS[case.kind]
    return rounded_inputs(case.size, sweep, dtype, batch=case.batch, units=case.units, states=case.states)


def plain(case: Case, inputs: Sequence[Tensor | None], grad: Tensor) -> tuple[Tensor, ...]:
    """Result and gradients of the loop in plain PyTorch, in the dtype of the inputs."""

    def function(*arguments: Tensor | None) -> Tensor:
        if case.way != BOTH:
            return plain_sweep(*arguments, WAYS[case.way])
        zeros = arguments[0].new_zeros(case.units)
        return plain_bilstm(*(zeros if t is None else t for t in arguments))

    return with_gradients(function, inputs, grad)


def ours(case: Case, inputs: list[Tensor | None], grad: Tensor, device: str) -> tuple[Tensor, ...]:
    dtype = KINDS[case.kind]
    function = diagonal_bilstm if case.way == BOTH else WAYS[case.way]
    values = [t if t is None else t.to(device, dtype) for t in inputs]
    values = [laid_out(t, case.gates_layout) if t is not None and t.dim() == 4 else t for t in values]
    with nan_in_fresh_memory():
        got = with_gradients(
            lambda *arguments: function(*arguments, checkpoint=case.checkpoint),
            values,
            laid_out(grad.to(device, dtype), case.grad_layout),
        )
    return tuple(t.cpu() for t in got)


def check(case: Case, place: Place) -> None:
    """The operator's result and gradients are within the bound of grids.py."""
    place.pretend(case.limits)
    compute_float32(place, exactly=case.kind != "tf32")
    inputs, grad = tensors(case)
    got = ours(case, inputs, grad, place.tensors)
    if "expanded" in case.gates_layout:
        inputs = [laid_out(t, case.gates_layout) if t is not None and t.dim() == 4 else t for t in inputs]
    if "expanded" in case.grad_layout:
        grad = laid_out(grad, case.grad_layout)
    exact, units = with_rounding(
        lambda *t: plain(case, t[:-1], t[-1]),
        [None if t is None else widened(t) for t in (*inputs, grad)],
        torch.finfo(ROUNDED_TO[case.kind]).eps,
    )
    for index, results in enumerate(zip(got, exact, units, strict=True)):
        assert_accurate(f"result {index}", *results)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_result_and_gradients_are_within_the_bound(case, place):
    check(case, place)


@pytest.mark.parametrize("sweep", [ROW, MIRRORED], ids=str)
@pytest.mark.parametrize(("size", "units"), [((5, 1), 8), ((1, 4), 1), ((1, 1), 8)])
def test_single_dimensions_have_any_stride(sweep, size, units, place):
    inputs = inputs_for(size, sweep, batch=1, units=units, dtype=torch.float32)
    values = [*inputs, torch.randn(1, units, *size, generator=torch.Generator().manual_seed(1))]
    values = [t.to(place.tensors) for t in values]
    expected = with_gradients(sweep, values[:-1], values[-1])
    for strides in itertools.islice(in_turn([t.shape for t in values]), 3, None, 11):
        *tensors, grad = (strided(t, own) for t, own in zip(values, strides, strict=True))
        for one, other in zip(with_gradients(sweep, tensors, grad), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sweep", [ROW, DIAGONAL, MIRRORED], ids=str)
def test_checkpoint_and_how_the_work_is_divided_change_float32_results_by_rounding_alone(sweep, place):
    inputs = inputs_for((6, 5), sweep, batch=5, units=24, dtype=torch.float32)
    inputs = [t.to(place.tensors) for t in inputs]
    grad = torch.randn(5, 24, 6, 5, generator=torch.Generator().manual_seed(1)).to(place.tensors)
    first = with_gradients(sweep, inputs, grad)
    again = with_gradients(lambda *a: sweep(*a, checkpoint=True), inputs, grad)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    for limits in AXES["limits"][1:]:
        place.pretend(limits)
        for one, other in zip(first, with_gradients(sweep, inputs, grad), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_not_wanted_is_not_made(place):
    gates, weight, h0, c0 = (t.to(place.tensors) for t in inputs_for((4, 3), DIAGONAL, units=8, dtype=torch.float32))
    grad = torch.randn(2, 8, 4, 3, generator=torch.Generator().manual_seed(1)).to(place.tensors)
    full = with_gradients(DIAGONAL, (gates, weight, h0, c0), grad)[1:]
    for index in range(4):
        inputs = [gates, weight, h0, c0]
        inputs[index] = inputs[index].clone().requires_grad_()
        (alone,) = torch.autograd.grad(DIAGONAL(*inputs), inputs[index], grad)
        assert alone.equal(full[index])


# --- what fits ---


@pytest.fixture
def planner(monkeypatch):
    """(gates' shape, dtype, front, taps, directions, limits) -> how forward and backward are divided."""
    native = cuda_emulated.module()
    storage = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

    def plan(sizes, dtype, limits, directions=2, diagonal=True, taps=(0, -1)):
        return native.CudaWavefrontPlan(storage[dtype], False, sizes, directions, diagonal, list(taps), limits)

    return plan


@pytest.mark.parametrize("limits", [H100, A100], ids=["H100", "A100"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("units", [8, 16, 60, 64, 128, 256, 384, 512])
def test_every_division_fits_the_device_and_takes_all_images(planner, units, dtype, limits):
    for batch, size in ((1, 28), (16, 32), (64, 32), (200, 8)):
        plan = planner((batch, units, size, size), dtype, limits)
        if not plan.fits():
            # float32 without clusters: a block must hold what all units of a step leave behind.
            assert limits is A100 and units >= 256
            assert plan.needed_bytes() > limits[1]
            continue
        for division in (plan.forward_division(), plan.backward_division()):
            assert division["shared_bytes"] <= limits[1]
            assert division["cluster"] <= limits[2]
            assert 0 <= division["resident"] <= division["steps"]
            assert division["images"] * division["slices"] >= batch > division["images"] * (division["slices"] - 1)


def test_the_weights_of_the_paper_s_widest_layer_stay_in_shared_memory(planner):
    division = planner((64, 128, 32, 32), torch.bfloat16, H100).forward_division()
    assert division["resident"] == division["steps"]
    assert division["cluster"] * division["slices"] * 2 <= H100[0]  # all clusters at once


RECORDED = json.loads((cuda_emulated.ROOT / "csrc/cuda/resources.json").read_text())["divisions"]
LIMITS = {"H100": H100, "A100": A100}


@pytest.mark.parametrize("name", RECORDED)
def test_how_a_sweep_is_divided_and_what_shared_memory_it_takes_is_on_record(planner, name):
    device, dtype, front, sizes = name.split(", ")
    diagonal = front == "diagonal"
    plan = planner(
        tuple(map(int, sizes.split("x"))),
        getattr(torch, dtype),
        LIMITS[device],
        directions=1 + diagonal,
        diagonal=diagonal,
        taps=(0, -1) if diagonal else (-1, 0, 1),
    )
    for direction, division in (("forward", plan.forward_division()), ("backward", plan.backward_division())):
        text = (
            f"{division['cluster']} blocks for {division['images']} images, weights of {division['resident']} in "
            f"{division['steps']} steps and all else in {division['shared_bytes']} bytes"
        )
        assert RECORDED[name][direction] == text


def test_what_does_not_fit_says_how_many_bytes_it_needs_and_is_swept_in_plain_pytorch(place):
    inputs = inputs_for((4, 3), ROW, units=8, dtype=torch.float32)
    expected = plain_sweep(*inputs, ROW)
    place.pretend((8, 2000, 1))
    gates, *others = (t.to(place.tensors) for t in inputs)
    reason = gpu.why_not(gates, [Geometry.of("row", (-1, 0, 1))])
    assert "steps of 3 cells of 8 hidden units need " in reason
    assert " bytes of shared memory, a block of this device has 2000" in reason
    if place.name == "gpu":
        with pytest.warns(RuntimeWarning, match="bytes of shared memory"):
            got = row_lstm(gates, *others)
    else:
        got = row_lstm(gates, *others)
    torch.testing.assert_close(got.cpu(), expected)


def test_fronts_and_tap_sets_beyond_the_kernel_s_tables_are_refused_in_words(place):
    gates = torch.empty(1, 4, 1, 1025, device=place.tensors)
    assert "longer than the 1024" in gpu.why_not(gates, [Geometry.of("row", (0,))])
    assert "at most 32 taps; got 33" in gpu.why_not(gates[..., :9], [Geometry.of("row", range(33))])
    assert "no CUDA kernel for torch.float64" in gpu.why_not(gates.double(), [Geometry.of("row", (0,))])


# --- a GPU's own ways ---


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_graph_gives_what_the_call_gives(dtype):
    inputs = [t.cuda() for t in bilstm_inputs((9, 7), units=24, dtype=dtype)]
    grad = torch.randn(2, 24, 9, 7, device="cuda").to(dtype)
    expected = with_gradients(diagonal_bilstm, inputs, grad)
    leaves = [t.requires_grad_() for t in inputs]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.autograd.grad(diagonal_bilstm(*leaves), leaves, grad)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = diagonal_bilstm(*leaves)
        grads = torch.autograd.grad(y, leaves, grad)
    graph.replay()
    for one, other in zip((y, *grads), expected, strict=True):
        assert one.equal(other)


@on_gpu
def test_the_kernels_run_on_the_caller_s_stream():
    inputs = [t.cuda() for t in bilstm_inputs((9, 7), units=24, dtype=torch.float32)]
    expected = diagonal_bilstm(*inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        late = [t + 0 for t in inputs]  # ready on this stream alone, after the sleep
        got = diagonal_bilstm(*late)
    side.synchronize()
    assert got.equal(expected)


@on_gpu
@pytest.mark.slow
def test_a_long_sweep_of_the_paper_s_size_stays_within_the_bound(monkeypatch):
    place = Place("gpu", monkeypatch, gpu)
    for kind in KINDS:
        check(Case(kind, BOTH, 4, (32, 32), 128, limits=H100), place)
