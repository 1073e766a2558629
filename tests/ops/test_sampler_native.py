"""The native CPU executor runs sampling programs as PyTorch does: the same logits, the same levels."""

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fresh_process import run_fresh
from sampler_cases import CASES, program_of, random_images

from genkernels import backends
from genkernels.models import CausalAudioNet, PixelCNN
from genkernels.ops import sampler
from genkernels.ops.sampler import cpu_plan, executors
from genkernels.ops.sampler.drawing import draw
from genkernels.ops.sampler.program import BINARY, UNARY, Affine, Draw, Function, Pointwise, Program, Read, Value
from genkernels.ops.sampler.request import Request, check_request
from genkernels.ops.sampler.torch_executor import evaluate

pytestmark = [
    pytest.mark.skipif(backends.native() is None, reason="the native extension is not loaded"),
    pytest.mark.usefixtures("one_thread"),
]

PARAMETERS = {
    "elu": (1.2, 0.9, 1.1),
    "leaky_relu": (0.1,),
    "softplus": (2.0, 3.0),
    "clamp": (-0.4, 0.7),
    "scale": (1.5, -0.2),
}


def drawn(case, model, n, backend, *, seed=1, **options):
    """Levels [n, C, H, W] and the request's uniforms."""
    uniforms = torch.rand(n, *case.size, generator=torch.Generator().manual_seed(seed))
    settings = {"given": None, "known": None, "temperature": 1.0, "top_k": None, "generator": None} | options
    request = check_request((n, *case.size), model.levels, torch.device("cpu"), uniforms=uniforms, **settings)
    table = model._scaled(torch.arange(model.levels))
    return sampler.sample(model, model.predict, table, request, condition=case.condition(n), backend=backend), uniforms


def assert_same_where_clear(program, ours, theirs, uniforms, **options):
    """Equal levels, but for images whose first difference lies where u is within 1e-4 of a boundary."""
    exact = sampler.teacher_forced(program, theirs)
    for k in (ours != theirs).flatten(1).any(1).nonzero().flatten().tolist():
        y, x, c = (ours[k] != theirs[k]).permute(1, 2, 0).nonzero()[0].tolist()
        logits = exact[k, :, c, y, x].expand(2, -1)
        near = draw(logits, (uniforms[k, c, y, x] + torch.tensor([-1e-4, 1e-4])).clamp(0, 1), **options)
        assert near[0] != near[1], (
            f"image {k}, colour {c} of pixel {y, x}: {ours[k, c, y, x]}, not {theirs[k, c, y, x]}"
        )


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_those_of_the_pytorch_executor(name):
    case = CASES[name]
    model = case.model(torch.float32)
    for n in (1, 2, 3, 17):
        images, condition = random_images(n, case.size, 4), case.condition(n)
        program = program_of(model, n, case.size, condition)
        assert executors.choose(program).name == "cpu"
        logits = sampler.teacher_forced(program, images, "cpu")
        reference = sampler.teacher_forced(program_of(model.double(), n, case.size, condition), images)
        theirs = sampler.teacher_forced(program, images, "torch")
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
    generator = torch.Generator().manual_seed(0)
    n = 1000
    logits = 4 * torch.randn(n, levels, generator=generator)
    cdf = logits.double().softmax(1).cumsum(1)
    uniforms = torch.rand(n, generator=generator, dtype=torch.float64)
    picked = cdf[torch.arange(n), torch.randint(levels - 1, (n,), generator=generator)]
    uniforms[::4] = (picked[::4] * (1 + 1e-9)).clamp(max=1 - 1e-12)  # just above a boundary
    uniforms[1::4] = picked[1::4] * (1 - 1e-9)  # just below one
    uniforms[:8] = 0
    program = constant_program(logits)
    for options in ({}, {"temperature": 0.3}, {"top_k": 1 + levels // 3}):
        settings = {"given": None, "known": None, "temperature": 1.0, "top_k": None, "generator": None} | options
        request = check_request(
            (n, 1, 1, 1), levels, torch.device("cpu"), uniforms=uniforms.view(n, 1, 1, 1), **settings
        )
        ours = executors.execute(program, request, backend="cpu").flatten().long()
        assert torch.equal(ours, draw(logits, uniforms, **options))


def constant_program(logits):
    """Images of one pixel whose logits are given."""
    levels = logits.shape[1]
    image = Value(0, "image", 1, (1,), 0, (0, 1))
    constant = Value(1, "constant", levels, (-1,) * levels, 0, (0, 1), constant=logits)
    result = Value(2, "logits", levels, (0,) * levels, 0, (0, 1))
    copy = Pointwise("copy", 0, 2, ((0, levels),), Function("copy"), (Read(1, 0, 0, ((0, levels),)),))
    return Program(
        1, 1, 1, 1, levels, torch.linspace(0, 1, levels), (image, constant, result), (), ((copy, Draw(0, 2)), ())
    )


@pytest.mark.parametrize("name", ["pixelcnn colours", "diagonal lstm colours", "gated colours classes", "row lstm"])
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


FUNCTIONS = [*((name, 1) for name in UNARY), *((name, 2) for name in BINARY)]


def synthetic_program(name, operands, levels=11, width=7, height=3):
    """One function in every place where one can stand, on channels that are taken apart, with a constant map."""
    generator = torch.Generator().manual_seed(0)
    function = Function(name, PARAMETERS.get(name, ()))
    spread = ((6, 11), (0, 6))
    noise = torch.randn(2, levels, height, width, generator=generator)
    values = (
        Value(0, "image", 1, (1,), 0, (0, width), rows_back=1, columns_left=2, columns_right=1),
        Value(1, "map", levels, (-1,) * levels, 0, (0, width), constant=noise),
        Value(
            2, "row", levels, (-1,) * levels, 0, (0, width), rows_back=1, columns_left=1, outside=torch.randn(levels)
        ),
        Value(3, "pixel", levels, (0,) * levels, 0, (0, width)),
        Value(4, "logits", levels, (0,) * levels, 0, (0, width)),
    )
    reads = (Read(2, 0, 0, spread), Read(1, 0, 0, ((0, 5), (5, 11))))
    whole = ((0, levels),)
    activation = function if operands == 1 and name != "exp" else None  # exp of exp of exp overflows
    weight = torch.randn(levels, 3 + levels, generator=generator) * 0.15
    taps = (Read(0, -1, -1, ((0, 1),)), Read(0, -1, 0, ((0, 1),)), Read(0, -1, 1, ((0, 1),)), Read(1, 0, 0, whole))
    row = (
        Affine("row", -1, 2, whole, taps, weight, torch.rand(levels, generator=generator) - 0.5, activation=activation),
        Pointwise(
            "row point", -1, 2, ((0, 5), (5, 11)), function, (Read(2, 0, 0, ((0, 5), (5, 11))), reads[1])[:operands]
        ),
    )
    mixed = (Read(0, 0, -2, ((0, 1),)), Read(0, 0, -1, ((0, 1),)), Read(2, -1, -1, ((1, 4), (7, 9))))
    terms = (*[Read(2, 0, 0, ((0, 5), (5, 11)))] * 6, Read(1, 0, 0, ((0, 5), (5, 11))))
    step = (
        Pointwise("point", 0, 3, ((0, 5), (5, 11)), function, reads[:operands]),
        Affine(
            "sum", 0, 4, ((0, 5), (5, 11)), (*mixed, Read(3, 0, 0, whole)),
            torch.randn(levels, 7 + levels, generator=generator) * 0.3, None, terms,
            activation=activation,
        ),
        Draw(0, 4),
    )  # fmt: skip
    return Program(height, width, width, 1, levels, torch.linspace(-1, 1, levels), values, row, (step, ()))


@pytest.mark.parametrize(("name", "operands"), FUNCTIONS)
def test_every_function_is_that_of_the_pytorch_executor(name, operands):
    program = synthetic_program(name, operands)
    images = random_images(2, (1, 3, 7), 11)
    logits = sampler.teacher_forced(program, images, "cpu")
    theirs = sampler.teacher_forced(program, images, "torch")
    exact = sampler.teacher_forced(to_double(program), images)
    error = 4 * (theirs - exact).abs().max() + 2e-6 * exact.abs().max()
    assert (logits - exact).abs().max() <= error
    assert torch.isfinite(exact).all()
    alone = sampler.teacher_forced(program.for_images(1, 2), images[1:], "cpu")
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
    return sampler.teacher_forced(program, torch.zeros(1, 1, 1, 1, dtype=torch.uint8), "cpu").flatten()


def to_double(program):
    def double(tensor):
        return None if tensor is None else tensor.double()

    def instruction(i):
        return replace(i, weight=double(i.weight), bias=double(i.bias)) if isinstance(i, Affine) else i

    return replace(
        program,
        table=program.table.double(),
        values=tuple(replace(v, outside=double(v.outside), constant=double(v.constant)) for v in program.values),
        row=tuple(map(instruction, program.row)),
        steps=tuple(tuple(map(instruction, step)) for step in program.steps),
        cache={},
    )


@torch.no_grad()
def test_wide_sums_and_many_images_take_all_tiles():
    torch.manual_seed(0)
    model = PixelCNN(1, 45, 2, 50, first_kernel_size=3, head_channels=70).eval()
    for n in (1, 2, 3, 5, 30):
        images = random_images(n, (1, 4, 5), 50)
        program = program_of(model, n, (1, 4, 5))
        expected = model(images)
        assert torch.allclose(sampler.teacher_forced(program, images, "cpu"), expected, rtol=1e-4, atol=1e-5)


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
    program.cache["cpu"] = cpu_plan.build(program)
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
            executors.execute(program, request, backend="cpu")
        assert time.monotonic() - sent[0] < 1.0
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_dtypes_are_left_to_pytorch_with_the_reason(dtype):
    model = CASES["pixelcnn"].model(dtype)
    program = program_of(model, 2, (1, 5, 6))
    assert executors.choose(program).name == "torch"
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
        from sampler_cases import CASES, program_of, random_images
        from genkernels import _C
        from genkernels.ops import sampler
        torch.set_num_threads(1)
        worst = 0.0
        with torch.no_grad():
            for name in ("pixelcnn colours", "diagonal lstm colours", "gated colours classes", "row lstm"):
                case = CASES[name]
                model = case.model(torch.float32)
                for n in (1, 3, 13):
                    images, condition = random_images(n, case.size, 4), case.condition(n)
                    program = program_of(model, n, case.size, condition)
                    ours, theirs = (sampler.teacher_forced(program, images, b) for b in ("cpu", "torch"))
                    worst = max(worst, ((ours - theirs).abs().max() / theirs.abs().max()).item())
        print(_C.active_isa(), worst < 1e-5)
        """,
        GENKERNELS_MAX_ISA=isa,
        MALLOC_PERTURB_="1",  # glibc: fresh memory holds 0xfe, which is -1.7e38 as a float
    )
    assert printed == f"{isa} True"
