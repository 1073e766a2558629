"""The benchmarks measure what they say: equal results first, turns and medians, exact counts, true tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import masked_conv, pixelcnn
from bench.core.checks import MismatchError, check_equal
from bench.core.machine import machine
from bench.core.report import Claim, Report, Row, geometric_mean, markdown, table
from bench.core.roofline import Ceilings, Work, measure_ceilings
from bench.masked_conv_baselines import BUILDERS, live_taps, masked_conv_work, names_for, prepare, random_problem
from genkernels.models import PixelCNN
from genkernels.ops.masked_conv.mask import MaskSpec, mask_tensor
from genkernels.timing import Timing

pytestmark = pytest.mark.usefixtures("one_thread")

SPECS = [
    MaskSpec(4, 1, (7, 7), "A", 1, "blocks"),
    MaskSpec(6, 5, (3, 3), "B", 1, "blocks"),
    MaskSpec(6, 5, (5, 3), "A", 1, "blocks"),
    MaskSpec(7, 5, (3, 5), "B", 3, "blocks"),
    MaskSpec(8, 7, (3, 3), "A", 3, "interleaved"),
]
UNCOMPILED = [name for name in BUILDERS if "compile" not in name]


# --- the alternatives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(
    ("dilation", "activation", "input_grad"),
    [((1, 1), None, True), ((1, 1), "relu", False), ((2, 1), None, True), ((1, 2), "relu", True)],
)
def test_every_alternative_equals_the_float64_reference(spec, dilation, activation, input_grad):
    problem = random_problem(spec, 2, 6, 9, dilation=dilation, activation=activation, input_grad=input_grad)
    prepared = prepare(problem, [name for name in names_for(spec) if name in UNCOMPILED])
    reference = problem.reference()
    assert len(reference) == 3 + input_grad
    check_equal({name: each.results() for name, each in prepared.items()}, reference, tolerance=0)
    check_equal({name: [each.forward()] for name, each in prepared.items()}, reference[:1], tolerance=0)


@pytest.mark.slow
def test_the_compiled_alternatives_equal_the_float64_reference():
    problem = random_problem(SPECS[1], 2, 6, 9)
    prepared = prepare(problem, [name for name in BUILDERS if name not in UNCOMPILED])
    assert len(prepared) == 2
    check_equal({name: each.results() for name, each in prepared.items()}, problem.reference(), tolerance=0)


def test_the_channels_last_alternatives_work_in_channels_last():
    problem = random_problem(MaskSpec(6, 5, (3, 3), "B", 1, "blocks"), 2, 6, 9)
    for name, each in prepare(problem, UNCOMPILED).items():
        y, _, grad_x, *grad_weights = each.step()
        if name.endswith("channels_last"):
            assert all(t.stride(1) == 1 for t in (y, grad_x, *grad_weights)), name
        else:
            assert all(t.stride(3) == 1 for t in (y, grad_x, *grad_weights)), name


def test_the_twins_of_pixelcnn_agree():
    torch.manual_seed(0)
    model = PixelCNN(in_channels=1, hidden_channels=5, num_layers=2, levels=4)
    images = torch.randint(0, 4, (2, 1, 6, 7), dtype=torch.uint8)
    names = [name for name in pixelcnn.NAMES if "compile" not in name]
    assert len(names) == 3
    for trainer in pixelcnn.trainers(model, images, names).values():
        before = trainer.results()[0]
        for _ in range(3):
            trainer.step()
        assert trainer.results()[0] < before  # it trains


# --- checks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [lambda t: t + 0.1, lambda t: t[:1], lambda t: t * float("nan")])
def test_a_wrong_result_is_not_timed(wrong):
    right = torch.tensor([1.0, -2.0])
    check_equal({"a": [right]}, [right.double()])
    with pytest.raises(MismatchError, match="slip"):
        check_equal({"a": [right], "slip": [wrong(right)]}, [right.double()])
    with pytest.raises(MismatchError, match="slip"):
        check_equal({"slip": [right]}, [right.double()] * 2)


def test_the_geometric_mean():
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([4.0, 1.0]) == pytest.approx(2.0)


# --- counts and ceilings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_flops_count_the_live_taps(spec):
    assert live_taps(spec) == mask_tensor(spec).sum().item()
    forward = masked_conv_work(spec, 3, 4, 5)
    assert forward.flops == 2 * 3 * 4 * 5 * mask_tensor(spec).sum().item()
    assert masked_conv_work(spec, 3, 4, 5, backward=True, input_grad=False).flops == 2 * forward.flops
    assert masked_conv_work(spec, 3, 4, 5, backward=True).flops == 3 * forward.flops
    pixels, taps = 3 * 4 * 5, live_taps(spec)
    floats = pixels * (spec.in_channels + spec.out_channels) + taps + spec.out_channels
    assert forward.bytes == 4 * floats


def test_the_work_of_pixelcnn_is_that_of_its_layers():
    model = PixelCNN(in_channels=1, hidden_channels=5, num_layers=2, levels=4)
    taps = [layer.live_taps().sum().item() for layer in model.layers]
    pixels = pixelcnn.BATCH * pixelcnn.SIZE**2
    assert pixelcnn.step_work(model).flops == 2 * pixels * (2 * taps[0] + 3 * sum(taps[1:]))


def test_the_floor_is_the_larger_of_arithmetic_and_memory():
    ceilings = Ceilings("avx2", 2, gflops=100.0, gbs=10.0)
    assert ceilings.floor(Work(flops=10**11, bytes=10**9)) == pytest.approx(1.0)
    assert ceilings.floor(Work(flops=10**9, bytes=10**11)) == pytest.approx(10.0)
    assert ceilings.share_of_peak(Work(10**11, 0), 2.0) == pytest.approx(0.5)
    other = Ceilings("avx2", 2, gflops=50.0, gbs=20.0)
    assert ceilings.highest(other) == Ceilings("avx2", 2, 100.0, 20.0)


def test_the_ceilings_are_those_of_this_machine():
    ceilings = measure_ceilings(0.02)
    assert ceilings.threads == torch.get_num_threads()
    assert ceilings.gflops > 0.1 and ceilings.gbs > 0.1


# --- report ------------------------------------------------------------------------------------------------


def timed(milliseconds):
    return Timing(milliseconds / 1e3, milliseconds / 1e3, milliseconds / 1e3, 5, 1)


@pytest.fixture
def report():
    times = {"ours": 2, "ours, channels_last": 1, "eager": 6, "cropped": 3}
    row = Row(
        group="forward",
        case="small",
        timings={name: timed(ms) for name, ms in times.items()},
        ours=("ours", "ours, channels_last"),
        baseline="eager",
        work=Work(flops=5 * 10**7, bytes=1000),
    )
    return Report(
        benchmark="some_op",
        title="Some operation",
        ceilings=Ceilings("avx2", 2, gflops=100.0, gbs=10.0),
        rows=(row, replace(row, group="backward", work=None)),
        claims=(Claim("over eager", 3.0, "×", 1.6), Claim("share", 0.5, "%", 0.8), Claim("more", 1.0, "×")),
        settings={"quick": True},
    )


def test_a_report_comes_back_as_it_was_saved(report, tmp_path):
    path = report.save(tmp_path)
    assert path == tmp_path / report.machine["slug"] / "some_op.json"
    assert Report.load(path) == report
    assert report.save(tmp_path / "named.json") == tmp_path / "named.json"
    assert Report.load(tmp_path / "named.json") == report
    text = json.dumps(json.loads(path.read_text()))
    assert str(Path.home()) not in text and str(Path(__file__).parents[2]) not in text


def test_the_markdown_compares_with_the_best_of_each_side(report):
    assert report.rows[0].best_other() == "cropped"
    assert report.rows[0].speed_up("eager") == pytest.approx(3.0)
    _, cells = table(report, "forward")
    assert cells == [["small", "0.5", "1 (channels_last)", "50%", "6 (6.00×)", "3 (3.00×, cropped)"]]
    text = markdown(report, full=True)
    assert "| small | – | 1 (channels_last) | – | 6 (6.00×) | 3 (3.00×, cropped) |" in text
    assert "| over eager | 3.00× | 1.60× | met |" in text
    assert "| share | 50% | 80% | **missed** |" in text
    assert "| more | 1.00× |  |  |" in text
    assert "| eager | 6 | 6 – 6 | 3.00× | 8% |" in text
    assert "Quick run" in text and "Quick run" not in markdown(replace(report, settings={"quick": False}))


def test_a_machine_is_named_by_its_processor():
    def slug(*lines):
        return machine("\n".join(lines))["slug"].rpartition("-")

    threads = f"{torch.get_num_threads()}t"
    amd = ("vendor_id\t: AuthenticAMD", "cpu family\t: 25", "model\t\t: 1")
    assert slug(*amd, "model name\t: AMD EPYC Processor") == ("amd-epyc-zen3", "-", threads)
    assert slug(*amd, "model name\t: AMD EPYC 7763 64-Core Processor")[0] == "amd-epyc-7763-zen3"
    intel = ("vendor_id\t: GenuineIntel", "cpu family\t: 6", "model\t\t: 106")
    assert slug(*intel, "model name\t: Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz")[0] == (
        "intel-xeon-platinum-8370c-icelake"
    )
    assert slug("model name\t: Something Else 9")[0] == "something-else-9"


def test_the_summary_of_the_masked_convolution():
    deep, thin = masked_conv.SHAPES["cpu"][1], masked_conv.SHAPES["cpu"][0]
    times = {"ours": 2, "ours, channels_last": 1, masked_conv.EAGER: 4, "cropped": 3}

    def rows(shape, times, ours):
        timings = {name: timed(ms) for name, ms in times.items()}
        groups = (masked_conv.FORWARD, masked_conv.STEP)
        return [Row(g, str(shape), timings, ours, masked_conv.EAGER, Work(10**8, 1)) for g in groups]

    measured = {
        deep: rows(deep, times, ("ours", "ours, channels_last")),
        thin: rows(thin, {"ours": 1, masked_conv.EAGER: 1, "cropped": 0.5}, ("ours",)),
    }
    claims = masked_conv.summarise(measured, Ceilings("avx2", 2, 200.0, 10.0))
    forward = [claim for claim in claims if claim.text.startswith("forward:")]
    values = [claim.value for claim in forward]
    expected = [math.sqrt(2), math.sqrt(0.75), 0.5, 2.0, math.sqrt(1.5), 0.5, 0.5, 0.5]
    assert values == pytest.approx(expected)
    assert [claim.target for claim in forward] == [1.6, 1.2, 1.0, 1.6, 1.2, 1.0, 0.8, 0.8]
    assert [claim.met for claim in forward] == [False, False, False, True, True, False, False, False]
    assert str(thin) in forward[2].text
