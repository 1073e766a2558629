"""Masked convolution on a GPU: ours against cuDNN, pre-masked or cropped, and torch.compile; bfloat16.

    python -m bench.gpu_masked_conv [--seconds S] [--json FILE]

Every alternative is compared with float64, output and all gradients, before it is timed (in front of a gate, which
rounds, each may be twice as far from it as eager PyTorch); then all take turns as CUDA graphs, L2 flushed before each.
The floor counts live taps alone, and under a gate its result and not the features before it.
"""

from __future__ import annotations

import torch

from bench.core.gpu_timing import check_as_exact, command_line, gpu_machine, interleave_on_gpu, measure_gpu_ceilings
from bench.core.report import Claim, Report, Row
from bench.core.roofline import Work
from bench.core.timing import check_equal
from bench.masked_conv_baselines import (
    BUILDERS,
    COMPILED,
    EAGER,
    OURS,
    Prepared,
    Problem,
    is_ours,
    masked_conv_work,
    random_problem,
)
from genkernels.ops.masked_conv.mask import MaskSpec

DTYPE = torch.bfloat16
DEVICE = "cuda"  # replaced in tests
NAMES = tuple(
    name + layout
    for name in (OURS, EAGER, COMPILED, "pre-masked", "cropped, padded", "cropped, cut")
    for layout in (", channels_last", "")
)
# case -> (spec, batch, size, activation)
CASES = {
    "64×128→256, 32², 3×3 B": (MaskSpec(256, 128, (3, 3), "B", 1, "blocks"), 64, 32, "relu"),
    "64×128→2×128, 32², 3×3 B, gate": (MaskSpec(256, 128, (3, 3), "B", 1, "blocks"), 64, 32, "gate"),
    "64×3→128, 32², 7×7 A, 3 colours": (MaskSpec(128, 3, (7, 7), "A", 3, "blocks"), 64, 32, "relu"),
}
TARGETS = dict(zip(CASES, (1.3, 2.0), strict=False))  # times as fast as the best alternative


def prepared(problem: Problem, left_out: dict[str, str]) -> dict[str, Prepared]:
    """The alternatives that run here and are right; why another one does not is noted in ``left_out``."""
    reference = problem.reference()
    ready = {}
    torch.compiler.reset()
    gate = problem.activation == "gate"
    eager = BUILDERS[EAGER](problem).results() if gate else ()
    for name in NAMES:
        try:
            alternative = BUILDERS[name](problem)
            if gate:
                results = {EAGER: eager, name: alternative.results()}
                check_as_exact(results, reference, peer=EAGER, ours=[name])
            else:
                # Whole numbers: sums are exact in float32, so all that is left is the rounding of the results.
                check_equal({name: alternative.results()}, reference, tolerance=2.0**-8)
        except Exception as error:  # of an alternative: the others still count
            if is_ours(name):
                raise
            left_out[name] = f"{type(error).__name__}: {error}"
            print(f"left out: {name}: {left_out[name]}", flush=True)
        else:
            ready[name] = alternative
    return ready


def run(seconds: float) -> Report:
    """Measure everything; the ceilings before and after, of which the higher counts."""
    ceilings = measure_gpu_ceilings(DTYPE)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for case, (spec, batch, size, activation) in CASES.items():
        print(f"{case} ...", flush=True)
        problem = random_problem(
            spec, batch, size, size, activation=activation, input_grad=spec.in_channels > 3, device=DEVICE, dtype=DTYPE
        )
        ready = prepared(problem, left_out)
        for group in ("forward", "forward + backward"):
            backward = group != "forward"
            work = masked_conv_work(spec, batch, size, size, backward=backward, input_grad=problem.input_grad)
            if activation == "gate":  # y and its gradient are half of what they are without
                work = Work(work.flops, work.bytes - 4 * problem.grad_output.numel() * (1 + backward))
            calls = {name: each.step if backward else each.forward for name, each in ready.items()}
            rows.append(
                Row(
                    group=group,
                    case=case,
                    timings=interleave_on_gpu(calls, seconds=seconds),
                    ours=tuple(name for name in ready if is_ours(name)),
                    baseline=EAGER + ", channels_last",
                    work=Work(work.flops, work.bytes * DTYPE.itemsize // 4),
                )
            )
    return Report(
        benchmark="gpu_masked_conv",
        title="Masked convolution, bfloat16",
        ceilings=ceilings.highest(measure_gpu_ceilings(DTYPE)),
        rows=tuple(rows),
        claims=tuple(
            Claim(
                f"{row.case}, {row.group}: over the best alternative",
                row.speed_up(row.best_other()),
                "×",
                TARGETS[row.case],
            )
            for row in rows
            if row.case in TARGETS
        ),
        settings={"seconds": seconds, "l2": "flushed before each call", "left_out": left_out},
        machine=gpu_machine(),
    )


if __name__ == "__main__":
    command_line(run, "bench.gpu_masked_conv", seconds=1.0)
