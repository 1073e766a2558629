"""What the GPU benchmarks share: timing by CUDA graphs, the GPU's own ceilings, and comparing before timing."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.core import report
from bench.core.roofline import Ceilings
from bench.core.timing import MismatchError, Timing, order_of_round, summarise

FLUSH_BYTES = 1 << 28  # several times the L2 cache
WARM_UP_CALLS = 3
_MATRIX = 8192
_COPY_BYTES = 1 << 30


def gpu_machine() -> dict[str, Any]:
    """The GPU, and a slug made of its name."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "slug": re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-"),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def graph_of(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The call as a CUDA graph, so that nothing of the host is timed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def interleave_on_gpu(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, min_rounds: int = 11
) -> dict[str, Timing]:
    """Seconds per call of each, as :func:`bench.core.timing.interleave`: graphs in turn, L2 flushed before each."""
    graphs = {name: graph_of(call) for name, call in calls.items()}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    begin, done = time.perf_counter(), 0
    while done < min_rounds or time.perf_counter() - begin < seconds:
        events = []
        for name in order_of_round(list(calls), done):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            graphs[name].replay()
            end.record()
            events.append((name, start, end))
        torch.cuda.synchronize()
        for name, start, end in events:
            samples[name].append(start.elapsed_time(end) * 1e-3)
        done += 1
    return {name: summarise(values, 1) for name, values in samples.items()}


def measure_gpu_ceilings(dtype: torch.dtype, seconds: float = 0.5) -> Ceilings:
    """The rate of a large matrix product in this dtype, and of a large copy (bytes read plus written)."""
    a, b = (torch.randn(_MATRIX, _MATRIX, device="cuda").to(dtype) for _ in range(2))
    source = torch.empty(_COPY_BYTES, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    times = interleave_on_gpu({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, seconds=seconds)
    return Ceilings(
        isa=str(dtype).removeprefix("torch."),
        threads=torch.cuda.get_device_properties(0).multi_processor_count,
        gflops=2 * _MATRIX**3 / times["product"].median * 1e-9,
        gbs=2 * _COPY_BYTES / times["copy"].median * 1e-9,
    )


def check_as_exact(
    results: Mapping[str, Sequence[Tensor]], reference: Sequence[Tensor], *, peer: str, ours: Sequence[str]
) -> None:
    """Raise a MismatchError unless our root mean square errors are at most twice those of ``peer``, and a floor."""
    for name in ours:
        for index, (got, other, exact) in enumerate(zip(results[name], results[peer], reference, strict=True)):
            error, allowed = (float((t.detach().double() - exact).square().mean().sqrt()) for t in (got, other))
            floor = torch.finfo(got.dtype).eps * float(exact.square().mean().sqrt())
            if not error <= 2 * allowed + floor:
                raise MismatchError(f"{name}, result {index}: error {error:.3g} where {peer} has {allowed:.3g}")


def command_line(run: Callable[[float], report.Report], prog: str, *, seconds: float) -> None:
    """What ``python -m bench.gpu_<operation>`` does: measure, show, and write the JSON if asked."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description="Measure on the GPU and print the tables.")
    parser.add_argument("--seconds", type=float, default=seconds, help="for each case (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, f"{prog}: PyTorch finds no CUDA GPU here\n")
    torch.backends.cudnn.benchmark = True  # cuDNN tries its algorithms, as a user who wants speed lets it
    done = run(options.seconds)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(done), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written: {options.json}")
    print(report.markdown(done, full=True))
