"""The instructions of a program as text, a line for each."""

from __future__ import annotations

from collections.abc import Sequence

from .instructions import (
    ROW,
    Across,
    Affine,
    Attention,
    Cell,
    Draw,
    Instruction,
    Lookup,
    Pointwise,
    Read,
    Scan,
    Spans,
    Value,
    span_count,
)


def instruction_line(values: Sequence[Value], instruction: Instruction) -> str:
    phase = "row" if instruction.phase == ROW else f"step {instruction.phase}"
    if isinstance(instruction, Scan):
        inner = "; ".join(_text(values, part) for part in instruction.body)
        return f"  {phase:7}{instruction.name:32} along the row: {inner}"
    return f"  {phase:7}{instruction.name:32} {_text(values, instruction)}"


def _text(values: Sequence[Value], instruction: Instruction) -> str:
    if isinstance(instruction, Draw):
        return f"colour {instruction.colour} from v{instruction.value}"
    assert not isinstance(instruction, Scan)
    target = f"v{instruction.value}{_channels(values, instruction.value, instruction.channels)}"
    if isinstance(instruction, Cell):
        return f"{target} = cell(v{instruction.gates}, {_read(values, instruction.previous)})"
    if isinstance(instruction, Attention):
        operands = ", ".join(_read(values, read) for read in (instruction.query, instruction.keys, instruction.values))
        return f"{target} = attention({operands}) of {instruction.heads} heads"
    if isinstance(instruction, Lookup):
        rows, columns = instruction.table.shape
        return f"{target} = [{rows} x {columns}] at {_read(values, instruction.source)}"
    if isinstance(instruction, Pointwise):
        operands = ", ".join(_read(values, read) for read in instruction.operands)
        return f"{target} = {instruction.function}({operands})"
    if isinstance(instruction, Across):
        groups = instruction.operand.channels
        each = f"{len(groups)} x {groups[0][1] - groups[0][0]} channels"
        return f"{target} = {instruction.function}({each} of {_read(values, instruction.operand)})"
    terms = [_read(values, read) for read in instruction.terms]
    if instruction.weight.shape[1]:
        rows, columns = instruction.weight.shape
        terms.insert(0, f"[{rows} x {columns}] of {_taps(values, instruction)}")
    if instruction.bias is not None:
        terms.append("bias")
    text = f"{target} {'+=' if instruction.accumulate else '='} {' + '.join(terms) or '0'}"
    return text + (f", {instruction.activation}" if instruction.activation else "")


def _taps(values: Sequence[Value], instruction: Affine) -> str:
    """The taps, those that read the same channels together."""
    groups: dict[tuple[int, Spans], list[str]] = {}
    for tap in instruction.taps:
        groups.setdefault((tap.value, tap.channels), []).append(f"({tap.dy},{tap.dx})")
    shown = []
    for (value, channels), places in groups.items():
        where = " ".join(places) if len(places) < 9 else f"{len(places)} taps"
        shown.append(f"v{value}{_channels(values, value, channels)} at {where}")
    return ", ".join(shown)


def _read(values: Sequence[Value], read: Read) -> str:
    place = f"({read.dy},{read.dx})" if (read.dy, read.dx) != (0, 0) else ""
    return f"v{read.value}{_channels(values, read.value, read.channels)}{place}"


def _channels(values: Sequence[Value], value: int, spans: Spans) -> str:
    if span_count(spans) == values[value].channels and len(spans) == 1:
        return ""
    shown = [f"{a}:{b}" if b > a + 1 else f"{a}" for a, b in spans[:4]]
    return f"[{' '.join(shown)}{' ...' if len(spans) > 4 else ''}]"
