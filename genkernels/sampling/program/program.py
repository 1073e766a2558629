"""Program of one model: its values, and its instructions by phase; their meaning is defined in instructions.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...distributions import Distribution
from .format import instruction_line
from .instructions import Affine, Attention, Draw, Instruction, Scan, Value, span_count


@dataclass(frozen=True, eq=False)
class Program:
    """How to sample from one model with its present weights and condition; see instructions.py.

    Attributes:
        height, width: of the image.
        grid_width: columns of the sweep, at least ``width``.
        distribution: what is drawn from; it knows the colours and levels.
        table: [levels], the model's input for each level.
        values: by index; value 0 is the image.
        row: instructions of the row phase.
        steps: for each step 0 .. colours, its instructions; those before the last end with their Draw.
        cache: data that executors keep with the program (packed weights, say), by executor; shared by the programs for
            parts of the batch, so nothing of the constants' content.
    """

    height: int
    width: int
    grid_width: int
    distribution: Distribution
    table: Tensor
    values: tuple[Value, ...]
    row: tuple[Instruction, ...]
    steps: tuple[tuple[Instruction, ...], ...]
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def colours(self) -> int:
        """Sub-pixels of a pixel."""
        return self.distribution.colours

    @property
    def levels(self) -> int:
        """Values of a sub-pixel."""
        return self.distribution.levels

    @property
    def logits(self) -> int:
        """The value that holds what is drawn from, one prediction of the distribution after the other."""
        return next(i.value for i in self.steps[0] if isinstance(i, Draw))

    @property
    def batch(self) -> int | None:
        """The number of images that the constants are for; None where there are none, or one serves all."""
        sizes = {v.constant.shape[0] for v in self.values if v.constant is not None} - {1}
        return sizes.pop() if sizes else None

    def instructions(self) -> Iterator[Instruction]:
        """All of them, in the order of their phases."""
        yield from self.row
        for step in self.steps:
            yield from step

    def for_images(self, start: int, stop: int) -> Program:
        """The program for a part of the batch: constants with one entry for each image are cut."""
        if self.batch is None:
            return self
        values = tuple(
            v if v.constant is None or v.constant.shape[0] == 1 else replace(v, constant=v.constant[start:stop])
            for v in self.values
        )
        return replace(self, values=values)

    def multiplications(self) -> int:
        """Multiply-adds of the affine instructions and of attention for one image, edges counted as inner pixels."""
        total = 0
        for instruction in self.instructions():
            for part in instruction.body if isinstance(instruction, Scan) else (instruction,):
                if isinstance(part, Affine):
                    start, stop = self.values[part.value].columns
                    total += part.weight.numel() * self.height * (stop - start)
                elif isinstance(part, Attention):
                    heads = part.heads if len(part.seen) == 1 else 1
                    depth = span_count(part.query.channels) + span_count(part.values.channels)
                    total += heads * int(part.seen.sum()) * (depth // part.heads)
        return total

    def __str__(self) -> str:
        """One line for each instruction."""
        image = f"{self.height} x {self.width} x {self.colours}"
        lines = [
            f"sampling program, {self.distribution.name}: images {image}, {self.levels} levels, "
            f"{self.grid_width} columns, {len(self.values)} values, {self.multiplications():,} multiply-adds an image"
        ]
        lines += ["before each row:"] + [instruction_line(self.values, i) for i in self.row]
        for step, instructions in enumerate(self.steps):
            when = "before" if step < self.colours else "after"
            lines += [f"at each pixel, {when} colour {min(step, self.colours - 1)}:"]
            lines += [instruction_line(self.values, i) for i in instructions]
        return "\n".join(lines)
