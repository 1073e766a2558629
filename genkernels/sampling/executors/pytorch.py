"""PyTorch executor of sampling programs: works in every dtype and on every device, and is the oracle.

Every value is kept for the whole image, with a margin that holds what it reads as outside; a row instruction is one
matrix product over the columns of the row and the images, a step's one over the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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
    span_count,
    span_indices,
)
from ..program.program import Program
from .run_arguments import Run
from .stops import Stop, drawn_together, known_everywhere


@dataclass(eq=False)
class _Map:
    """A value in memory: [N, top + height, left + grid_width + right, channels], or a vector [N, channels]."""

    data: Tensor
    top: int
    left: int

    def at(self, y: int, columns: slice, channels: slice | Tensor) -> Tensor:
        """[N, columns, channels]"""
        if self.data.dim() == 2:
            return self.data[:, None, channels]
        moved = slice(columns.start + self.left, columns.stop + self.left)
        return self.data[:, y + self.top, moved, channels]


def run(program: Program, run: Run) -> None:
    """Draws the open sub-pixels of ``run.images`` in place."""
    with _one_dtype(program):
        Execution(program, run).all_rows()


def walk(program: Program, images: Tensor, known: Tensor) -> Iterator[Stop]:
    """Goes through images, stopping before every draw of what is not known in all of them; as the CPU's executor does.

    Args:
        images: int32 [n, C, H, W]: the levels at a stop must stand there when the walk goes on.
        known: bool [n, C, H, W].
    """
    _, colours, height, width = images.shape
    run = Run(
        images, torch.zeros_like(known), torch.zeros(images.shape), 1.0, None, (height - 1, width - 1, colours - 1),
        lambda y: None,
    )  # fmt: skip
    stops = Execution(program, run).stops(known_everywhere(known))
    while True:
        with _one_dtype(program):  # not while the caller works
            stop = next(stops, None)
        if stop is None:
            return
        yield stop


def _one_dtype(program: Program) -> torch.autocast:
    """A program's numbers have one, whatever autocast says."""
    return torch.autocast(program.table.device.type, enabled=False)


class Execution:
    """A run under way, row by row."""

    def __init__(self, program: Program, run: Run) -> None:
        self.program, self.run = program, run
        self.images = run.images.shape[0]
        self.maps = [self._map(k) for k in range(len(program.values))]
        self.channels: dict[Spans, slice | Tensor] = {}
        self.aligned: dict[tuple[Spans, Spans], Spans] = {}
        # Known levels are put in when their turn comes, so that nothing can look ahead.
        self.known = program.table[run.images.long()]
        self.undrawable = torch.full((self.images,), -1, device=program.table.device)  # a sub-pixel of each image

    def _map(self, k: int) -> _Map:
        value, program = self.program.values[k], self.program
        if value.constant is not None and value.constant.dim() == 2:
            return _Map(value.constant.expand(self.images, -1), 0, 0)
        left = max(0, value.columns_left - value.columns[0])
        right = max(0, value.columns[1] + value.columns_right - program.grid_width)
        top = value.rows_back
        shape = (self.images, top + program.height, left + program.grid_width + right, value.channels)
        data = program.table.new_zeros(shape)
        if value.outside is not None:
            data[:] = value.outside
        if value.constant is not None:
            inner = data[:, top:, left : left + program.grid_width]
            inner.copy_(value.constant.permute(0, 2, 3, 1).expand_as(inner))
        return _Map(data, top, left)

    def all_rows(self) -> None:
        for y in range(self.run.last[0] + 1):
            self.row(y)
            wrong = self.undrawable[self.undrawable >= 0]  # once for a row: on a GPU asking means waiting
            if len(wrong):
                raise self.run.unsound(self.program.distribution, int(wrong[0]))
            self.run.row_done(y)

    def row(self, y: int) -> None:
        program, (last_row, last_column, last_colour) = self.program, self.run.last
        for instruction in program.row:
            self._in_row(instruction, y)
        width = last_column + 1 if y == last_row else program.grid_width
        for x in range(width):
            for step, instructions in enumerate(program.steps):
                if (y, x, step) > (last_row, last_column, last_colour):
                    break
                for instruction in instructions:
                    self._at_pixel(instruction, y, x)

    def stops(self, passed: Tensor) -> Iterator[Stop]:
        """Every place but those that are ``passed``, [C, H, W], whose levels stand in the images already."""
        program, together = self.program, drawn_together(self.program)
        for y in range(program.height):
            for instruction in program.row:
                self._in_row(instruction, y)
            for x in range(program.grid_width):
                for instruction in (i for step in program.steps for i in step):
                    if not isinstance(instruction, Draw):
                        self._at_pixel(instruction, y, x)
                    elif x < program.width:
                        colour = instruction.colour
                        wanted = not bool(passed[:, y, x].all() if together else passed[colour, y, x])
                        if wanted and (colour == 0 or not together):
                            parameters = self._predictions(instruction, y, x, together)
                            yield Stop(y, x, None if together else colour, parameters)
                        self._show(colour, y, x)

    def _predictions(self, instruction: Draw, y: int, x: int, every: bool) -> np.ndarray:
        distribution = self.program.distribution
        own = self.maps[instruction.value].at(y, slice(x, x + 1), slice(None))[:, 0]
        own = own.unflatten(1, (distribution.predictions, distribution.channels))
        chosen = own if every else own[:, distribution.prediction_of(instruction.colour)]
        return chosen.float().cpu().numpy()

    def _show(self, colour: int, y: int, x: int) -> None:
        """Has the model see the level that stands in the images."""
        image = self.maps[0]
        levels = self.run.images[:, colour, y, x].long().to(self.program.table.device)
        image.data[:, y + image.top, x + image.left, colour] = self.program.table[levels]

    def _in_row(self, instruction: Instruction, y: int) -> None:
        if isinstance(instruction, Scan):
            value = self.program.values[instruction.body[-1].value]
            for x in reversed(range(*value.columns)):
                for part in instruction.body:
                    self._apply(part, y, slice(x, x + 1))
        else:
            self._apply(instruction, y, slice(*self.program.values[instruction.value].columns))

    def _at_pixel(self, instruction: Instruction, y: int, x: int) -> None:
        if isinstance(instruction, Draw):
            if x < self.program.width:
                self._draw(instruction, y, x)
            return
        assert not isinstance(instruction, Scan)
        start, stop = self.program.values[instruction.value].columns
        if start <= x < stop:
            self._apply(instruction, y, slice(x, x + 1))

    def _apply(self, instruction: Instruction, y: int, columns: slice) -> None:
        assert isinstance(instruction, (Affine, Pointwise, Lookup, Across, Attention, Cell))
        if y < self.program.values[instruction.value].first_row:
            return
        if isinstance(instruction, Affine):
            self._affine(instruction, y, columns)
        elif isinstance(instruction, Lookup):
            numbers = self._read(instruction.source, y, columns)[..., 0].long()
            rows = instruction.table[numbers.clamp(0, len(instruction.table) - 1)]
            self._write(instruction.value, y, columns, instruction.channels, rows)
        elif isinstance(instruction, Pointwise):
            operands = [self._operand(read, instruction.channels, y, columns) for read in instruction.operands]
            result = evaluate(instruction.function, *operands)
            self._write(instruction.value, y, columns, instruction.channels, result)
        elif isinstance(instruction, Attention):
            self._attention(instruction, y, columns)
        elif isinstance(instruction, Across):
            groups = self._read(instruction.operand, y, columns).unflatten(2, (len(instruction.channels), -1))
            result = evaluate_across(instruction.function, groups).flatten(2)
            self._write(instruction.value, y, columns, instruction.channels, result)
        else:
            self._cell(instruction, y, columns)

    def _attention(self, instruction: Attention, y: int, columns: slice) -> None:
        heads, width = instruction.heads, self.program.width
        queries = self._read(instruction.query, y, columns).unflatten(2, (heads, -1))  # [N, columns, heads, d]
        first, last = y * width + columns.start, y * width + columns.stop
        seen = instruction.seen[:, first:last]  # [heads or 1, columns, pixels]
        keys, values = (
            self._all_pixels(read, seen.any(0).any(0)).unflatten(2, (heads, -1))
            for read in (instruction.keys, instruction.values)
        )
        scores = torch.einsum("nqhd,nkhd->nhqk", queries, keys) * instruction.scale
        if instruction.shift is not None:
            scores = scores + instruction.shift[:, first:last]
        weights = (
            scores.masked_fill(~seen, -torch.inf).softmax(3).nan_to_num(nan=0.0)
            if bool((~seen.any(2)).any())
            else scores.masked_fill(~seen, -torch.inf).softmax(3)
        )
        result = torch.einsum("nhqk,nkhd->nqhd", weights, values).flatten(2)
        self._write(instruction.value, y, columns, instruction.channels, result)

    def _all_pixels(self, read: Read, seen: Tensor) -> Tensor:
        """[N, pixels, channels] of the image's pixels, zero for those that are not seen."""
        of_value, program = self.maps[read.value], self.program
        data = of_value.data[
            :, of_value.top : of_value.top + program.height, of_value.left : of_value.left + program.width
        ]
        pixels = data[..., self._chosen(read.channels)].flatten(1, 2)
        return torch.where(seen[:, None], pixels, 0)

    def _chosen(self, spans: Spans) -> slice | Tensor:
        if len(spans) == 1:
            return slice(*spans[0])
        if spans not in self.channels:
            self.channels[spans] = torch.tensor(span_indices(spans), device=self.program.table.device)
        return self.channels[spans]

    def _read(self, read: Read, y: int, columns: slice) -> Tensor:
        moved = slice(columns.start + read.dx, columns.stop + read.dx)
        return self.maps[read.value].at(y + read.dy, moved, self._chosen(read.channels))

    def _operand(self, read: Read, own: Spans, y: int, columns: slice) -> Tensor:
        """[N, columns, channels of the result]: a span of one channel is repeated."""
        if span_count(read.channels) == span_count(own):
            return self._read(read, y, columns)
        key = own, read.channels
        if key not in self.aligned:
            self.aligned[key] = tuple(
                span for (a, b), (start, stop) in zip(own, read.channels, strict=True)
                for span in ([(start, stop)] * ((b - a) // (stop - start)))
            )  # fmt: skip
        return self._read(replace(read, channels=self.aligned[key]), y, columns)

    def _write(self, value: int, y: int, columns: slice, channels: Spans, result: Tensor) -> None:
        where = self.maps[value]
        moved = slice(columns.start + where.left, columns.stop + where.left)
        where.data[:, y + where.top, moved, self._chosen(channels)] = result

    def _affine(self, instruction: Affine, y: int, columns: slice) -> None:
        own = Read(instruction.value, 0, 0, instruction.channels)
        width = columns.stop - columns.start
        parts = [self._read(read, y, columns).expand(self.images, width, -1) for read in instruction.taps]
        if parts:
            result = F.linear(torch.cat(parts, 2), instruction.weight, instruction.bias)
        else:
            result = self.program.table.new_zeros(self.images, width, instruction.weight.shape[0])
            if instruction.bias is not None:
                result = result + instruction.bias
        for read in instruction.terms + ((own,) if instruction.accumulate else ()):
            result = result + self._operand(read, instruction.channels, y, columns)
        if instruction.activation is not None:
            result = evaluate(instruction.activation, result)
        self._write(instruction.value, y, columns, instruction.channels, result)

    def _cell(self, cell: Cell, y: int, columns: slice) -> None:
        units = self.program.values[cell.value].channels
        blocks = [tuple((a + k * units, b + k * units) for a, b in cell.channels) for k in range(4)]
        i, f, g, o = (self._read(Read(cell.gates, 0, 0, block), y, columns) for block in blocks)
        memory = f.sigmoid() * self._read(cell.previous, y, columns) + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * memory.tanh()
        self._write(cell.memory, y, columns, cell.channels, memory)
        for value in {cell.value, cell.state}:
            self._write(value, y, columns, cell.channels, hidden)

    def _draw(self, instruction: Draw, y: int, x: int) -> None:
        run, colour, distribution = self.run, instruction.colour, self.program.distribution
        prediction = distribution.prediction_of(colour)
        spans = ((prediction * distribution.channels, (prediction + 1) * distribution.channels),)
        own = self._read(Read(instruction.value, 0, 0, spans), y, slice(x, x + 1))[:, 0]
        if run.logits is not None:
            run.logits[:, :, prediction, y, x] = own
        free = run.free[:, colour, y, x]
        shown = self.known[:, colour, y, x]
        if free.is_cuda or bool(free.any()):  # on a GPU asking would mean waiting
            earlier = run.images[:, :colour, y, x]
            drawn = distribution.draw(own, earlier, run.uniforms[:, colour, y, x], run.temperature, run.top_k)
            here = run.images[:, colour, y, x]
            self._note_undrawable(free & ~distribution.is_sound(own), colour, y, x)
            here.copy_(torch.where(free, drawn.to(here.dtype), here))
            shown = torch.where(free, self.program.table[drawn], shown)
        image = self.maps[0]
        image.data[:, y + image.top, x + image.left, colour] = shown

    def _note_undrawable(self, wrong: Tensor, colour: int, y: int, x: int) -> None:
        _, colours, height, width = self.run.images.shape
        own = (colour * height + y) * width + x
        numbers = torch.arange(self.images, device=wrong.device) * (colours * height * width) + own
        self.undrawable = torch.where(wrong & (self.undrawable < 0), numbers, self.undrawable)


_BINARY: dict[str, Any] = {"power": torch.pow, "less": torch.lt, "less_equal": torch.le, "equal": torch.eq}
_BINARY |= {"unequal": torch.ne, "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}


def evaluate(function: Function, a: Tensor, b: Tensor | None = None, c: Tensor | None = None) -> Tensor:
    """A function of UNARY, BINARY or TERNARY."""
    name, p = function.name, function.parameters
    if b is not None and c is not None:
        return torch.where(a != 0, b, c) if name == "where" else a * b + c
    if b is not None:
        if name == "gate":
            return a.tanh() * b.sigmoid()
        function_of_two = _BINARY.get(name) or getattr(torch, name)
        return function_of_two(a, b).to(a.dtype)
    if name == "copy":
        return a
    if name == "silu":
        return F.silu(a)
    if name in ("gelu", "gelu_tanh"):
        return F.gelu(a, approximate="tanh" if name == "gelu_tanh" else "none")
    if name == "elu":
        return torch.ops.aten.elu(a, *p)
    if name == "leaky_relu":
        return F.leaky_relu(a, p[0])
    if name == "softplus":
        return F.softplus(a, *p)
    if name == "clamp":
        return a.clamp(*p)
    if name == "scale":
        return a * p[0] + p[1]
    result: Tensor = getattr(torch, name)(a)
    return result


def evaluate_across(function: Function, x: Tensor) -> Tensor:
    """A function of ACROSS or REDUCE on the last dimension, which stays there."""
    name, p = function.name, function.parameters
    if name == "softmax":
        return x.softmax(-1)
    if name == "log_softmax":
        return x.log_softmax(-1)
    if name == "standardise":
        return F.layer_norm(x, x.shape[-1:], eps=p[0])
    if name == "variance":
        return x.var(-1, correction=p[0], keepdim=True)
    if name == "max":
        return x.amax(-1, keepdim=True)
    if name == "logsumexp":
        return x.logsumexp(-1, keepdim=True)
    return x.sum(-1, keepdim=True) if name == "sum" else x.mean(-1, keepdim=True)


def bytes_per_image(program: Program) -> int:
    """Bytes of memory for an image of the batch, margins left out."""
    channels = sum(value.channels for value in program.values)
    return channels * program.height * program.grid_width * program.table.element_size()
