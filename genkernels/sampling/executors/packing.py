"""Packing of a sampling program into flat records for the native executors; each executor packs weights in its own way.

Records say where every value lies, and what every instruction reads and writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..program.instructions import (
    Across,
    Affine,
    Attention,
    Cell,
    Draw,
    Function,
    Instruction,
    Lookup,
    Pointwise,
    Read,
    Scan,
    Spans,
    Value,
    span_count,
)
from ..program.program import Program
from .layout import ALIGN, layout, up
from .records import (
    GroupRecord,
    InstructionRecord,
    PhaseRecord,
    PlaceRecord,
    Records,
    SizesRecord,
    SpanRecord,
    VectorRecord,
)

_OPERANDS = 4  # of a record
_KINDS: dict[type, str] = {
    Affine: "affine",
    Pointwise: "pointwise",
    Across: "across",
    Attention: "attention",
    Lookup: "lookup",
    Cell: "cell",
    Scan: "scan",
}


class Packed(NamedTuple):
    """Where a weight and its bias start; ``bias`` is 0 where it is packed with the weight."""

    weight: int
    bias: int = 0


class Packer:
    """Makes the records of a program.

    Attributes:
        segment: reduction steps of a segment at most; one ends where their number since the first is a multiple of it.
        panel: rows of a weight beyond which no span of channels reaches, or None.
        records: of the whole program.
        floats: what the records point into, part by part.
        whole_rows: whether the instruction at hand is run on all columns of a row at once.
    """

    segment: int
    panel: int | None = None

    def __init__(self, program: Program) -> None:
        self.program = program
        self.layout = layout(program)
        self.floats: list[Tensor] = []
        self.float_count = 0
        self.places: list[PlaceRecord] = []
        self.groups: list[GroupRecord] = []
        self.spans: list[SpanRecord] = []
        self.instructions: list[InstructionRecord] = []
        self.bodies: list[InstructionRecord] = []
        self.whole_rows = False
        self.records = self._records()

    def pack(self, weight: Tensor, bias: Tensor | None) -> Packed:
        """Keeps [rows, reductions] and [rows]."""
        raise NotImplementedError

    def _records(self) -> Records:
        program, where = self.program, self.layout
        phases = [[part for i in phase for part in _split(i)] for phase in (program.row, *program.steps)]
        ends, total = [], 0
        for phase in phases:
            ends.append(PhaseRecord(total, total + len(phase)))
            total += len(phase)
        self.body_start = total
        for number, phase in enumerate(phases):
            self.whole_rows = number == 0
            self.instructions += [self.instruction(i) for i in phase]
        sizes = SizesRecord(
            height=program.height,
            width=program.width,
            grid_width=program.grid_width,
            colours=program.colours,
            levels=program.levels,
            channels=program.distribution.channels,
            predictions=program.distribution.predictions,
            components=program.distribution.components,
            image_floats=where.floats,
            table=self.keep(program.table),
        )
        return Records(
            sizes=sizes,
            buffers=[
                buffer if value.outside is None else replace(buffer, outside=self.keep(value.outside))
                for value, buffer in zip(program.values, where.buffers, strict=True)
            ],
            vectors=[VectorRecord(where.buffers[k].offset, program.values[k].channels) for k in where.vectors],
            places=self.places,
            instructions=self.instructions + self.bodies,
            groups=self.groups,
            spans=self.spans,
            phases=ends,
        )

    def keep(self, numbers: Tensor) -> int:
        """Puts floats into the plan; returns where."""
        flat = numbers.detach().reshape(-1).float().cpu()
        filled = torch.zeros(up(flat.numel(), ALIGN))
        filled[: flat.numel()] = flat
        self.floats.append(filled)
        self.float_count += filled.numel()
        return self.float_count - filled.numel()

    def place(self, value: int, dy: int = 0, dx: int = 0, channel: int = 0) -> None:
        self.places.append(PlaceRecord(value, dy, dx, channel))

    def instruction(self, instruction: Instruction) -> InstructionRecord:
        record = InstructionRecord(
            kind=self.program.distribution.kind if isinstance(instruction, Draw) else _KINDS[type(instruction)],
            places=len(self.places),
            groups=len(self.groups),
            spans=len(self.spans),
        )
        if isinstance(instruction, Scan):
            self.scan(record, instruction)
        elif isinstance(instruction, Draw):
            self.place(0, channel=instruction.colour)
            distribution = self.program.distribution
            first = distribution.prediction_of(instruction.colour) * distribution.channels
            self.place(instruction.value, channel=first)
            record.operands, record.number, record.last_column = 1, instruction.colour, self.program.width
        else:
            self.support(record, self.program.values[instruction.value])
            if isinstance(instruction, Affine):
                self.affine(record, instruction)
            elif isinstance(instruction, Pointwise):
                self.place(instruction.value)
                self.operands(record, instruction.operands)
                self.span(instruction.channels, [read.channels for read in instruction.operands])
                self.function(record, instruction.function)
            elif isinstance(instruction, Lookup):
                self.lookup(record, instruction)
            elif isinstance(instruction, Across):
                self.across(record, instruction)
            elif isinstance(instruction, Attention):
                self.attention(record, instruction)
            else:
                self.cell(record, instruction)
        record.span_count = len(self.spans) - record.spans
        return record

    def scan(self, record: InstructionRecord, scan: Scan) -> None:
        self.whole_rows = False
        body = [self.instruction(part) for part in scan.body]
        self.whole_rows = True
        record.body, record.count = self.body_start + len(self.bodies), len(body)
        self.bodies += body
        self.support(record, self.program.values[scan.body[-1].value])
        record.first_row = min(self.program.values[part.value].first_row for part in scan.body)

    def support(self, record: InstructionRecord, value: Value) -> None:
        record.first_row, (record.first_column, record.last_column) = value.first_row, value.columns

    def function(self, record: InstructionRecord, function: Function | None) -> None:
        if function is not None:
            record.function = function.name
            record.parameters = self.keep(torch.tensor([*function.parameters, 0.0], dtype=torch.float64))

    def operands(self, record: InstructionRecord, reads: Sequence[Read]) -> None:
        for read in reads:
            self.place(read.value, read.dy, read.dx)
        record.operands = len(reads)

    def span(self, channels: Spans, operands: Sequence[Spans], panel: int | None = None) -> None:
        """Spans of channels; cut where a panel ends."""
        at = 0
        for number, (start, stop) in enumerate(channels):
            own = [spans[number] for spans in operands]
            step = [int(last - first == stop - start) for first, last in own]
            done = 0
            while start + done < stop:
                length = stop - start - done
                if panel is not None:
                    length = min(length, panel - at % panel)
                operand = [first + done * by for (first, _), by in zip(own, step, strict=True)]
                self.spans.append(SpanRecord(at, length, start + done, operand, step))
                at, done = at + length, done + length

    def across(self, record: InstructionRecord, across: Across) -> None:
        self.place(across.value)
        self.operands(record, [across.operand])
        at = 0
        for (channel, _), (start, stop) in zip(across.channels, across.operand.channels, strict=True):
            self.spans.append(SpanRecord(at, stop - start, channel, [start], [1]))
            at += stop - start
        self.function(record, across.function)

    def affine(self, record: InstructionRecord, affine: Affine) -> None:
        self.place(affine.value)
        self.operands(record, affine.terms)
        columns = self.taps(record, affine.taps)
        weight = affine.weight[:, columns].cpu()
        self.span(affine.channels, [term.channels for term in affine.terms], self.panel)
        self.function(record, affine.activation)
        record.rows, record.reductions = weight.shape
        record.accumulate = int(affine.accumulate)
        record.weight, record.bias = self.pack(weight, None if affine.bias is None else affine.bias.cpu())

    def taps(self, record: InstructionRecord, taps: Sequence[Read]) -> list[int]:
        """Adds the segments, grouped by how they move along the row, those that lie side by side joined.

        Returns the columns of the weight in their order.
        """
        pieces: dict[tuple[int, int], list[tuple[Read, int, int, int]]] = {}
        column = 0
        for tap in taps:
            buffer = self.layout.buffers[tap.value]
            for start, stop in tap.channels:
                pieces.setdefault((buffer.external, buffer.column_stride), []).append((tap, start, stop, column))
                column += stop - start
        columns: list[int] = []
        reduced = 0
        for (external, stride), group in sorted(pieces.items(), key=lambda item: item[0]):
            segments: list[PlaceRecord] = []
            end: tuple[int, int, int] | None = None  # of the last segment
            for tap, start, stop, first in group:
                here = (tap.value, tap.dy, tap.dx * stride + start)
                if end == here:
                    segments[-1].length += stop - start
                else:
                    segments.append(PlaceRecord(tap.value, tap.dy, tap.dx, start, stop - start))
                end = (tap.value, tap.dy, tap.dx * stride + stop)
                columns += range(first, first + stop - start)
            before = record.segments
            for whole in segments:
                done = 0
                while done < whole.length:
                    cut = min(whole.length - done, self.segment - reduced % self.segment)
                    self.places.append(replace(whole, channel=whole.channel + done, length=cut))
                    done, reduced = done + cut, reduced + cut
                    record.segments += 1
            self.groups.append(GroupRecord(before, record.segments, stride, external))
            record.group_count += 1
            record.arena_groups += external < 0
        return columns

    def lookup(self, record: InstructionRecord, lookup: Lookup) -> None:
        ((channel, _),) = lookup.source.channels
        self.place(lookup.value, channel=lookup.channels[0][0])
        self.place(lookup.source.value, lookup.source.dy, lookup.source.dx, channel)
        record.operands = 1
        record.number, record.rows = lookup.table.shape
        record.weight = self.keep(lookup.table)

    def attention(self, record: InstructionRecord, attention: Attention) -> None:
        self.place(attention.value, channel=attention.channels[0][0])
        for read in (attention.query, attention.keys, attention.values):
            ((start, _),) = read.channels
            self.place(read.value, channel=start)
        record.operands, record.number = 3, attention.heads
        record.rows, record.reductions = span_count(attention.query.channels), span_count(attention.values.channels)
        record.parameters = self.keep(torch.tensor([attention.scale, 0.0], dtype=torch.float64))
        pixels = attention.seen.shape[-1]
        earlier = torch.ones(pixels, pixels, dtype=torch.bool, device=attention.seen.device).tril(-1)
        if attention.shift is None and bool((attention.seen == earlier).all()):
            record.function = "less"
        elif attention.shift is None and bool(
            (
                attention.seen == earlier.tril().logical_or(torch.eye(pixels, dtype=torch.bool, device=earlier.device))
            ).all()
        ):
            record.function = "less_equal"
        else:
            shift = 0.0 if attention.shift is None else attention.shift
            table = torch.where(attention.seen, shift, -torch.inf)
            record.weight, record.count = self.keep(table), len(table)

    def cell(self, record: InstructionRecord, cell: Cell) -> None:
        for value in (cell.value, cell.state, cell.memory):
            self.place(value)
        self.place(cell.memory, cell.previous.dy, cell.previous.dx)
        self.place(cell.gates)
        self.span(cell.channels, [])
        record.operands, record.number = 4, self.program.values[cell.value].channels


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
