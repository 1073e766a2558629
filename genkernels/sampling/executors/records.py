"""A sampling program as the flat plan that the native executors walk: where every value lies, and what every
instruction reads and writes. The records are those of csrc/sampler_records.h; how weights are packed, each executor
says in a builder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..program.instructions import (
    BINARY,
    UNARY,
    Affine,
    Cell,
    Draw,
    Function,
    Instruction,
    Pointwise,
    Read,
    Scan,
    Spans,
    Value,
    reads_of,
)
from ..program.program import Program

_ALIGN = 16  # floats of a cache line
_PADDING = 64  # floats behind a map: loads of whole vectors may reach beyond it
_OPERANDS = 4
_FUNCTIONS = {name: number for number, name in enumerate([*UNARY, *BINARY])}
_KINDS: dict[type, int] = {Affine: 0, Pointwise: 1, Cell: 2, Scan: 3, Draw: 4}


@dataclass(frozen=True)
class Buffer:
    """Where a value lies; ``first_column`` is that of the first column kept. ``external``: which map it is, or -1."""

    offset: int
    rows: int
    row_stride: int
    column_stride: int
    first_column: int
    columns: int
    external: int = -1


@dataclass(frozen=True)
class Layout:
    """The memory of an image: ``floats`` for each, the constant maps apart."""

    buffers: list[Buffer]
    floats: int
    vectors: list[int]
    maps: list[int]


def layout(program: Program) -> Layout:
    """Rings of rows for what is read later; one pixel for what is written and read in the steps of a pixel alone."""
    lasting = _lasting(program)
    buffers: list[Buffer] = []
    vectors: list[int] = []
    maps: list[int] = []
    end = 0
    for value in program.values:
        channels, first = value.channels, value.columns[0] - value.columns_left
        columns = value.columns[1] + value.columns_right - first
        if value.constant is not None and value.constant.dim() == 4:
            first = min(0, first)
            columns = max(program.grid_width, value.columns[1] + value.columns_right) - first
            rows = program.height + value.rows_back
            buffers.append(Buffer(0, rows, columns * channels, channels, first, columns, len(maps)))
            maps.append(value.index)
            continue
        if value.constant is not None:
            vectors.append(value.index)
        if value.constant is not None or value.index not in lasting:
            buffers.append(Buffer(end, 1, 0, 0, 0, 1))
            end += channels
        else:
            rows = value.rows_back + 1
            buffers.append(Buffer(end, rows, columns * channels, channels, first, columns))
            end += rows * columns * channels
        end = up(end, _ALIGN)
    # An odd number of cache lines: what several images read at once then falls into different sets of the cache.
    return Layout(buffers, up(end + _ALIGN, _ALIGN) | _ALIGN, vectors, maps)


def map_memory(program: Program, k: int, where: Layout) -> tuple[Tensor, int]:
    """A constant map in memory, [n, rows, columns, channels] and some floats more, and the floats from one image to the
    next, 0 where one serves all. Rows are those of the image, then those above it, which read as zero.
    """
    constant, buffer = program.values[k].constant, where.buffers[k]
    assert constant is not None
    n, channels, height, width = constant.shape
    image = buffer.rows * buffer.row_stride
    flat = constant.new_zeros(n * image + _PADDING)
    whole = flat[: n * image].view(n, buffer.rows, buffer.columns, channels)
    whole[:, :height, -buffer.first_column : width - buffer.first_column] = constant.permute(0, 2, 3, 1)
    return flat, image if n > 1 else 0


def _lasting(program: Program) -> set[int]:
    """Values that are read at another pixel than where they are written, or touched by the row phase."""
    kept = {0} | {v.index for v in program.values if v.rows_back or v.columns_left or v.columns_right}
    for instruction in program.row:
        for part in _parts(instruction):
            kept |= {read.value for read in reads_of(part)} | set(_written(part))
    return kept


def _parts(instruction: Instruction) -> Sequence[Instruction]:
    return instruction.body if isinstance(instruction, Scan) else (instruction,)


def _written(instruction: Instruction) -> list[int]:
    if isinstance(instruction, Cell):
        return [instruction.value, instruction.state, instruction.memory]
    assert isinstance(instruction, (Affine, Pointwise))
    return [instruction.value]


def up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class Builder:
    """Makes the records of a program.

    Attributes:
        segment: reduction steps of a segment at most; one ends where their number since the first is a multiple of it.
        panel: rows of a weight beyond which no run of channels reaches, or None.
        records: what ``_C.SamplerPlan`` and ``_C.CudaSamplerPlan`` take, by name.
        whole_rows: whether the instruction at hand is run on all columns of a row at once.
    """

    segment: int
    panel: int | None = None

    def __init__(self, program: Program) -> None:
        self.program = program
        self.layout = layout(program)
        self.floats: list[Tensor] = []
        self.float_count = 0
        self.places: list[list[int]] = []
        self.groups: list[list[int]] = []
        self.runs: list[list[int]] = []
        self.instructions: list[list[int]] = []
        self.bodies: list[list[int]] = []
        self.whole_rows = False
        self.records = self._records()

    def pack(self, weight: Tensor, bias: Tensor | None) -> dict[str, int]:
        """Keeps [rows, reductions] and [rows]; returns where: ``weight`` and, if it is kept apart, ``bias``."""
        raise NotImplementedError

    def _records(self) -> dict[str, Any]:
        program = self.program
        phases = [[part for i in phase for part in _split(i)] for phase in (program.row, *program.steps)]
        ends, total = [], 0
        for phase in phases:
            ends.append([total, total + len(phase)])
            total += len(phase)
        self.body_start = total
        for number, phase in enumerate(phases):
            self.whole_rows = number == 0
            self.instructions += [self.instruction(i) for i in phase]
        table = self.keep(program.table)
        buffers = [self.buffer(*pair) for pair in zip(program.values, self.layout.buffers, strict=True)]
        sizes = [
            program.height, program.width, program.grid_width, program.colours, program.levels,
            self.layout.floats, table,
        ]  # fmt: skip
        return {
            "sizes": sizes,
            "buffers": buffers,
            "places": self.places,
            "instructions": self.instructions + self.bodies,
            "groups": self.groups,
            "runs": self.runs,
            "phases": ends,
        }

    def keep(self, numbers: Tensor) -> int:
        """Puts floats into the plan; returns where."""
        flat = numbers.detach().reshape(-1).float().cpu()
        filled = torch.zeros(up(flat.numel(), _ALIGN))
        filled[: flat.numel()] = flat
        self.floats.append(filled)
        self.float_count += filled.numel()
        return self.float_count - filled.numel()

    def buffer(self, value: Value, buffer: Buffer) -> list[int]:
        """One record; see SamplerBuffer."""
        outside = -1 if value.outside is None else self.keep(value.outside)
        return [
            buffer.offset, buffer.rows, buffer.row_stride, buffer.column_stride, buffer.first_column, buffer.columns,
            value.channels, outside, buffer.external,
        ]  # fmt: skip

    def place(self, value: int, dy: int, dx: int, channel: int, length: int = 0) -> None:
        self.places.append([value, dy, dx, channel, length])

    def instruction(self, instruction: Instruction) -> list[int]:
        """One record; see SamplerInstruction."""
        record = dict.fromkeys(
            [
                "kind", "first_row", "first_column", "last_column", "function", "parameters", "accumulate", "places",
                "operands", "segments", "groups", "arena_groups", "group_count", "runs", "run_count", "rows",
                "reductions", "weight", "bias", "body", "count", "number",
            ],
            0,
        )  # fmt: skip
        record |= {
            "kind": _KINDS[type(instruction)], "places": len(self.places), "groups": len(self.groups),
            "runs": len(self.runs),
        }  # fmt: skip
        if isinstance(instruction, Scan):
            self.whole_rows = False
            body = [self.instruction(part) for part in instruction.body]
            self.whole_rows = True
            record |= {"body": self.body_start + len(self.bodies), "count": len(body)}
            self.bodies += body
            self.support(record, self.program.values[instruction.body[-1].value])
            record["first_row"] = min(self.program.values[part.value].first_row for part in instruction.body)
        elif isinstance(instruction, Draw):
            self.place(0, 0, 0, instruction.colour)
            self.place(instruction.value, 0, 0, instruction.colour * self.program.levels)
            record |= {"operands": 1, "number": instruction.colour, "last_column": self.program.width}
        else:
            self.support(record, self.program.values[instruction.value])
            if isinstance(instruction, Affine):
                self.affine(record, instruction)
            elif isinstance(instruction, Pointwise):
                self.place(instruction.value, 0, 0, 0)
                self.operands(record, instruction.operands)
                self.run_of(instruction.channels, [read.channels for read in instruction.operands])
                self.function(record, instruction.function)
            else:
                self.cell(record, instruction)
        record["run_count"] = len(self.runs) - record["runs"]
        return list(record.values())

    def support(self, record: dict[str, int], value: Value) -> None:
        record |= {
            "first_row": value.first_row, "first_column": value.columns[0], "last_column": value.columns[1]
        }  # fmt: skip

    def function(self, record: dict[str, int], function: Function | None) -> None:
        if function is not None:
            record["function"] = _FUNCTIONS[function.name]
            record["parameters"] = self.keep(torch.tensor([*function.parameters, 0.0], dtype=torch.float64))

    def operands(self, record: dict[str, int], reads: Sequence[Read]) -> None:
        for read in reads:
            self.place(read.value, read.dy, read.dx, 0)
        record["operands"] = len(reads)

    def run_of(self, channels: Spans, operands: Sequence[Spans], panel: int | None = None) -> None:
        """Runs of channels; cut where a panel ends."""
        at = 0
        for number, (start, stop) in enumerate(channels):
            done = 0
            while start + done < stop:
                length = stop - start - done
                if panel is not None:
                    length = min(length, panel - at % panel)
                theirs = [spans[number][0] + done for spans in operands]
                self.runs.append([at, length, start + done, *theirs, *[0] * (_OPERANDS - len(theirs))])
                at, done = at + length, done + length

    def affine(self, record: dict[str, int], affine: Affine) -> None:
        self.place(affine.value, 0, 0, 0)
        self.operands(record, affine.terms)
        columns, count = self.taps(record, affine.taps)
        weight = affine.weight[:, columns].cpu()
        self.run_of(affine.channels, [term.channels for term in affine.terms], self.panel)
        self.function(record, affine.activation)
        record |= {
            "segments": count, "rows": weight.shape[0], "reductions": weight.shape[1],
            "accumulate": int(affine.accumulate),
            **self.pack(weight, None if affine.bias is None else affine.bias.cpu()),
        }  # fmt: skip

    def taps(self, record: dict[str, int], taps: Sequence[Read]) -> tuple[list[int], int]:
        """Adds the segments, grouped by how they move along the row, those that lie side by side joined.

        Returns the columns of the weight in their order, and the number of segments.
        """
        pieces: dict[tuple[int, int], list[tuple[Read, int, int, int]]] = {}
        column = 0
        for tap in taps:
            buffer = self.layout.buffers[tap.value]
            for start, stop in tap.channels:
                pieces.setdefault((buffer.external, buffer.column_stride), []).append((tap, start, stop, column))
                column += stop - start
        columns: list[int] = []
        total = reduced = 0
        for (external, stride), group in sorted(pieces.items(), key=lambda item: item[0]):
            segments: list[list[int]] = []
            where: tuple[int, int, int] | None = None  # where the last segment ends
            for tap, start, stop, first in group:
                here = (tap.value, tap.dy, tap.dx * stride + start)
                if where == here:
                    segments[-1][4] += stop - start
                else:
                    segments.append([tap.value, tap.dy, tap.dx, start, stop - start])
                where = (tap.value, tap.dy, tap.dx * stride + stop)
                columns += range(first, first + stop - start)
            before = total
            for value, dy, dx, start, length in segments:
                done = 0
                while done < length:
                    cut = min(length - done, self.segment - reduced % self.segment)
                    self.place(value, dy, dx, start + done, cut)
                    done, reduced, total = done + cut, reduced + cut, total + 1
            self.groups.append([before, total, stride, external])
            record["group_count"] += 1
            record["arena_groups"] += external < 0
        return columns, total

    def cell(self, record: dict[str, int], cell: Cell) -> None:
        units = self.program.values[cell.value].channels
        for value in (cell.value, cell.state, cell.memory):
            self.place(value, 0, 0, 0)
        self.place(cell.memory, cell.previous.dy, cell.previous.dx, 0)
        self.place(cell.gates, 0, 0, 0)
        self.run_of(cell.channels, [])
        record |= {"operands": 4, "number": units}


def _split(instruction: Instruction) -> list[Instruction]:
    """A sum of more terms than a record has room for, as several."""
    if isinstance(instruction, Scan):
        return [replace(instruction, body=tuple(p for part in instruction.body for p in _split(part)))]  # type: ignore[misc]
    if not isinstance(instruction, Affine) or len(instruction.terms) <= _OPERANDS:
        return [instruction]
    first = replace(
        instruction, taps=(), weight=instruction.weight[:, :0], bias=None, terms=instruction.terms[:_OPERANDS],
        activation=None,
    )  # fmt: skip
    return [first, *_split(replace(instruction, terms=instruction.terms[_OPERANDS:], accumulate=True))]
