"""The GPU benchmarks as far as a machine without a GPU can tell: what they compare, and the runner's bookkeeping."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import conv_bn_act, gpu, instance_norm, masked_conv, sampler, wavefront_lstm
from bench.core import report
from bench.core.checks import MismatchError, check_as_exact, check_equal
from bench.core.roofline import Ceilings
from bench.core.session import Device, Session
from bench.masked_conv import Shape
from genkernels.models import PixelCNN
from genkernels.timing import Timing

ROOT = Path(gpu.__file__).resolve().parents[1]


def run_once(calls, *, seconds, min_rounds):
    for call in calls.values():
        call()
    return {name: Timing(1e-3 * (1 + index), 1e-3, 1e-2, 1, 1) for index, name in enumerate(calls)}


def pretended_gpu(dtype):
    """The CPU in the place of a GPU, with made-up times: all but the timing itself runs."""
    return Device(
        "cpu", dtype, run_once, lambda: Ceilings("bfloat16", 132, 1e5, 1e3),
        lambda: {"slug": "some-gpu", "gpu": "Some GPU", "cuda": "13.0"}, is_gpu=True,
    )  # fmt: skip


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_options: function)  # slow, and tested elsewhere
    for module in (wavefront_lstm, sampler):
        monkeypatch.setattr(module, "captured", lambda call: call)
    return Session(pretended_gpu(torch.bfloat16), 0.0, 1)


def test_all_alternatives_to_the_masked_convolution_agree_and_are_reported(session):
    relu = Shape(2, 5, 6, 6, 3, "B", activation="relu", target=1.3)
    done = masked_conv.run(session, [relu, replace(relu, activation="gate", target=2.0)])
    assert done.benchmark == "gpu_masked_conv" and not done.settings["left_out"]
    assert [set(row.timings) for row in done.rows] == [set(masked_conv.GPU_NAMES)] * 4
    assert [claim.text.partition(":")[0] for claim in done.claims] == [f"{row.case}, {row.group}" for row in done.rows]
    assert [claim.target for claim in done.claims] == [1.3, 1.3, 2.0, 2.0]
    text = report.markdown(done, full=True)
    assert "Some GPU" in text
    assert "over the best alternative" in text


def test_an_alternative_that_fails_is_left_out_and_ours_is_not(session, monkeypatch):
    def fails(problem):
        raise RuntimeError("no engine")

    monkeypatch.setitem(masked_conv.BUILDERS, "pre-masked", fails)
    done = masked_conv.run(session, [Shape(2, 5, 6, 6, 3, "B")])
    assert list(done.settings["left_out"].values()) == ["RuntimeError: no engine"]
    assert set(done.rows[0].timings) == set(masked_conv.GPU_NAMES) - {"pre-masked"}
    monkeypatch.setitem(masked_conv.BUILDERS, "ours", fails)
    with pytest.raises(RuntimeError, match="no engine"):
        masked_conv.run(session, [Shape(2, 5, 6, 6, 3, "B")])


def test_all_alternatives_to_a_generator_block_are_compared_and_reported(session):
    blocks = (
        conv_bn_act.Shape(True, 6, 4, 3, "relu", True, batch=2),
        conv_bn_act.Shape(True, 4, 3, 4, "tanh", False, batch=2),
    )
    done = conv_bn_act.run(session, blocks)
    assert not done.settings["left_out"]
    assert [len(row.timings) for row in done.rows] == [6, 6]
    assert "Some GPU" in report.markdown(done)


def test_all_alternatives_to_instance_norm_are_compared_and_reported(session):
    done = instance_norm.run(session, [instance_norm.Shape(2, 5, 6)])
    assert [len(row.timings) for row in done.rows] == [6]
    assert "Some GPU" in report.markdown(done)


@pytest.mark.parametrize("compiled", [False, True])
def test_all_alternatives_to_the_diagonal_recurrences_agree_and_are_reported(session, compiled):
    session.compiled = compiled
    done = wavefront_lstm.run_on_gpu(session, [wavefront_lstm.BiLstmCase(2, 3, 4)])
    assert [len(row.timings) for row in done.rows] == [8 if compiled else 6] * 2
    text = report.markdown(done, full=True)
    assert "Some GPU" in text
    assert "per step" in text


@pytest.fixture
def drawn_on_cpu(monkeypatch):
    """The native CPU executor in the place of the CUDA executor."""
    measure = sampler.measure_on_gpu
    monkeypatch.setattr(sampler, "measure_on_gpu", lambda session, case: measure(session, case, "cpu"))


def test_all_alternatives_to_the_sampler_draw_the_same_and_are_reported(session, drawn_on_cpu):
    small = sampler.Case("small", lambda: PixelCNN(3, 6, 1, 4), (3, 3, 4), 2, None, 0.06, 50, 10)
    session.device = pretended_gpu(torch.float32)
    done = sampler.run(session, [small])
    (row,) = done.rows
    assert set(row.timings) == {
        "ours",
        "ours, CUDA graph",
        "cached PyTorch",
        "cached PyTorch, CUDA graph",
        sampler.GPU_FULL,
    }
    assert row.timings[sampler.GPU_FULL].median == pytest.approx(36 * 3e-3)  # 36 times the third call's made-up time
    text = report.markdown(done, full=True)
    assert "Some GPU" in text
    assert "60 ms were promised" in text


def test_samples_that_are_not_those_of_the_cached_sampler_are_refused(monkeypatch):
    sampling = sampler.Sampling(sampler.Case("small", lambda: PixelCNN(1, 6, 1, 4), (1, 3, 4), 2))
    sampling.check_on_gpu()
    drawn = sampling.draw
    monkeypatch.setattr(sampling, "draw", lambda backend="cpu": drawn(backend) + (backend == "torch"))
    with pytest.raises(MismatchError, match=r"only 0\.0% of the images"):
        sampling.check_on_gpu()


@pytest.mark.parametrize("name", wavefront_lstm.RECURRENCES)
def test_the_diagonal_recurrences_that_are_timed_are_the_same(name):
    problem = wavefront_lstm.BiLstmProblem(wavefront_lstm.BiLstmCase(2, 3, 4), pretended_gpu(torch.float32))
    _, step = problem.calls(wavefront_lstm.RECURRENCES[name])
    check_equal({name: step()}, problem.reference(), tolerance=1e-5)


def test_a_result_further_from_float64_than_the_peer_is_refused():
    exact = torch.randn(100, dtype=torch.float64)
    near, far = exact.float() + 1e-3, exact.float() + 3e-3
    check_as_exact({"ours": [near], "peer": [near]}, [exact], peer="peer", ours=["ours"])
    with pytest.raises(MismatchError, match="ours, result 0"):
        check_as_exact({"ours": [far], "peer": [near]}, [exact], peer="peer", ours=["ours"])
    far[0] = torch.nan
    with pytest.raises(MismatchError):
        check_as_exact({"ours": [far], "peer": [near]}, [exact], peer="peer", ours=["ours"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("arguments", [["bench.gpu"], ["bench.masked_conv", "--device", "cuda"]], ids=str)
def test_without_a_gpu_the_command_says_so_and_ends_with_2(arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "GPU" in done.stderr or "CUDA" in done.stderr


def test_every_benchmark_that_the_runner_lists_exists_and_the_gpu_tests_are_found():
    assert all((ROOT / "bench" / f"{name}.py").is_file() for name in gpu.BENCHMARKS)
    names = {str(file.relative_to(ROOT / "tests")) for file in gpu.gpu_tests()}
    assert {"ops/test_masked_conv_triton.py", "ops/test_wavefront_lstm_cuda.py", "sampling/test_cuda.py"} <= names
    assert "bench/test_gpu_benchmarks.py" not in names


def test_a_step_that_fails_or_hangs_is_told_and_its_output_kept(tmp_path):
    def python(code: str) -> list[str]:
        return [sys.executable, "-c", code]

    step = gpu.Step("good", [python("print('fine')"), python("print('fine too')")], 60)
    assert gpu.run(step, tmp_path, time.monotonic() + 60).startswith("passed")
    assert "fine too" in (tmp_path / "good_1.log").read_text()
    bad = replace(step, name="bad", commands=[python("print('so far'); raise SystemExit(3)")])
    assert gpu.run(bad, tmp_path, time.monotonic() + 60).startswith("FAILED with code 3")
    assert "so far" in (tmp_path / "bad.log").read_text()
    slow = replace(step, name="slow", commands=[python("import time; time.sleep(60)")], seconds=1)
    assert gpu.run(slow, tmp_path, time.monotonic() + 60).startswith("FAILED: out of time")
    assert gpu.run(step, tmp_path, time.monotonic() - 1).startswith("not run")
