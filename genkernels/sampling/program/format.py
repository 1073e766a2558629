"""A program as text, one line for each instruction."""

from __future__ import annotations

from .instructions import ROW, Affine, Cell, Draw, Instruction, Pointwise, Program, Read, Scan, Spans, span_count


def program_text(program: Program) -> str:
    """The whole program."""
    image = f"{program.height} x {program.width} x {program.colours}"
    lines = [
        f"sampling program: images {image}, {program.levels} levels, {program.grid_width} columns, "
        f"{len(program.values)} values, {program.multiplications():,} multiply-adds an image"
    ]
    lines += ["before each row:"] + [_line(program, i) for i in program.row]
    for step, instructions in enumerate(program.steps):
        when = "before" if step < program.colours else "after"
        lines += [f"at each pixel, {when} colour {min(step, program.colours - 1)}:"]
        lines += [_line(program, i) for i in instructions]
    return "\n".join(lines)


def _line(program: Program, instruction: Instruction) -> str:
    phase = "row" if instruction.phase == ROW else f"step {instruction.phase}"
    if isinstance(instruction, Scan):
        inner = "; ".join(_text(program, part) for part in instruction.body)
        return f"  {phase:7}{instruction.name:32} along the row: {inner}"
    return f"  {phase:7}{instruction.name:32} {_text(program, instruction)}"


def _text(program: Program, instruction: Instruction) -> str:
    if isinstance(instruction, Draw):
        return f"colour {instruction.colour} from v{instruction.value}"
    assert not isinstance(instruction, Scan)
    target = f"v{instruction.value}{_channels(program, instruction.value, instruction.channels)}"
    if isinstance(instruction, Cell):
        return f"{target} = cell(v{instruction.gates}, {_read(program, instruction.previous)})"
    if isinstance(instruction, Pointwise):
        operands = ", ".join(_read(program, read) for read in instruction.operands)
        return f"{target} = {instruction.function}({operands})"
    terms = [_read(program, read) for read in instruction.terms]
    if instruction.weight.shape[1]:
        rows, columns = instruction.weight.shape
        terms.insert(0, f"[{rows} x {columns}] of {_taps(program, instruction)}")
    if instruction.bias is not None:
        terms.append("bias")
    text = f"{target} {'+=' if instruction.accumulate else '='} {' + '.join(terms) or '0'}"
    return text + (f", {instruction.activation}" if instruction.activation else "")


def _taps(program: Program, instruction: Affine) -> str:
    """The taps, those that read the same channels together."""
    groups: dict[tuple[int, Spans], list[str]] = {}
    for tap in instruction.taps:
        groups.setdefault((tap.value, tap.channels), []).append(f"({tap.dy},{tap.dx})")
    shown = []
    for (value, channels), places in groups.items():
        where = " ".join(places) if len(places) < 9 else f"{len(places)} taps"
        shown.append(f"v{value}{_channels(program, value, channels)} at {where}")
    return ", ".join(shown)


def _read(program: Program, read: Read) -> str:
    place = f"({read.dy},{read.dx})" if (read.dy, read.dx) != (0, 0) else ""
    return f"v{read.value}{_channels(program, read.value, read.channels)}{place}"


def _channels(program: Program, value: int, spans: Spans) -> str:
    if span_count(spans) == program.values[value].channels and len(spans) == 1:
        return ""
    shown = [f"{a}:{b}" if b > a + 1 else f"{a}" for a, b in spans[:4]]
    return f"[{' '.join(shown)}{' ...' if len(spans) > 4 else ''}]"
