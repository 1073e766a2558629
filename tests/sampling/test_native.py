"""The native CPU executor runs sampling programs as PyTorch does: the same logits, the same levels."""

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.fresh_process import run_fresh
from helpers.sampler_cases import CASES, program_of, random_images
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

from genkernels import backends, sampling
from genkernels.models import CausalAudioNet, PixelCNN
from genkernels.sampling.executors import cpu_packing, registry
from genkernels.sampling.executors.pytorch import evaluate
from genkernels.sampling.program.instructions import Function
from genkernels.sampling.request import Request

pytestmark = [
    pytest.mark.skipif(backends.native() is None, reason="the native extension is not loaded"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_those_of_the_pytorch_executor(name):
    case = CASES[name]
    model = case.model(torch.float32)
    for n in (1, 2, 3, 17):
        images, condition = random_images(n, case.size, 4), case.condition(n)
        program = program_of(model, n, case.size, condition)
        assert registry.choose(program).name == "cpu"
        logits = sampling.teacher_forced(program, images, "cpu")
        reference = sampling.teacher_forced(program_of(model.double(), n, case.size, condition), images)
        theirs = sampling.teacher_forced(program, images, "torch")
        model.float()
        floor = 1e-6 * reference.abs().max()
        assert (logits - reference).abs().max() <= 2 * (theirs - reference).abs().max() + floor


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_levels_are_those_of_the_pytorch_executor_for_any_number_of_threads(name):
    case = CASES[name]
    model = case.model(torch.float32)
    for n in (3, 14):
        theirs, uniforms = drawn(case, model, n, "torch")
        ours, _ = drawn(case, model, n, "cpu")
        assert_same_where_clear(program_of(model, n, case.size, case.condition(n)), ours, theirs, uniforms)
        for threads in (2, 5):
            torch.set_num_threads(threads)
            again, _ = drawn(case, model, n, "cpu")
            torch.set_num_threads(1)
            # Tiles of another size round in another way.
            assert_same_where_clear(program_of(model, n, case.size, case.condition(n)), again, ours, uniforms)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.5}, {"temperature": 1e-9}, {"top_k": 2}, {"top_k": 1}, {"top_k": 99}]
)
@torch.no_grad()
def test_temperature_and_top_k_act_as_in_the_pytorch_executor(options):
    case = CASES["pixelcnn colours"]
    model = case.model(torch.float32)
    ours, uniforms = drawn(case, model, 9, "cpu", **options)
    theirs, _ = drawn(case, model, 9, "torch", **options)
    assert_same_where_clear(program_of(model, 9, case.size), ours, theirs, uniforms, **options)


@pytest.mark.parametrize("levels", [2, 3, 16, 37, 256])
def test_a_drawn_level_is_the_one_that_float64_gives_even_at_a_boundary(levels):
    assert_draws_as_float64_at_boundaries(
        levels, lambda program, request: registry.execute(program, request, backend="cpu")
    )


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_drawn_from_as_in_float64_even_at_a_boundary(name):
    assert_mixture_draws_as_float64_at_boundaries(
        name, lambda program, request: registry.execute(program, request, backend="cpu")
    )


@pytest.mark.parametrize(
    "name", ["pixelcnn colours", "diagonal lstm colours", "gated colours classes", "row lstm", "mixture colours"]
)
@torch.no_grad()
def test_completion_keeps_every_known_sub_pixel(name):
    case = CASES[name]
    model = case.model(torch.float32)
    known = torch.rand(5, *case.size, generator=torch.Generator().manual_seed(2)) < 0.5
    known[:, :, -1] = True  # nothing is computed there
    given = random_images(5, case.size, 4, seed=3)
    ours, uniforms = drawn(case, model, 5, "cpu", given=given, known=known)
    theirs, _ = drawn(case, model, 5, "torch", given=given, known=known)
    assert torch.equal(ours[known], given[known])
    assert_same_where_clear(program_of(model, 5, case.size, case.condition(5)), ours, theirs, uniforms)


@pytest.mark.parametrize(("name", "operands"), FUNCTIONS)
def test_every_function_is_that_of_the_pytorch_executor(name, operands):
    program = synthetic_program(name, operands)
    images = random_images(2, (1, 3, 7), 11)
    logits = sampling.teacher_forced(program, images, "cpu")
    theirs = sampling.teacher_forced(program, images, "torch")
    exact = sampling.teacher_forced(to_double(program), images)
    error = 4 * (theirs - exact).abs().max() + 2e-6 * exact.abs().max()
    assert (logits - exact).abs().max() <= error
    assert torch.isfinite(exact).all()
    alone = sampling.teacher_forced(program.for_images(1, 2), images[1:], "cpu")
    assert torch.allclose(alone, logits[1:], rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
    x = torch.tensor([-200.0, -3.0, -1e-6, 0.0, 0.3, 30.0, 200.0, torch.nan])
    if operands == 1:
        wanted = evaluate(Function(name, PARAMETERS.get(name, ())), x.double()).float()
        assert torch.allclose(applied(name, x), wanted, rtol=1e-5, atol=1e-6, equal_nan=True)


def applied(name, x):
    """A function of the native executor at these numbers."""
    program = constant_program(x[None])
    copy, draw_it = program.steps[0]
    program = replace(program, steps=((replace(copy, function=Function(name, PARAMETERS.get(name, ()))), draw_it), ()))
    return sampling.teacher_forced(program, torch.zeros(1, 1, 1, 1, dtype=torch.uint8), "cpu").flatten()


@torch.no_grad()
def test_wide_sums_and_many_images_take_all_tiles():
    torch.manual_seed(0)
    model = PixelCNN(1, 45, 2, 50, first_kernel_size=3, head_channels=70).eval()
    for n in (1, 2, 3, 5, 30):
        images = random_images(n, (1, 4, 5), 50)
        program = program_of(model, n, (1, 4, 5))
        expected = model(images)
        assert torch.allclose(sampling.teacher_forced(program, images, "cpu"), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_progress_tells_of_every_row_and_ends_with_all():
    case = CASES["pixelcnn colours"]
    model = case.model(torch.float32)
    calls = []
    model.sample(30, size=case.size[1:], progress=lambda done, total: calls.append((done, total)), backend="cpu")
    per_row = 3 * 4  # sub-pixels that are open in any image
    assert calls == [(per_row * k, per_row * 6) for k in range(1, 7)]


@torch.no_grad()
def test_an_error_in_the_progress_function_ends_the_run_and_arrives():
    model = CASES["pixelcnn"].model(torch.float32)

    def fail(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        model.sample(3, size=(5, 6), progress=fail, backend="cpu")


@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_an_interrupt_ends_a_run_within_a_second(threads):
    model = CausalAudioNet(num_layers=20, hidden_channels=64).eval()
    shape = (4, 1, 1, 16000)  # takes a second at least
    program = program_of(model, 4, shape[1:])
    program.cache["cpu"] = cpu_packing.build(program)
    images, free = torch.zeros(shape, dtype=torch.uint8), torch.ones(shape, dtype=torch.bool)
    request = Request(images, free, torch.rand(shape), 1.0, None)
    sent = []
    torch.set_num_threads(threads)

    def interrupt():
        sent.append(time.monotonic())
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    timer = threading.Timer(0.2, interrupt)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.execute(program, request, backend="cpu")
        assert time.monotonic() - sent[0] < 1.0
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_dtypes_are_left_to_pytorch_with_the_reason(dtype):
    model = CASES["pixelcnn"].model(dtype)
    program = program_of(model, 2, (1, 5, 6))
    assert registry.choose(program).name == "torch"
    with pytest.raises(ValueError, match=f"backend: 'cpu' cannot run this program: no native sampler for {dtype}"):
        model.sample(2, size=(5, 6), backend="cpu")
    assert model.sample(2, size=(5, 6)).shape == (2, 1, 5, 6)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_and_reads_no_unwritten_memory(isa):
    known = backends.require_native().compiled_isas()
    if isa not in known[: known.index(backends.require_native().detected_isa()) + 1]:
        pytest.skip(f"this machine has {backends.require_native().detected_isa()} only")
    printed = run_fresh(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        import torch
        from helpers.sampler_cases import CASES, program_of, random_images
        from genkernels import _C, sampling
        torch.set_num_threads(1)
        worst = 0.0
        with torch.no_grad():
            for name in ("pixelcnn colours", "diagonal lstm colours", "gated colours classes", "row lstm"):
                case = CASES[name]
                model = case.model(torch.float32)
                for n in (1, 3, 13):
                    images, condition = random_images(n, case.size, 4), case.condition(n)
                    program = program_of(model, n, case.size, condition)
                    ours, theirs = (sampling.teacher_forced(program, images, b) for b in ("cpu", "torch"))
                    worst = max(worst, ((ours - theirs).abs().max() / theirs.abs().max()).item())
        print(_C.active_isa(), worst < 1e-5)
        """,
        GENKERNELS_MAX_ISA=isa,
        MALLOC_PERTURB_="1",  # glibc: fresh memory holds 0xfe, which is -1.7e38 as a float
    )
    assert printed == f"{isa} True"
