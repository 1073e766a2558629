"""Lowering of the scheduled graph to the program: every node becomes instructions, one for each phase it is part of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..program.instructions import (
    ROW,
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
    reads_of,
    to_spans,
)
from ..program.program import Program
from ..trace.graph import (
    AcrossNode,
    AffineNode,
    AttentionNode,
    ConstantNode,
    ImageNode,
    Link,
    LookupNode,
    LstmNode,
    Node,
    NotTraceable,
    PointNode,
    Tap,
)
from .schedule import Schedule


def lower(scheduled: Schedule, table: Tensor) -> Program:
    """The program of a scheduled graph.

    Args:
        scheduled: see :func:`genkernels.sampling.scheduling.schedule.schedule`.
        table: [levels], the model's input for each level.
    """
    graph = scheduled.graph
    builder = _Builder(scheduled, table)
    for node in graph.nodes:
        if node in scheduled.needed:
            builder.add(node)
    logits = builder.number[graph.logits]
    for colour in range(graph.distribution.colours):
        builder.steps[colour].append(Draw(colour, logits))
    values = tuple(builder.values)
    grid_width = max(graph.width, *(v.columns[1] for v in values))
    for node, index in builder.number.items():
        if isinstance(node, ConstantNode) and not node.is_vector:
            builder.values[index] = replace(values[index], constant=_on_grid(node.tensor, graph.height, grid_width))
    program = Program(
        graph.height, graph.width, grid_width, graph.distribution, table,
        tuple(builder.values), tuple(builder.row), tuple(tuple(step) for step in builder.steps),
    )  # fmt: skip
    return replace(program, values=_with_reach(program))


def _on_grid(image: Tensor, height: int, width: int) -> Tensor:
    result = image.new_zeros(*image.shape[:2], height, width)
    result[..., : image.shape[2], : image.shape[3]] = image[..., :height, :width]
    return result


def _with_reach(program: Program) -> tuple[Value, ...]:
    """The values with the numbers of rows and columns beyond their own that are read."""
    back = [0] * len(program.values)
    left, right = list(back), list(back)
    for instruction in program.instructions():
        for part in instruction.body if isinstance(instruction, Scan) else (instruction,):
            start, stop = program.values[part.value].columns
            if isinstance(part, Attention):
                for read in (part.keys, part.values):
                    back[read.value] = program.height - 1
            for read in reads_of(part):
                first, last = program.values[read.value].columns
                back[read.value] = max(back[read.value], -read.dy)
                left[read.value] = max(left[read.value], first - (start + read.dx))
                right[read.value] = max(right[read.value], stop + read.dx - last)
    return tuple(
        value
        if value.constant is not None and value.constant.dim() == 2
        else replace(value, rows_back=back[k], columns_left=left[k], columns_right=right[k])
        for k, value in enumerate(program.values)
    )


class _Builder:
    def __init__(self, schedule: Schedule, table: Tensor) -> None:
        self.schedule, self.table = schedule, table
        self.values: list[Value] = []
        self.number: dict[Node, int] = {}
        self.row: list[Instruction] = []
        self.steps: list[list[Instruction]] = [[] for _ in range(schedule.graph.distribution.colours + 1)]

    def value(
        self, name: str, labels: Tensor, node: Node, outside: Tensor | None = None, constant: Tensor | None = None
    ) -> int:
        box = self.schedule.box(node)
        if box.bottom < self.schedule.graph.height and constant is None:
            raise NotTraceable(f"layer {name!r}: its last row is cut off and then read, which the sampler cannot do")
        index = len(self.values)
        when, columns = tuple(labels.tolist()), (box.left, box.right)
        self.values.append(Value(index, name, len(when), when, box.top, columns, outside=outside, constant=constant))
        return index

    def add(self, node: Node) -> None:
        labels = self.schedule.labels[node]
        if isinstance(node, LstmNode):
            self._lstm(node)
            return
        constant = node.tensor if isinstance(node, ConstantNode) else None
        self.number[node] = self.value(node.name, labels, node, constant=constant)
        if isinstance(node, AffineNode):
            self._affine(
                node, node.name, self.number[node], labels, node.taps, [], node.bias, node.terms, node.activation
            )
        elif isinstance(node, PointNode):
            self._point(node, labels)
        elif isinstance(node, LookupNode):
            self._lookup(node, labels)
        elif isinstance(node, AcrossNode):
            self._across(node, labels)
        elif isinstance(node, AttentionNode):
            self._attention(node, labels)
        else:
            assert isinstance(node, (ImageNode, ConstantNode))

    def emit(self, instruction: Instruction) -> None:
        (self.row if instruction.phase == ROW else self.steps[instruction.phase]).append(instruction)

    # --- pointwise ---

    def _point(self, node: PointNode, labels: Tensor) -> None:
        for phase in sorted(set(labels.tolist())):
            channels = (labels == phase).nonzero().flatten().tolist()
            for spans, operands in self.aligned(node, channels, node.operands):
                self.emit(Pointwise(node.name, phase, self.number[node], spans, node.function, tuple(operands)))

    def _lookup(self, node: LookupNode, labels: Tensor) -> None:
        width = node.table.shape[1]
        for link in node.operand:
            dy, dx = self.schedule.offset(node, link)
            for channel, row in zip(link.channels, link.rows, strict=True):
                read = Read(self.number[link.node], dy, dx, ((channel, channel + 1),))
                written = ((row * width, (row + 1) * width),)
                phase = int(labels[row * width])
                self.emit(Lookup(node.name, phase, self.number[node], written, read, node.table))

    def _across(self, node: AcrossNode, labels: Tensor) -> None:
        link, results = node.operand, node.results
        for phase in sorted(set(labels.tolist())):
            groups = [g for g in range(node.groups) if int(labels[g * results]) == phase]
            starts = [link.channels[g * node.size] for g in groups]
            read = Read(
                self.number[link.node],
                *self.schedule.offset(node, link),
                tuple((start, start + node.size) for start in starts),
            )
            spans = tuple((g * results, (g + 1) * results) for g in groups)
            self.emit(Across(node.name, phase, self.number[node], spans, node.function, read))

    def _attention(self, node: AttentionNode, labels: Tensor) -> None:
        if self.schedule.anchor[node] != (0, 0) or any(
            self.schedule.offset(node, link) != (0, 0) for link in (node.query, node.keys, node.values)
        ):
            raise NotTraceable(
                f"layer {node.name!r}: attention over features that see the row below, and are ready a row later"
            )
        query, keys, values = (
            Read(self.number[link.node], *self.schedule.offset(node, link), to_spans(link.channels))
            for link in (node.query, node.keys, node.values)
        )
        self.emit(
            Attention(
                node.name, int(labels[0]), self.number[node], ((0, node.channels),), query, keys, values, node.heads,
                node.scale, node.seen, node.shift,
            )
        )  # fmt: skip

    def aligned(
        self, node: Node, channels: Sequence[int], operands: Sequence[list[Link]]
    ) -> list[tuple[Spans, list[Read]]]:
        """For channels of a node, the reads of its operands, span by span as long as the channels' own or one channel.

        An operand that is put together from several reads splits the channels; one that does not have them is left
        out.
        """
        where = []  # for each operand: row -> (its link, the place in it)
        for operand in operands:
            where.append({row: (link, k) for link in operand for k, row in enumerate(link.rows)})
        groups: dict[tuple[int, ...], list[int]] = {}
        for channel in channels:
            groups.setdefault(tuple(id(w[channel][0]) if channel in w else 0 for w in where), []).append(channel)
        result = []
        for members in groups.values():
            present = [w for w in where if members[0] in w]
            sources = [[w[c][0].channels[w[c][1]] for c in members] for w in present]
            own, *theirs = _aligned_spans([members, *sources])
            reads = []
            for w, spans in zip(present, theirs, strict=True):
                link = w[members[0]][0]
                reads.append(Read(self.number[link.node], *self.schedule.offset(node, link), spans))
            result.append((own, reads))
        return result

    # --- sums over taps ---

    def _affine(
        self, node: Node, name: str, value: int, labels: Tensor, taps: list[Tap], own: list[_OwnTap],
        bias: Tensor | None, terms: list[Link], activation: Function | None,
    ) -> list[Affine]:  # fmt: skip
        """Emits a sum; returns what is left of it for a scan, to be put into its body."""
        columns = [
            _Column(
                self.number[tap.node],
                self.schedule.offset(node, tap),
                tap.channels,
                self.schedule.available(node, tap),
                tap.weight,
            )
            for tap in taps
        ]
        columns += [
            _Column(
                t.value, t.offset, list(range(t.weight.shape[1])), torch.full((t.weight.shape[1],), t.label), t.weight
            )
            for t in own
        ]
        for phase in sorted(set(labels.tolist())):
            if phase == ROW:
                self._finish(node, name, value, ROW, _where(labels, ROW), columns, bias, terms, False, activation)
        later = (labels > ROW).nonzero().flatten().tolist()
        if not later:
            return []
        early = [c.part(c.when == ROW) for c in columns]
        begun = any(bool((c.weight[later] != 0).any()) for c in early)
        if begun:
            # What is to be added and is there already, a condition say, need not wait for the pixels.
            ready = [
                t for t in terms if set(later) <= set(t.rows) and bool((self.schedule.available(node, t) == ROW).all())
            ]
            ((spans, reads),) = self.aligned(node, later, [[term] for term in ready])
            self.emit(replace(self._sum(name, value, ROW, later, early, bias, reads), channels=spans))
            bias, terms = None, [t for t in terms if t not in ready]
            columns = [c.part(c.when > ROW) for c in columns]
        left = []
        for phase in sorted(set(labels.tolist()) - {ROW}):
            left += self._finish(
                node, name, value, phase, _where(labels, phase), columns, bias, terms, begun, activation
            )
        return left

    def _finish(
        self, node: Node, name: str, value: int, phase: int, channels: list[int], columns: list[_Column],
        bias: Tensor | None, terms: list[Link], begun: bool, activation: Function | None,
    ) -> list[Affine]:  # fmt: skip
        in_scan = []
        for spans, reads in self.aligned(node, channels, [[term] for term in terms]):
            members = [c for start, stop in spans for c in range(start, stop)]
            instruction = self._sum(name, value, phase, members, columns, bias, reads)
            instruction = replace(instruction, channels=spans, accumulate=begun, activation=activation)
            if phase > len(self.steps):
                in_scan.append(instruction)
            else:
                self.emit(instruction)
        return in_scan

    def _sum(
        self, name: str, value: int, phase: int, channels: list[int], columns: list[_Column], bias: Tensor | None,
        terms: Sequence[Read],
    ) -> Affine:  # fmt: skip
        """One instruction; columns without a weight for these channels are left out."""
        taps, blocks = [], []
        for column in columns:
            weight = column.weight[channels]
            live = (weight != 0).any(0)
            if not bool(live.any()):
                continue
            places = live.nonzero().flatten().tolist()
            taps.append(Read(column.value, *column.offset, to_spans([column.channels[p] for p in places])))
            blocks.append(weight[:, live])
        weight = torch.cat(blocks, 1) if blocks else self.table.new_zeros(len(channels), 0)
        own_bias = None if bias is None else bias[channels]
        return Affine(name, phase, value, to_spans(channels), tuple(taps), weight.contiguous(), own_bias, tuple(terms))

    # --- recurrences ---

    def _lstm(self, node: LstmNode) -> None:
        schedule, units = self.schedule, node.channels
        labels, gate_labels = schedule.labels[node], schedule.gate_labels[node]
        gates = self.value(f"{node.name} gates", gate_labels, node)
        hidden = self.number[node] = self.value(f"{node.name}", labels, node)
        state = hidden if node.h0 is None else self.value(f"{node.name} state", labels, node, outside=node.h0)
        memory = self.value(f"{node.name} memory", labels, node, outside=node.c0)
        # Above is the row phase, beside is what a step or the scan has done just before.
        in_scan = len(self.steps) + 1
        beside = in_scan if node.geometry.mirrored else 0
        own = [
            _OwnTap(state, offset, ROW if offset[0] < 0 else beside, node.state_weight[k])
            for k, offset in enumerate(node.geometry.offsets())
        ]
        if node.geometry.mirrored:
            gate_labels = torch.full_like(gate_labels, in_scan)
        body = self._affine(node, node.name, gates, gate_labels, node.taps, own, node.bias, node.terms, None)
        dy, dx = node.geometry.cell_offset()
        for phase in sorted(set(labels.tolist())):
            spans = to_spans(_where(labels, phase))
            cell = Cell(node.name, phase, hidden, spans, state, gates, Read(memory, dy, dx, spans))
            if node.geometry.mirrored:
                self.emit(Scan(node.name, (*(replace(part, phase=ROW) for part in body), cell)))
            else:
                self.emit(cell)
        assert units == len(labels)


class _OwnTap:
    """A tap of a recurrence on its own state: the value, (dy, dx), when it is there, [4h, h]."""

    def __init__(self, value: int, offset: tuple[int, int], label: int, weight: Tensor) -> None:
        self.value, self.offset, self.label, self.weight = value, offset, label, weight


class _Column:
    """Columns of a sum's matrix: what is read, when each channel can be had, and the weight [all channels, these]."""

    def __init__(self, value: int, offset: tuple[int, int], channels: list[int], when: Tensor, weight: Tensor) -> None:
        self.value, self.offset, self.channels, self.when, self.weight = value, offset, channels, when, weight

    def part(self, chosen: Tensor) -> _Column:
        places = chosen.nonzero().flatten().tolist()
        channels = [self.channels[p] for p in places]
        return _Column(self.value, self.offset, channels, self.when[chosen], self.weight[:, places])


def _where(labels: Tensor, phase: int) -> list[int]:
    return (labels == phase).nonzero().flatten().tolist()


def _aligned_spans(lists: Sequence[Sequence[int]]) -> list[Spans]:
    """Spans of several lists of channels, cut at the same places; where one but the first stays, it is one channel."""
    cuts, steps = [0], [1] + [-1] * (len(lists) - 1)  # of the span at hand; -1 where it is too short to tell
    for k in range(1, len(lists[0])):
        here = [channels[k] - channels[k - 1] for channels in lists]
        if here[0] != 1 or any(
            step not in (0, 1) or known not in (-1, step) for step, known in zip(here, steps, strict=True)
        ):
            cuts.append(k)
            steps[1:] = [-1] * (len(lists) - 1)
        else:
            steps = here
    ends = [*cuts[1:], len(lists[0])]
    return [tuple((channels[a], channels[b - 1] + 1) for a, b in zip(cuts, ends, strict=True)) for channels in lists]
