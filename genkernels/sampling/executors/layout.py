"""Memory of an image in the native executors: where every value of a program lies, and for how many rows it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..program.instructions import Across, Affine, Attention, Cell, Instruction, Lookup, Pointwise, Scan, reads_of
from ..program.program import Program
from .records import BufferRecord

ALIGN = 16  # floats of a cache line
_PADDING = 64  # floats behind a map: loads of whole vectors may reach beyond it


@dataclass(frozen=True)
class Layout:
    """The memory of an image: ``floats`` for each, the constant maps apart."""

    buffers: list[BufferRecord]
    floats: int
    vectors: list[int]
    maps: list[int]


def layout(program: Program) -> Layout:
    """Rings of rows for what is read later; one pixel for what is written and read in the steps of a pixel alone."""
    lasting = _lasting(program)
    buffers: list[BufferRecord] = []
    vectors: list[int] = []
    maps: list[int] = []
    end = 0
    for value in program.values:
        channels, first = value.channels, value.columns[0] - value.columns_left
        columns = value.columns[1] + value.columns_right - first
        rows = value.rows_back + 1
        if value.constant is not None and value.constant.dim() == 4:
            first = min(0, first)
            columns = max(program.grid_width, value.columns[1] + value.columns_right) - first
            rows = program.height + value.rows_back
            buffers.append(_rows(0, rows, first, columns, channels, external=len(maps)))
            maps.append(value.index)
            continue
        if value.constant is not None:
            vectors.append(value.index)
        if value.constant is not None or value.index not in lasting:
            buffers.append(_pixel(end, channels))
            end += channels
        else:
            buffers.append(_rows(end, rows, first, columns, channels))
            end += rows * columns * channels
        end = up(end, ALIGN)
    # An odd number of cache lines: what several images read at once then falls into different sets of the cache.
    return Layout(buffers, up(end + ALIGN, ALIGN) | ALIGN, vectors, maps)


def _rows(offset: int, rows: int, first: int, columns: int, channels: int, external: int = -1) -> BufferRecord:
    """[rows, columns, channels]"""
    return BufferRecord(
        offset=offset,
        rows=rows,
        row_stride=columns * channels,
        column_stride=channels,
        first_column=first,
        columns=columns,
        channels=channels,
        external=external,
    )


def _pixel(offset: int, channels: int) -> BufferRecord:
    """[channels], the same for all pixels"""
    return BufferRecord(
        offset=offset, rows=1, row_stride=0, column_stride=0, first_column=0, columns=1, channels=channels
    )


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
    for instruction in program.instructions():
        if isinstance(instruction, Attention):  # at every pixel, in an image of one row too
            kept |= {instruction.keys.value, instruction.values.value}
    for instruction in program.row:
        for part in parts(instruction):
            kept |= {read.value for read in reads_of(part)} | set(_written(part))
    return kept


def parts(instruction: Instruction) -> Sequence[Instruction]:
    return instruction.body if isinstance(instruction, Scan) else (instruction,)


def _written(instruction: Instruction) -> list[int]:
    if isinstance(instruction, Cell):
        return [instruction.value, instruction.state, instruction.memory]
    assert isinstance(instruction, (Affine, Pointwise, Lookup, Across, Attention))
    return [instruction.value]


def up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
