"""Everything that needs a GPU, in one command: the build, the tests, the benchmarks; under 9 minutes.

    python -m bench.gpu [--out DIR]

Run in the repository's root, with nothing installed but torch, triton, pybind11, cmake, ninja, setuptools, pytest and
nvcc: the extension is built in place if it is missing or has no CUDA part. Every step is a process of its own with a
time limit, so that one that fails or hangs costs nobody else their results. Writes <benchmark>.json and <step>.log for
each to DIR (default: bench/results/<gpu>), prints the tables, and ends with 0 if every step passed, 1 if one failed,
2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
TOTAL_SECONDS = 500
# The benchmarks: module under bench/, and seconds it may take. Each writes the file that --json names.
BENCHMARKS: dict[str, int] = {
    "masked_conv": 130,
    "conv_bn_act": 150,
    "wavefront_lstm": 60,
    "sampler": 110,
    "instance_norm": 40,
}
TEST_SECONDS = 200
BUILD_SECONDS = 240
_HAS_CUDA_PART = "from genkernels import _C; raise SystemExit(0 if _C.build_info()['cuda']['compiled'] else 1)"


@dataclass(frozen=True)
class Step:
    """Commands that run side by side, and the seconds they have."""

    name: str
    commands: list[list[str]]
    seconds: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: bench/results/<gpu>")
    options = parser.parse_args()
    missing = why_no_gpu()
    if missing:
        print(f"bench.gpu: nothing was run: {missing}", file=sys.stderr)
        return 2
    from bench.core.machine import gpu_machine

    out = (options.out or RESULTS / gpu_machine()["slug"]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    end = time.monotonic() + TOTAL_SECONDS
    for step in steps(out):
        outcomes[step.name] = run(step, out, end)
        print(f"== {step.name}: {outcomes[step.name]}\n", flush=True)
    print("\n".join(f"{name:20} {outcome}" for name, outcome in outcomes.items()))
    print(f"results: {out}")
    return 0 if all(outcome.startswith("passed") for outcome in outcomes.values()) else 1


def why_no_gpu() -> str | None:
    """Why nothing here can run, or None."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported ({error})"
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA GPU"
    return None


def steps(out: Path) -> list[Step]:
    """What is run, in order: the build only where it is needed."""
    python = sys.executable
    chosen = []
    has_cuda = subprocess.run([python, "-c", _HAS_CUDA_PART], cwd=ROOT, env=environment(), capture_output=True)
    if has_cuda.returncode:
        chosen.append(Step("build", [[python, "setup.py", "-q", "build_ext", "--inplace"]], BUILD_SECONDS))
    pytest = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    chosen.append(Step("tests", [[*pytest, str(file)] for file in gpu_tests()], TEST_SECONDS))
    for name, seconds in BENCHMARKS.items():
        file = out / f"gpu_{name}.json"
        command = [python, "-m", f"bench.{name}", "--device", "cuda", "--json", str(file)]
        chosen.append(Step(f"gpu_{name}", [command], seconds))
    return chosen


def gpu_tests() -> list[Path]:
    """The files that hold tests marked gpu: other ones may need packages that are not there."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = re.compile(r"mark\.gpu\b|= triton_tests\b|\bon_gpu\b")
    return [file for file in files if marked.search(file.read_text(encoding="utf-8"))]


def environment() -> dict[str, str]:
    """This process' environment with the repository in front, so that nothing need be installed."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PYTHONPATH": path}


def run(step: Step, out: Path, end: float) -> str:
    """Run one step, its output shown and kept in <name>.log; returns how it went."""
    seconds = min(step.seconds, end - time.monotonic())
    if seconds <= 0:
        return f"not run: the {TOTAL_SECONDS} s for everything are over"
    print(f"== {step.name} ...", flush=True)
    begin = time.monotonic()
    outcome, running = "passed", []
    for index, command in enumerate(step.commands):
        log = out / (f"{step.name}.log" if len(step.commands) == 1 else f"{step.name}_{index}.log")
        with log.open("w") as file:
            file.write(" ".join(command) + "\n")
            file.flush()
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        running.append((process, log))
    for process, log in running:
        try:
            process.wait(max(0.1, begin + seconds - time.monotonic()))
            if process.returncode:
                outcome = f"FAILED with code {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started: compilers, further tests
            process.wait()
            outcome = "FAILED: out of time"
        print(log.read_text(encoding="utf-8", errors="replace")[-20000:], flush=True)
    return f"{outcome} ({time.monotonic() - begin:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
