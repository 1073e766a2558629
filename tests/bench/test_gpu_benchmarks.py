"""The GPU benchmarks as far as a machine without a GPU can tell: what they compare, and the runner's bookkeeping."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench is no part of the installed package

from bench import (
    gpu,
    gpu_conv_bn_act,
    gpu_instance_norm,
    gpu_masked_conv,
    gpu_sampler,
    gpu_wavefront_lstm,
)
from bench.core import gpu_timing, report
from bench.core.roofline import Ceilings
from bench.core.timing import MismatchError, Timing, check_equal
from bench.instance_norm import Shape
from genkernels.models import PixelCNN
from genkernels.ops.masked_conv.mask import MaskSpec

ROOT = Path(gpu.__file__).resolve().parents[1]


@pytest.fixture
def on_cpu(monkeypatch):
    """The benchmarks on the CPU with made-up times: all but the timing itself runs."""

    def run_once(calls, *, seconds):
        for call in calls.values():
            call()
        return {name: Timing(1e-3 * (1 + index), 1e-3, 1e-2, 1, 1) for index, name in enumerate(calls)}

    machine = {"slug": "some-gpu", "gpu": "Some GPU", "cuda": "13.0"}
    for module in (gpu_masked_conv, gpu_conv_bn_act, gpu_instance_norm):
        monkeypatch.setattr(module, "DEVICE", "cpu")
        monkeypatch.setattr(module, "interleave_on_gpu", run_once)
        monkeypatch.setattr(module, "measure_gpu_ceilings", lambda dtype: Ceilings("bfloat16", 132, 1e5, 1e3))
        monkeypatch.setattr(module, "gpu_machine", lambda: machine)
    walks = gpu_wavefront_lstm
    monkeypatch.setattr(walks, "DEVICE", "cpu")
    monkeypatch.setattr(walks, "captured", lambda call: call)
    monkeypatch.setattr(walks, "timed", lambda calls, seconds: run_once(calls, seconds=seconds))
    monkeypatch.setattr(walks, "measure_gpu_ceilings", lambda dtype: Ceilings("bfloat16", 132, 1e5, 1e3))
    monkeypatch.setattr(walks, "gpu_machine", lambda: machine)
    monkeypatch.setattr(gpu_sampler, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_sampler, "BACKEND", "cpu")  # in the place of the CUDA executor
    monkeypatch.setattr(gpu_sampler, "captured", lambda call: call)
    monkeypatch.setattr(gpu_sampler, "interleave", lambda calls, seconds, min_rounds: run_once(calls, seconds=seconds))
    monkeypatch.setattr(gpu_sampler, "measure_gpu_ceilings", lambda dtype: Ceilings("float32", 132, 5e4, 1e3))
    monkeypatch.setattr(gpu_sampler, "gpu_machine", lambda: machine)
    # Compiling is slow and tested elsewhere.
    monkeypatch.setattr(torch, "compile", lambda function, **_options: function)


def test_all_alternatives_to_the_masked_convolution_agree_and_are_reported(monkeypatch, on_cpu):
    spec = MaskSpec(6, 5, (3, 3), "B", 1, "blocks")
    monkeypatch.setattr(gpu_masked_conv, "CASES", {"small": (spec, 2, 6, "relu"), "gated": (spec, 2, 6, "gate")})
    monkeypatch.setattr(gpu_masked_conv, "TARGETS", {"small": 1.3, "gated": 2.0})
    done = gpu_masked_conv.run(0.0)
    assert not done.settings["left_out"]
    assert [set(row.timings) for row in done.rows] == [set(gpu_masked_conv.NAMES)] * 4
    assert [claim.text.partition(":")[0] for claim in done.claims] == [f"{row.case}, {row.group}" for row in done.rows]
    text = report.markdown(done, full=True)
    assert "Some GPU" in text
    assert "over the best alternative" in text


def test_all_alternatives_to_a_generator_block_are_compared_and_reported(monkeypatch, on_cpu):
    blocks = (gpu_conv_bn_act.Block(6, 4, 3), gpu_conv_bn_act.Block(4, 3, 4, norm=False))
    monkeypatch.setattr(gpu_conv_bn_act, "BLOCKS", blocks)
    monkeypatch.setattr(gpu_conv_bn_act, "BATCH", 2)
    done = gpu_conv_bn_act.run(0.0)
    assert not done.settings["left_out"]
    assert [len(row.timings) for row in done.rows] == [6, 6]
    assert "Some GPU" in report.markdown(done)


def test_all_alternatives_to_instance_norm_are_compared_and_reported(monkeypatch, on_cpu):
    monkeypatch.setattr(gpu_instance_norm, "SHAPES", (Shape(2, 5, 6),))
    done = gpu_instance_norm.run(0.0)
    assert [len(row.timings) for row in done.rows] == [6]
    assert "Some GPU" in report.markdown(done)


@pytest.mark.parametrize("compiled", [False, True])
def test_all_alternatives_to_the_diagonal_walks_agree_and_are_reported(monkeypatch, on_cpu, compiled):
    case = gpu_wavefront_lstm.Case(2, 3, 4)
    monkeypatch.setattr(gpu_wavefront_lstm, "CASES", (case,))
    monkeypatch.setattr(gpu_wavefront_lstm, "COMPILED_CASE", case)
    done = gpu_wavefront_lstm.run(0.0, compiled)
    assert [len(row.timings) for row in done.rows] == [8 if compiled else 6] * 2
    text = report.markdown(done, full=True)
    assert "Some GPU" in text
    assert "per step of the walk" in text


def test_all_alternatives_to_the_sampler_draw_the_same_and_are_reported(monkeypatch, on_cpu):
    small = gpu_sampler.Case("small", lambda: PixelCNN(3, 6, 1, 4), (3, 3, 4), 2, 0.06, 50, 10)
    monkeypatch.setattr(gpu_sampler, "CASES", (small,))
    done = gpu_sampler.run(0.0)
    (row,) = done.rows
    assert set(row.timings) == {
        "ours",
        "ours, CUDA graph",
        "cached PyTorch",
        "cached PyTorch, CUDA graph",
        gpu_sampler.FULL,
    }
    assert row.timings[gpu_sampler.FULL].median == pytest.approx(36 * 3e-3)  # 36 times the third call's made-up time
    text = report.markdown(done, full=True)
    assert "Some GPU" in text
    assert "60 ms were promised" in text


def test_samples_that_are_not_those_of_the_cached_sampler_are_refused(monkeypatch, on_cpu):
    sampling = gpu_sampler.Sampling(gpu_sampler.Case("small", lambda: PixelCNN(1, 6, 1, 4), (1, 3, 4), 2))
    sampling.check()
    drawn = sampling.draw
    monkeypatch.setattr(sampling, "draw", lambda backend: drawn(backend) + (backend == "torch"))
    with pytest.raises(MismatchError, match=r"only 0\.0% of the images"):
        sampling.check()


@pytest.mark.parametrize("name", gpu_wavefront_lstm.WALKS)
def test_the_diagonal_walks_that_are_timed_are_the_same_walk(on_cpu, name):
    problem = gpu_wavefront_lstm.Problem(gpu_wavefront_lstm.Case(2, 3, 4), torch.float32)
    _, step = problem.calls(gpu_wavefront_lstm.WALKS[name])
    check_equal({name: step()}, problem.reference(), tolerance=1e-5)


def test_a_result_further_from_float64_than_the_peer_is_refused():
    exact = torch.randn(100, dtype=torch.float64)
    near, far = exact.float() + 1e-3, exact.float() + 3e-3
    gpu_timing.check_as_exact({"ours": [near], "peer": [near]}, [exact], peer="peer", ours=["ours"])
    with pytest.raises(MismatchError, match="ours, result 0"):
        gpu_timing.check_as_exact({"ours": [far], "peer": [near]}, [exact], peer="peer", ours=["ours"])
    far[0] = torch.nan
    with pytest.raises(MismatchError):
        gpu_timing.check_as_exact({"ours": [far], "peer": [near]}, [exact], peer="peer", ours=["ours"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("module", ["gpu", "gpu_masked_conv"])
def test_without_a_gpu_the_command_says_so_and_ends_with_2(module):
    done = subprocess.run([sys.executable, "-m", f"bench.{module}"], cwd=ROOT, capture_output=True, text=True)
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
