"""CPU executor of sampling programs: layout and arguments around ``_C.SamplerPlan``."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backends
from ...distributions import Custom
from ..program.program import Program
from .cpu_packing import build
from .layout import layout, map_memory
from .run_arguments import Run


def why_not(program: Program) -> str | None:
    """The reason why the native executor cannot run a program, or None where it can."""
    if backends.native() is None:
        return "the native extension is not loaded"
    if program.table.device.type != "cpu":
        return f"the program is on {program.table.device}"
    if isinstance(program.distribution, Custom):
        return "levels are drawn by a function of Python"
    if program.table.dtype != torch.float32:
        return f"no native sampler for {program.table.dtype}"
    return None


def bytes_per_image(program: Program) -> int:
    return 4 * layout(program).floats


def run(program: Program, run: Run) -> None:
    """Draws the open sub-pixels of ``run.images`` in place.

    Raises:
        MemoryError: there is none for the values' caches.
        ValueError: no level can be drawn from what the model predicts.
    """
    plan = program.cache.get("cpu")
    if plan is None:
        plan = program.cache["cpu"] = build(program)
    # Tensors, so that they stay alive while the native executor reads and writes them.
    vectors = [_vector(program, k) for k in plan.layout.vectors]
    maps = [map_memory(program, k, plan.layout) for k in plan.layout.maps]
    contiguous = run.contiguous()
    undrawable = plan.native.run(
        threads=torch.get_num_threads(),
        run=contiguous.native(backends.require_native()),
        maps=[(flat.data_ptr(), stride) for flat, stride in maps],
        vectors=[(flat.data_ptr(), stride) for flat, stride in vectors],
        row_done=run.row_done,
    )
    run.take(contiguous)
    if undrawable >= 0:
        raise run.unsound(program.distribution, undrawable)


def _vector(program: Program, k: int) -> tuple[Tensor, int]:
    """A constant vector in memory, and the floats from one image to the next, 0 where one serves all."""
    constant = program.values[k].constant
    assert constant is not None
    return constant.contiguous(), constant[0].numel() if len(constant) > 1 else 0
