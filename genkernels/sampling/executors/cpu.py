"""CPU executor of sampling programs: layout and arguments around ``_C.SamplerPlan``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import backends
from ...distributions import Custom
from ..program.program import Program
from .cpu_packing import Plan, build
from .layout import layout, map_memory
from .run_arguments import Run
from .stops import Stop, drawn_together, known_everywhere


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


def run(program: Program, run: Run) -> None:
    """Draws the open sub-pixels of ``run.images`` in place.

    Raises:
        MemoryError: there is none for the values' caches.
        ValueError: no level can be drawn from what the model predicts.
    """
    if isinstance(program.distribution, Custom):
        _run_with(program.distribution, program, run)
        return
    plan = _plan(program)
    # Tensors, so that they stay alive while the native executor reads and writes them.
    vectors = [_vector(program, k) for k in plan.layout.vectors]
    maps = [map_memory(program, k, plan.layout) for k in plan.layout.maps]
    contiguous = run.contiguous()
    undrawable = plan.native.run(
        threads=run.threads or torch.get_num_threads(),
        run=contiguous.native(backends.require_native()),
        maps=_addresses(maps),
        vectors=_addresses(vectors),
        row_done=run.row_done,
    )
    run.take(contiguous)
    if undrawable >= 0:
        raise run.unsound(program.distribution, undrawable)


def _run_with(distribution: Custom, program: Program, run: Run) -> None:
    """A run whose levels a function of Python draws."""
    images, known = run.images.to(torch.int32).contiguous(), ~run.free
    uniforms = run.uniforms.double().permute(2, 3, 0, 1).contiguous()  # [H, W, n, C], as places come
    known_at = known.permute(2, 3, 0, 1).contiguous()
    some_known = known_at.flatten(2).any(2).tolist()
    last_row = -1
    # For what is drawn from, also known places are stopped at.
    for stop in walk(program, images, known if run.logits is None else torch.zeros_like(known)):
        row, column, colour, found = stop
        if (row, column) > run.last[:2]:
            break
        if row > last_row >= 0:
            run.row_done(last_row)
        last_row = row
        here: Any = slice(None) if colour is None else colour
        parameters = torch.from_numpy(found)
        if run.logits is not None:
            run.logits[:, :, here, row, column] = parameters.transpose(1, 2) if colour is None else parameters
        flat = parameters.flatten(0, -2)
        drawn = distribution.draw(flat, flat[:, :0], uniforms[row, column, :, here].flatten())
        drawn = drawn.view(len(images), -1).to(torch.int32)
        old, keep = images[:, here, row, column], known_at[row, column, :, here]
        unsound = (~distribution.is_sound(flat)).view(len(images), -1) & ~keep.view(len(images), -1)
        if bool(unsound.any()):
            image, first = unsound.nonzero()[0].tolist()
            raise distribution.unsound(run.first + image, first if colour is None else colour, row, column)
        drawn = drawn.view(old.shape)
        images[:, here, row, column] = torch.where(keep, old, drawn) if some_known[row][column] else drawn
    run.images.copy_(images)
    for row in range(max(last_row, 0), run.last[0] + 1):
        run.row_done(row)


def walk(program: Program, images: Tensor, known: Tensor) -> Iterator[Stop]:
    """Goes through images, stopping before every draw of what is not known in all of them.

    One thread does it. What is drawn from has the same bits as in a run of as many images by one thread.

    Args:
        images: int32 [n, C, H, W], contiguous: the levels at a stop must stand there when the walk goes on.
        known: bool [n, C, H, W].

    Raises:
        MemoryError: there is none for the values' caches.
    """
    plan, native = _plan(program), backends.require_native()
    together, distribution, passed = drawn_together(program), program.distribution, known_everywhere(known)
    shape = (len(images), distribution.channels) if not together else (
        len(images), distribution.predictions, distribution.channels
    )  # fmt: skip
    parameters = np.empty(shape, np.float32)
    free, uniforms = torch.zeros_like(images, dtype=torch.bool), torch.zeros(1, dtype=torch.float64)
    _, colours, height, width = images.shape
    run = native.SamplerRun(
        images=len(images), levels=images.data_ptr(), free=free.data_ptr(), uniforms=uniforms.data_ptr(), logits=0,
        temperature=1.0, top_k=0, last=(height - 1, width - 1, colours - 1),
    )  # fmt: skip
    vectors = [_vector(program, k) for k in plan.layout.vectors]
    maps = [map_memory(program, k, plan.layout) for k in plan.layout.maps]
    under_way = native.SamplerWalk(
        plan=plan.native, run=run, maps=_addresses(maps), vectors=_addresses(vectors), known=passed.data_ptr(),
        together=together, parameters=parameters.ctypes.data,
    )  # fmt: skip
    while (place := under_way.next()) is not None:
        row, column, colour = place
        yield Stop(row, column, None if together else colour, parameters)


def _plan(program: Program) -> Plan:
    plan = program.cache.get("cpu")
    if plan is None:
        plan = program.cache["cpu"] = build(program)
    return plan


def _addresses(constants: Sequence[tuple[Tensor, int]]) -> list[tuple[int, int]]:
    return [(flat.data_ptr(), stride) for flat, stride in constants]


def _vector(program: Program, k: int) -> tuple[Tensor, int]:
    """A constant vector in memory, and the floats from one image to the next, 0 where one serves all."""
    constant = program.values[k].constant
    assert constant is not None
    return constant.contiguous(), constant[0].numel() if len(constant) > 1 else 0
