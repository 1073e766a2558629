"""CUDA executor of sampling programs: memory and arguments around ``_C.CudaSamplerPlan``.

Everything is allocated here, by torch, on the caller's stream; one launch draws all images. A run can be captured in a
CUDA graph once the plan is there: only the check that every level could be drawn waits for the launch, and it is left
out during a capture. Rows are reported when the launch is under way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import backends
from ...distributions import Custom
from ...ops.core.cuda_device import device_of
from ..program.instructions import Attention, span_count
from ..program.program import Program
from .cuda_packing import Plan, build
from .layout import Layout, layout, map_memory
from .run_arguments import Run

DEVICE_TYPE = "cuda"  # replaced in tests
_MAX_MAPS = 16
_MAX_HEAD = 128
_MAX_FLOATS = 2**31 - 1


def why_not(program: Program) -> str | None:
    """The reason why the CUDA executor cannot run a program, or None where it can."""
    if program.table.device.type != DEVICE_TYPE:
        return f"the program is on {program.table.device}"
    if isinstance(program.distribution, Custom):
        return "levels are drawn by a function of Python"
    if program.table.dtype != torch.float32:
        return f"no CUDA sampler for {program.table.dtype}"
    if DEVICE_TYPE == "cuda" and not hasattr(backends.native(), "CudaSamplerPlan"):
        return "the native extension is missing or was built without CUDA kernels"
    widest = max((_widest_head(i) for i in program.instructions() if isinstance(i, Attention)), default=0)
    if widest > _MAX_HEAD:
        return f"the CUDA sampler takes heads of at most {_MAX_HEAD} channels; got {widest}"
    where = layout(program)
    if len(where.maps) > _MAX_MAPS:
        return f"the CUDA sampler takes at most {_MAX_MAPS} constant maps; got {len(where.maps)}"
    largest = max([where.floats, *(where.buffers[k].rows * where.buffers[k].row_stride for k in where.maps)])
    if largest > _MAX_FLOATS:
        return f"an image keeps {largest} numbers, the CUDA sampler takes at most {_MAX_FLOATS}"
    device = device_of(program.table)
    division = _plan(program, device.native).native.division(1, device.limits)
    if not division["fits"]:
        return (
            f"a block needs at least {division['shared_bytes']} bytes of shared memory, "
            f"one of this device has {device.limits[1]}"
        )
    return None


def _widest_head(attention: Attention) -> int:
    return max(span_count(read.channels) for read in (attention.query, attention.values)) // attention.heads


def bytes_per_image(program: Program) -> int:
    return 4 * layout(program).floats


def spare_memory(program: Program) -> int:
    """Half of what the device has left: a part of a batch keeps no more multiprocessors busy than it has images."""
    return torch.cuda.mem_get_info(program.table.device)[0] // 2 if program.table.is_cuda else 0


def run(program: Program, run: Run) -> None:
    """Draws the open sub-pixels of ``run.images`` in place.

    Raises:
        ValueError: no level can be drawn from what the model predicts; not while a CUDA graph is captured.
    """
    device = device_of(program.table)
    with device.current():
        plan = _plan(program, device.native)
        memory = _memory(program, plan.layout, len(run.images))
        maps = [map_memory(program, k, plan.layout) for k in plan.layout.maps]
        contiguous = run.contiguous()
        undrawable = torch.full((1,), -1, device=program.table.device)
        plan.native.run(
            device=device.index,
            stream=device.stream(),
            limits=device.limits,
            tables=plan.tables.data_ptr(),
            weights=plan.weights.data_ptr(),
            floats=plan.floats.data_ptr(),
            memory=memory.data_ptr(),
            maps=[(flat.data_ptr(), stride) for flat, stride in maps],
            run=contiguous.native(device.native),
            undrawable=undrawable.data_ptr(),
        )
        run.take(contiguous)
    for y in range(run.last[0] + 1):
        run.row_done(y)
    if not (undrawable.is_cuda and torch.cuda.is_current_stream_capturing()) and int(undrawable) >= 0:
        raise run.unsound(program.distribution, int(undrawable))


def _plan(program: Program, native: Any) -> Plan:
    plan = program.cache.get("cuda")
    if plan is None:
        plan = program.cache["cuda"] = build(program, native)
    return plan


def _memory(program: Program, where: Layout, images: int) -> Tensor:
    """[images, floats] as they are before the first pixel: zero, what is read outside of values, constant vectors."""
    memory = program.table.new_zeros(images, where.floats)
    for value, buffer in zip(program.values, where.buffers, strict=True):
        if value.outside is not None:
            pixels = buffer.rows * buffer.columns
            span = memory[:, buffer.offset : buffer.offset + pixels * value.channels]
            span.unflatten(1, (pixels, value.channels)).copy_(value.outside)
        if value.index in where.vectors:
            assert value.constant is not None
            memory[:, buffer.offset : buffer.offset + value.channels] = value.constant
    return memory
