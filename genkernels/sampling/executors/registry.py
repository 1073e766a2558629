"""Choice of the executor for a program: the native ones where they fit, else PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..program.program import Program
from ..request import Progress, Request
from . import cpu, cuda, pytorch
from .run_arguments import Run
from .stops import Stop

MEMORY = 1 << 30  # bytes that a batch may take at least; larger ones are drawn in parts


@dataclass(frozen=True)
class Executor:
    """A way to run programs.

    Attributes:
        name: "torch", "cpu" or "cuda".
        refuses: why it cannot run a program, or None.
        run: draws the open sub-pixels of a run.
        bytes_per_image: the memory that an image of the batch takes.
        spare_memory: bytes that may be taken where that is more than MEMORY.
    """

    name: str
    refuses: Callable[[Program], str | None]
    run: Callable[[Program, Run], None]
    bytes_per_image: Callable[[Program], int]
    spare_memory: Callable[[Program], int] = lambda program: 0


EXECUTORS: list[Executor] = [
    Executor("cpu", cpu.why_not, cpu.run, cpu.bytes_per_image),
    Executor("cuda", cuda.why_not, cuda.run, cuda.bytes_per_image, cuda.spare_memory),
    Executor("torch", lambda program: None, pytorch.run, pytorch.bytes_per_image),
]
"""The first that does not refuse is taken: the native ones, then PyTorch."""


def choose(program: Program, backend: str | None = None) -> Executor:
    """The executor for a program.

    Args:
        backend: its name, or None for the quickest that can run it.

    Raises:
        ValueError: there is none of this name, or it refuses; with the reason.
    """
    for executor in EXECUTORS:
        if backend in (None, executor.name):
            reason = executor.refuses(program)
            if reason is None:
                return executor
            if backend is not None:
                raise ValueError(f"backend: {backend!r} cannot run this program: {reason}")
    raise ValueError(f"backend: expected one of {[e.name for e in EXECUTORS]}; got {backend!r}")


def execute(program: Program, request: Request, progress: Progress | None = None, backend: str | None = None) -> Tensor:
    """Draws what is open in ``request.images``, in place, in parts that fit into memory, and returns them.

    ``progress(done, total)`` is called after each row, in sub-pixels that were open.
    """
    executor = choose(program, backend)
    memory = max(MEMORY, executor.spare_memory(program))
    size = max(1, memory // max(1, executor.bytes_per_image(program)))
    parts = [slice(start, start + size) for start in range(0, request.images.shape[0], size)]
    opened = [request.free[part].any(0).sum((0, 2)).tolist() for part in parts]  # by part and row
    total, before = sum(map(sum, opened)), 0
    for part, rows in zip(parts, opened, strict=True):
        if sum(rows):

            def row_done(y: int, before: int = before, rows: list[int] = rows) -> None:
                if progress is not None and rows[y]:
                    progress(before + sum(rows[: y + 1]), total)

            stop = min(part.stop, request.images.shape[0])
            executor.run(program.for_images(part.start, stop), run_of(request, part, row_done))
        before += sum(rows)
    return request.images


def walk(program: Program, images: Tensor, known: Tensor, backend: str | None = None) -> Iterator[Stop]:
    """Goes through images, stopping before every draw; a program on a GPU is walked by PyTorch.

    Args:
        images: int32 [n, C, H, W], contiguous, on the CPU: the levels at a stop must stand there when it goes on.
        known: bool [n, C, H, W], what stands there from the beginning; places that all images know are passed by.
        backend: "cpu" or "torch"; None for the quicker one that can.

    Raises:
        ValueError: the backend is another one, or cannot run the program.
    """
    if backend not in (None, "cpu", "torch"):
        raise ValueError(f"backend: expected 'cpu', 'torch' or None for steps; got {backend!r}")
    reason = cpu.why_not(program)
    if backend == "cpu" and reason is not None:
        raise ValueError(f"backend: 'cpu' cannot run this program: {reason}")
    walker = pytorch.walk if backend == "torch" or reason is not None else cpu.walk
    return walker(program.for_images(0, len(images)), images, known)


def run_of(request: Request, part: slice, row_done: Callable[[int], None]) -> Run:
    free = request.free[part]
    row, column, colour = free.any(0).permute(1, 2, 0).nonzero()[-1].tolist()
    return Run(
        request.images[part], free, request.uniforms[part], request.temperature, request.top_k,
        (row, column, colour), row_done, part.start,
    )  # fmt: skip


def teacher_forced(program: Program, images: Tensor, backend: str = "torch", threads: int | None = None) -> Tensor:
    """The logits of every sub-pixel, or what else it is drawn from, as the program computes them on its way through
    given images.

    Args:
        images: levels, whole numbers [n, C, H, W].
        backend: the executor.
        threads: of the CPU's. By one thread the bits are those that :func:`walk` meets.

    Returns:
        [n, levels, C, H, W], or [n, channels, predictions, H, W] of the distribution; a forward pass of the model gives
        the same.
    """
    n, colours, height, width = images.shape
    distribution = program.distribution
    logits = program.table.new_zeros(n, distribution.channels, distribution.predictions, height, width)
    free = torch.zeros_like(images, dtype=torch.bool)
    run = Run(
        images.clone(), free, torch.zeros(images.shape), 1.0, None, (height - 1, width - 1, colours - 1),
        lambda y: None, logits=logits, threads=threads,
    )  # fmt: skip
    choose(program, backend).run(program.for_images(0, n), run)
    return logits
