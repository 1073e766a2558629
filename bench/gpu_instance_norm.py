"""Instance norm and ReLU on a GPU, forward and backward: ours against eager PyTorch and torch.compile; bfloat16.

    python -m bench.gpu_instance_norm [--seconds S] [--json FILE]

Every alternative's results and gradients are compared with float64 (ours may be twice as far from it as eager PyTorch)
before it is timed; then all take turns as CUDA graphs, L2 flushed before each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.core.gpu_timing import check_as_exact, command_line, gpu_machine, interleave_on_gpu, measure_gpu_ceilings
from bench.core.report import Claim, Report, Row
from bench.core.roofline import Work
from bench.gpu_conv_bn_act import COMPILED, EAGER, LAST, OURS, step_of
from bench.instance_norm import Shape, ours, tensors, two_layers

DTYPE = torch.bfloat16
DEVICE = "cuda"  # replaced in tests
TARGET = 1.3  # times as fast as the best alternative
# Of pix2pix and CycleGAN: many planes, one image of a few, small ones.
SHAPES = (Shape(32, 64, 128), Shape(1, 256, 64), Shape(64, 512, 16))


def work(shape: Shape) -> Work:
    """x read and y written; backward reads x and the gradient and writes another."""
    return Work(0, 5 * DTYPE.itemsize * shape.batch * shape.channels * shape.size**2)


def alternatives() -> dict[str, tuple[Callable[..., Tensor], torch.memory_format]]:
    compiled = torch.compile(two_layers, dynamic=False, fullgraph=True)
    functions = {OURS: ours, EAGER: two_layers, COMPILED: compiled}
    layouts = {"": torch.contiguous_format, LAST: torch.channels_last}
    return {name + end: (function, each) for name, function in functions.items() for end, each in layouts.items()}


def measure(shape: Shape, seconds: float) -> Row:
    """Check, then time, every alternative for one shape."""
    torch.compiler.reset()
    x, grad_output, weight, bias = (t.to(DEVICE) for t in tensors(shape, torch.float32))
    inputs, grad_output = [x.to(DTYPE), weight, bias], grad_output.to(DTYPE)
    beside = two_layers(inputs[0].double(), weight.double(), bias.double()) < 0.05  # a kink: nothing to compare there
    grad_output = grad_output.masked_fill(beside, 0)
    double = step_of(two_layers, torch.contiguous_format, [t.double() for t in inputs], grad_output.double())
    reference = [t.detach() for t in double()]
    steps = {name: step_of(*each, inputs, grad_output) for name, each in alternatives().items()}
    own = tuple(name for name in steps if name.startswith(OURS))
    check_as_exact({name: step() for name, step in steps.items()}, reference, peer=EAGER, ours=own)
    timings = interleave_on_gpu(steps, seconds=seconds)
    return Row("forward + backward", str(shape), timings, ours=own, baseline=EAGER, work=work(shape))


def run(seconds: float) -> Report:
    """Measure everything; the ceilings before and after, of which the higher counts."""
    ceilings = measure_gpu_ceilings(DTYPE)
    rows = []
    for shape in SHAPES:
        print(f"{shape} ...", flush=True)
        rows.append(measure(shape, seconds))
    return Report(
        benchmark="gpu_instance_norm",
        title="Instance norm and ReLU, bfloat16",
        ceilings=ceilings.highest(measure_gpu_ceilings(DTYPE)),
        rows=tuple(rows),
        claims=tuple(
            Claim(f"{row.case}: over the best alternative", row.speed_up(row.best_other()), "×", TARGET) for row in rows
        ),
        settings={"seconds": seconds, "l2": "flushed before each call"},
        machine=gpu_machine(),
    )


if __name__ == "__main__":
    command_line(run, "bench.gpu_instance_norm", seconds=1.0)
