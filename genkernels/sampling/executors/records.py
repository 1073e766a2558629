"""Records of csrc/sampler_records.h, field by field, as Python makes them; they cross the border by the names of their
fields, so that one that is missing or unknown there is an error with its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class SizesRecord:
    height: int
    width: int
    grid_width: int
    colours: int
    levels: int
    channels: int
    predictions: int
    components: int
    image_floats: int
    table: int


@dataclass
class BufferRecord:
    """Where a value lies; ``first_column`` is the first one kept, ``external`` the number of a constant map, or -1."""

    offset: int
    rows: int
    row_stride: int
    column_stride: int
    first_column: int
    columns: int
    channels: int
    outside: int = -1
    external: int = -1


@dataclass
class VectorRecord:
    offset: int
    length: int


@dataclass
class PlaceRecord:
    value: int
    dy: int
    dx: int
    channel: int
    length: int = 0


@dataclass
class GroupRecord:
    first: int
    last: int
    column_stride: int
    external: int


@dataclass
class SpanRecord:
    at: int
    length: int
    channel: int
    operand: Sequence[int]
    step: Sequence[int]


@dataclass
class InstructionRecord:
    """``kind`` and ``function`` are names; what an instruction has no use for stays 0."""

    kind: str
    places: int
    groups: int
    spans: int
    first_row: int = 0
    first_column: int = 0
    last_column: int = 0
    function: str = "copy"
    parameters: int = 0
    accumulate: int = 0
    operands: int = 0
    segments: int = 0
    group_count: int = 0
    arena_groups: int = 0
    span_count: int = 0
    rows: int = 0
    reductions: int = 0
    weight: int = 0
    bias: int = 0
    body: int = 0
    count: int = 0
    number: int = 0


@dataclass
class PhaseRecord:
    first: int
    last: int


@dataclass
class Records:
    """A whole program; what is an index counts the elements of a list here, or of the plan's floats."""

    sizes: SizesRecord
    buffers: list[BufferRecord]
    vectors: list[VectorRecord]
    places: list[PlaceRecord]
    instructions: list[InstructionRecord]
    groups: list[GroupRecord]
    spans: list[SpanRecord]
    phases: list[PhaseRecord]

    def by_name(self) -> dict[str, Any]:
        """As the native plans take them: lists by name, records as dicts of their fields."""
        lists = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "sizes"}
        return {"sizes": vars(self.sizes)} | {name: [vars(one) for one in made] for name, made in lists.items()}
