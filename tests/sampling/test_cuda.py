"""The CUDA executor runs sampling programs as PyTorch does: emulated on this machine's processor, and on a GPU where
there is one. The sources are the same, and so are the tests.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import cuda_emulated
from helpers.cuda_places import PLACES, Place, on_gpu
from helpers.sampler_cases import CASES, predict, program_of, random_images
from helpers.sampler_checks import (
    FUNCTIONS,
    MIXTURES,
    PARAMETERS,
    assert_draws_as_float64_at_boundaries,
    assert_mixture_draws_as_float64_at_boundaries,
    assert_same_where_clear,
    constant_program,
    drawn,
    synthetic_program,
    to_double,
)

from genkernels import sampling
from genkernels.distributions import DiscretizedLogisticMixture
from genkernels.models import GatedPixelCNN, PixelCNN
from genkernels.sampling.executors import cuda, registry
from genkernels.sampling.executors.pytorch import evaluate
from genkernels.sampling.program.instructions import Affine, Function
from genkernels.sampling.program.program import Program
from genkernels.sampling.request import Request

pytestmark = pytest.mark.usefixtures("one_thread")

# Multiprocessors and bytes of shared memory. One image in a block, and all weights in shared memory; few blocks, so
# several images in each and fewer in the last; little shared memory, so that most weights come from L2.
LIMITS = {"one image a block": (100, 100_000, 1), "few blocks": (2, 100_000, 1), "little memory": (3, 26_000, 1)}


def on(program: Program, device: str) -> Program:
    """A program made by hand, with its tensors on a device."""

    def moved(thing):
        fields = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
        return dataclasses.replace(
            thing, **{name: value.to(device) for name, value in fields.items() if isinstance(value, torch.Tensor)}
        )

    def instruction(i):
        return moved(i) if isinstance(i, Affine) else i

    return dataclasses.replace(
        moved(program),
        values=tuple(map(moved, program.values)),
        row=tuple(map(instruction, program.row)),
        steps=tuple(tuple(map(instruction, step)) for step in program.steps),
        cache={},
    )


def teacher_forced(place: Place, program: Program, images: torch.Tensor) -> torch.Tensor:
    return sampling.teacher_forced(on(program, place.tensors), images.to(place.tensors), "cuda").cpu()


@pytest.fixture(params=PLACES)
def place(request, monkeypatch) -> Iterator[Place]:
    one = Place(request.param, monkeypatch, cuda)
    if request.param == "emulated":
        monkeypatch.setattr(cuda, "DEVICE_TYPE", "cpu")
        # As on a GPU, where the CPU's executor refuses by itself.
        monkeypatch.setattr(registry, "EXECUTORS", [e for e in registry.EXECUTORS if e.name != "cpu"])
    one.pretend(LIMITS["few blocks"])
    with torch.no_grad():
        yield one


def logits_and_bound(place, model, n, size, condition=None):
    """(our logits, those of the model in float64, the error allowed): twice PyTorch's own and a floor."""
    images = random_images(n, size, model.levels)
    exact = predict(model.double(), images, condition)
    allowed = 2 * (predict(model.float(), images, condition) - exact).abs().max() + 1e-6 * exact.abs().max()
    there = condition if condition is None else condition.to(place.tensors)
    program = program_of(model.to(place.tensors), n, size, there)
    assert registry.choose(program).name == "cuda"
    ours = sampling.teacher_forced(program, images.to(place.tensors), "cuda").cpu()
    model.cpu()
    return ours, exact, allowed


# --- logits and levels are those of the other executors ---


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_model_in_float64(name, limits, place):
    place.pretend(LIMITS[limits])
    case = CASES[name]
    model = case.model(torch.float32)
    for n in (1, 7):
        ours, exact, allowed = logits_and_bound(place, model, n, case.size, case.condition(n))
        assert (ours - exact).abs().max() <= allowed


@pytest.mark.parametrize("name", CASES)
def test_levels_are_those_of_the_pytorch_executor_however_the_batch_is_divided(name, place):
    case = CASES[name]
    model = case.model(torch.float32)
    theirs, uniforms = drawn(case, model, 5, "torch")
    program = program_of(model, 5, case.size, case.condition(5))
    model.to(place.tensors)
    first = None
    for limits in LIMITS.values():
        place.pretend(limits)
        ours, _ = drawn(case, model, 5, "cuda")
        first = ours if first is None else first
        assert torch.equal(ours, first)
    assert_same_where_clear(program, first, theirs, uniforms)


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"temperature": 1e-9}, {"top_k": 2}, {"top_k": 99}])
def test_temperature_and_top_k_act_as_in_the_pytorch_executor(options, place):
    case = CASES["pixelcnn colours"]
    model = case.model(torch.float32)
    theirs, uniforms = drawn(case, model, 9, "torch", **options)
    program = program_of(model, 9, case.size)
    ours, _ = drawn(case, model.to(place.tensors), 9, "cuda", **options)
    assert_same_where_clear(program, ours, theirs, uniforms, **options)


def executed_on(place: Place) -> Callable[[Program, Request], torch.Tensor]:
    def execute(program, request):
        there = dataclasses.replace(
            request, **{f: getattr(request, f).to(place.tensors) for f in ("images", "free", "uniforms")}
        )
        return registry.execute(on(program, place.tensors), there, backend="cuda")

    return execute


@pytest.mark.parametrize("levels", [2, 3, 37, 256])
def test_a_drawn_level_is_the_one_that_float64_gives_even_at_a_boundary(levels, place):
    assert_draws_as_float64_at_boundaries(levels, executed_on(place))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_drawn_from_as_in_float64_even_at_a_boundary(name, place):
    assert_mixture_draws_as_float64_at_boundaries(name, executed_on(place))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_parameters_that_are_no_mixture_are_an_error_that_names_the_image(value, place):
    distribution = DiscretizedLogisticMixture(7, 1, 40)
    bad = torch.randn(3, distribution.channels)
    request = Request(
        torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.ones(3, 1, 1, 1, dtype=torch.bool), torch.rand(3, 1, 1, 1),
        1.0, None,
    )  # fmt: skip
    for channel in (0, 41, distribution.channels - 1):
        bad[2] = torch.randn(distribution.channels)
        bad[2, channel] = value
        with pytest.raises(ValueError, match=r"parameters: expected finite .* at image 2, channel 0, row 0, column 0"):
            executed_on(place)(constant_program(bad, distribution), request)


@pytest.mark.parametrize("levels", [2, 37, 256])
def test_logits_that_are_no_distribution_are_an_error_that_names_the_image(levels, place):
    inf = float("inf")
    good = torch.randn(3, levels)
    good[1, :-1] = -inf
    request = Request(
        torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.ones(3, 1, 1, 1, dtype=torch.bool),
        torch.full((3, 1, 1, 1), 0.5), 1.0, None,
    )  # fmt: skip
    moved = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    moved = {name: v.to(place.tensors) if isinstance(v, torch.Tensor) else v for name, v in moved.items()}
    run = registry.run_of(Request(**moved), slice(0, 3), lambda y: None)
    cuda.run(on(constant_program(good), place.tensors), run)
    assert run.images[1].item() == levels - 1
    for value, where in [(float("nan"), 0), (float("nan"), levels - 1), (inf, levels // 2), (-inf, slice(None))]:
        bad = good.clone()
        bad[2, where] = value
        with pytest.raises(ValueError, match=r"logits: expected finite .* at image 2, channel 0, row 0, column 0"):
            cuda.run(on(constant_program(bad), place.tensors), run)


@pytest.mark.parametrize(
    "name", ["pixelcnn colours", "diagonal lstm colours", "gated colours classes", "mixture colours"]
)
def test_completion_keeps_every_known_sub_pixel(name, place):
    case = CASES[name]
    model = case.model(torch.float32)
    known = torch.rand(5, *case.size, generator=torch.Generator().manual_seed(2)) < 0.5
    known[:, :, -1] = True  # nothing is computed there
    given = random_images(5, case.size, 4, seed=3)
    theirs, uniforms = drawn(case, model, 5, "torch", given=given, known=known)
    program = program_of(model, 5, case.size, case.condition(5))
    ours, _ = drawn(case, model.to(place.tensors), 5, "cuda", given=given, known=known)
    assert torch.equal(ours[known], given[known])
    assert_same_where_clear(program, ours, theirs, uniforms)


# --- every instruction, every size ---


@pytest.mark.parametrize(("name", "operands"), FUNCTIONS)
def test_every_function_is_that_of_the_pytorch_executor(name, operands, place):
    program = synthetic_program(name, operands)
    images = random_images(2, (1, 3, 7), 11)
    theirs = sampling.teacher_forced(program, images, "torch")
    exact = sampling.teacher_forced(to_double(program), images)
    error = 4 * (theirs - exact).abs().max() + 2e-6 * exact.abs().max()
    assert (teacher_forced(place, program, images) - exact).abs().max() <= error
    if operands == 1:
        x = torch.tensor([-200.0, -3.0, -1e-6, 0.0, 0.3, 30.0, 200.0, torch.nan])
        function = Function(name, PARAMETERS.get(name, ()))
        program = constant_program(x[None])
        copy, draw_it = program.steps[0]
        program = dataclasses.replace(program, steps=((dataclasses.replace(copy, function=function), draw_it), ()))
        got = teacher_forced(place, program, torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).flatten()
        assert torch.allclose(got, evaluate(function, x.double()).float(), rtol=1e-5, atol=1e-6, equal_nan=True)


def wide_pixelcnn():
    return PixelCNN(1, 45, 2, 50, first_kernel_size=3, head_channels=70)


def wider_than_a_block():
    return GatedPixelCNN(1, 75, 1, 256, head_channels=90)


@pytest.mark.parametrize("make", [wide_pixelcnn, wider_than_a_block])
@pytest.mark.parametrize("limits", [(100, 200_000, 1), (2, 60_000, 1)])
def test_wide_sums_take_all_warps_and_chunks(make, limits, place):
    device = place.pretend(limits)
    torch.manual_seed(0)
    model, n = make().eval(), 5
    ours, exact, allowed = logits_and_bound(place, model, n, (1, 3, 13))
    assert (ours - exact).abs().max() <= allowed
    division = cuda._plan(program_of(model.to(place.tensors), n, (1, 3, 13)), None).native.division(n, device.limits)
    assert division["threads"] == 512
    assert division["images"] == (1 if limits[0] > n else 3)
    assert (division["resident"] < division["weights"]) == (limits[1] < 100_000 or make is wider_than_a_block)


def test_rows_are_reported_and_end_with_all(place):
    model = CASES["pixelcnn colours"].model(torch.float32).to(place.tensors)
    calls = []
    model.sample(3, size=(6, 4), progress=lambda done, total: calls.append((done, total)), backend="cuda")
    assert calls == [(12 * k, 72) for k in range(1, 7)]


# --- what fits ---


def test_what_does_not_fit_says_how_many_bytes_it_needs_and_is_drawn_by_pytorch(place):
    case = CASES["pixelcnn colours"]
    model = case.model(torch.float32).to(place.tensors)
    device = place.pretend((8, 8_000, 1))
    program = program_of(model, 2, case.size)
    needed = cuda._plan(program, device.native).native.division(1, device.limits)["shared_bytes"]
    assert needed > 8_000
    reason = f"a block needs at least {needed} bytes of shared memory, one of this device has 8000"
    assert cuda.why_not(program) == reason
    assert registry.choose(program).name == "torch"
    with pytest.raises(ValueError, match=f"backend: 'cuda' cannot run this program: {reason}"):
        model.sample(2, size=case.size[1:], backend="cuda")
    assert model.sample(2, size=case.size[1:]).shape == (2, *case.size)
    place.pretend((8, needed, 1))
    assert cuda.why_not(program) is None
    assert model.sample(2, size=case.size[1:], backend="cuda").shape == (2, *case.size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_to_pytorch_with_the_reason(dtype, place):
    model = CASES["pixelcnn"].model(dtype).to(place.tensors)
    program = program_of(model, 2, (1, 5, 6))
    assert cuda.why_not(program) == f"no CUDA sampler for {dtype}"
    assert registry.choose(program).name == "torch"


def test_programs_elsewhere_and_those_with_too_many_maps_are_refused_in_words(place, monkeypatch):
    program = synthetic_program("copy", 1)
    monkeypatch.setattr(cuda, "_MAX_MAPS", 0)
    assert cuda.why_not(on(program, place.tensors)) == "the CUDA sampler takes at most 0 constant maps; got 1"
    monkeypatch.setattr(cuda, "_MAX_FLOATS", 100)
    monkeypatch.setattr(cuda, "_MAX_MAPS", 1)
    assert "numbers, the CUDA sampler takes at most 100" in cuda.why_not(on(program, place.tensors))
    monkeypatch.setattr(cuda, "DEVICE_TYPE", "cuda")
    assert cuda.why_not(program) == "the program is on cpu"


def test_a_launch_that_fails_raises_an_error_that_names_the_kernel(monkeypatch):
    place = Place("emulated", monkeypatch, cuda)
    monkeypatch.setattr(cuda, "DEVICE_TYPE", "cpu")
    device = place.pretend((2, 100_000, 1))
    program = synthetic_program("copy", 1)
    plan = cuda._plan(program, device.native)
    plan.tables.view(torch.int32)[8] = 10**6  # where the first instruction's places stand
    with pytest.raises(RuntimeError, match=r"sampler_walk failed: thread .* shared memory out of bounds"):
        sampling.teacher_forced(program, random_images(1, (1, 3, 7), 11), "cuda")


RECORDED = json.loads((cuda_emulated.ROOT / "csrc/cuda/resources.json").read_text())["sampler divisions"]
MODELS = {
    "PixelCNN 7x64, 28x28": (PixelCNN, (1, 28, 28)),
    "GatedPixelCNN 8x64, 32x32 RGB": (lambda: GatedPixelCNN(3, image_size=32), (3, 32, 32)),
}
DEVICES = {"H100": (132, 232_448, 8), "A100": (108, 166_912, 1)}


@pytest.mark.parametrize("name", MODELS)
def test_how_a_batch_is_divided_and_what_shared_memory_it_takes_is_on_record(name):
    make, size = MODELS[name]
    with torch.no_grad():
        program = program_of(make().eval(), 1, size)
    plan = cuda._plan(program, cuda_emulated.module()).native
    found = {}
    for device, limits in DEVICES.items():
        for batch in (128, 1000):
            division = plan.division(batch, limits)
            assert division["shared_bytes"] <= limits[1]
            assert division["images"] * division["slices"] >= batch > division["images"] * (division["slices"] - 1)
            found[f"{device}, {name}, batch {batch}"] = (
                f"{division['slices']} blocks of {division['threads']} threads for {division['images']} images, "
                f"{division['resident']} of {division['weights']} weights and all else in "
                f"{division['shared_bytes']} bytes"
            )
    assert found == {key: text for key, text in RECORDED.items() if name in key}


# --- a GPU's own ways ---


def gpu_run(n=3):
    case = CASES["gated colours classes"]
    model = case.model(torch.float32).cuda()
    program = program_of(model, n, case.size, case.condition(n).cuda())
    images = torch.zeros(n, *case.size, dtype=torch.uint8, device="cuda")
    free = torch.ones_like(images, dtype=torch.bool)
    uniforms = torch.rand(n, *case.size, generator=torch.Generator().manual_seed(0)).cuda()
    request = Request(images, free, uniforms, 1.0, None)
    return program, registry.run_of(request, slice(0, n), lambda y: None)


@on_gpu
@torch.no_grad()
def test_a_captured_graph_draws_what_the_call_draws():
    program, run = gpu_run()
    cuda.run(program, run)
    expected = run.images.clone()
    graph = torch.cuda.CUDAGraph()
    run.images.zero_()
    with torch.cuda.graph(graph):
        cuda.run(program, run)
    graph.replay()
    assert run.images.equal(expected)


@on_gpu
@torch.no_grad()
def test_the_kernel_runs_on_the_caller_s_stream():
    program, run = gpu_run()
    cuda.run(program, run)
    expected, uniforms = run.images.clone(), run.uniforms.clone()
    run.images.zero_(), run.uniforms.zero_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        run.uniforms.copy_(uniforms)  # ready on this stream alone, after the sleep
        cuda.run(program, run)
    side.synchronize()
    assert run.images.equal(expected)
