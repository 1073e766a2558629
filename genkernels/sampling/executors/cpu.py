"""The native CPU executor of sampling programs: layout and arguments around ``_C.SamplerPlan``."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backends
from ..program.program import Program
from .cpu_packing import Plan, build
from .records import Layout, layout, map_memory
from .run_arguments import Walk


def why_not(program: Program) -> str | None:
    """The reason why the native executor cannot run a program, or None where it can."""
    if backends.native() is None:
        return "the native extension is not loaded"
    if program.table.device.type != "cpu":
        return f"the program is on {program.table.device}"
    if program.table.dtype != torch.float32:
        return f"no native sampler for {program.table.dtype}"
    return None


def bytes_per_image(program: Program) -> int:
    return 4 * layout(program).floats


def run(program: Program, walk: Walk) -> None:
    """Draws the open sub-pixels of ``walk.images`` in place.

    Raises:
        MemoryError: there is none for the values' caches.
        ValueError: no level can be drawn from the logits.
    """
    plan = program.cache.get("cpu")
    if plan is None:
        plan = program.cache["cpu"] = build(program)
    constants = _Constants(program, plan.layout)
    levels, free = walk.images.contiguous(), walk.free.contiguous()
    uniforms = walk.uniforms.to(torch.float64).contiguous()
    logits = None if walk.logits is None else walk.logits.contiguous()
    _run(plan, walk, levels, free, uniforms, logits, constants)
    if levels is not walk.images:
        walk.images.copy_(levels)
    if logits is not None and logits is not walk.logits:
        assert walk.logits is not None
        walk.logits.copy_(logits)


def _run(
    plan: Plan, walk: Walk, levels: Tensor, free: Tensor, uniforms: Tensor, logits: Tensor | None, constants: _Constants
) -> None:
    done, undrawable = plan.native.run(
        threads=torch.get_num_threads(),
        images=levels.shape[0],
        levels=levels.data_ptr(),
        free=free.data_ptr(),
        uniforms=uniforms.data_ptr(),
        logits=0 if logits is None else logits.data_ptr(),
        temperature=float(walk.temperature),
        top_k=walk.top_k or 0,
        last=walk.last,
        maps=constants.maps,
        vectors=constants.vectors,
        row_done=walk.row_done,
    )
    if not done:
        raise MemoryError("sample: no memory for the values of the images that are drawn at once")
    if undrawable >= 0:
        raise walk.no_level(undrawable)


class _Constants:
    """The constants of a program as (address, stride from image to image, offset, length), kept alive."""

    def __init__(self, program: Program, where: Layout) -> None:
        self.tensors: list[Tensor] = []
        self.vectors = [self._vector(program, k, where.buffers[k].offset) for k in where.vectors]
        self.maps = [self._map(program, k, where) for k in where.maps]

    def _vector(self, program: Program, k: int, offset: int) -> tuple[int, int, int, int]:
        constant = program.values[k].constant
        assert constant is not None
        length = constant[0].numel()
        return self._keep(constant.contiguous()), length if len(constant) > 1 else 0, offset, length

    def _map(self, program: Program, k: int, where: Layout) -> tuple[int, int, int, int]:
        flat, stride = map_memory(program, k, where)
        return self._keep(flat), stride, 0, 0

    def _keep(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return tensor.data_ptr()
