"""Schedule of a graph: when every feature is computed, and the check that this is possible, that the model is causal.

Each node gets an *anchor*: the schedule computes its element (y + anchor) when the sweep is at (y, x). A convolution
that sees the whole of its row is held back a row by it, and may be shifted down again later, as the vertical stack of
a gated PixelCNN is. Each channel gets a label, ROW or a step; see instructions.py. The labels follow the weights that
are not zero, so colour groups of any layout need no special case.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..program.instructions import ROW
from ..trace.graph import (
    AcrossNode,
    AffineNode,
    Box,
    ConstantNode,
    Graph,
    ImageNode,
    Link,
    LookupNode,
    LstmNode,
    Node,
    NotTraceable,
    PointNode,
    Tap,
    inputs_of,
    is_vector,
    readers,
)

NEVER = 1 << 20  # the label of channels that are finished too late


@dataclass(eq=False)
class Schedule:
    """For every node: the part that is needed (in its own frame), its anchor, and a label for each channel.

    ``gate_labels`` has the labels of an LSTM's gates, 4h of them.
    """

    graph: Graph
    needed: dict[Node, Box]
    anchor: dict[Node, tuple[int, int]] = field(default_factory=dict)
    labels: dict[Node, Tensor] = field(default_factory=dict)
    gate_labels: dict[Node, Tensor] = field(default_factory=dict)
    culprit: dict[Node, NotTraceable] = field(default_factory=dict)

    def offset(self, reader: Node, read: Tap | Link) -> tuple[int, int]:
        """(dy, dx) of a read on the grid of the sweep."""
        if is_vector(read.node):
            return 0, 0
        (own_y, own_x), (y, x) = self.anchor[reader], self.anchor[read.node]
        return read.dy + own_y - y, read.dx + own_x - x

    def available(self, reader: Node, read: Tap | Link) -> Tensor:
        """The phase or step from which each channel of a read is finished, int64 [channels]."""
        labels = self.labels[read.node][read.channels]
        return _when(*self.offset(reader, read), labels)

    def box(self, node: Node) -> Box:
        """Where a node is computed, on the grid of the sweep."""
        y, x = self.anchor[node]
        return self.needed[node].moved(-y, -x)


def _when(dy: int, dx: int, labels: Tensor) -> Tensor:
    if dy < 0:
        return torch.full_like(labels, ROW)
    row = labels == ROW
    if dy > 0:
        return torch.full_like(labels, NEVER)
    if dx == 0:
        return labels
    return torch.where(row, ROW, 0 if dx < 0 else NEVER)


def schedule(graph: Graph) -> Schedule:
    """The schedule of a graph.

    Raises:
        NotTraceable: the model is not causal; the message names a layer that looks ahead.
    """
    result = Schedule(graph, _needed_parts(graph))
    for node in graph.nodes:
        if node in result.needed:
            _place(result, node)
    _check_logits(result)
    _postpone(result)
    for node in graph.nodes:
        if node in result.needed:
            _label(result, node)
    return result


def _needed_parts(graph: Graph) -> dict[Node, Box]:
    needed: dict[Node, Box] = {graph.logits: Box(0, graph.height, 0, graph.width)}
    for node in reversed(graph.nodes):
        box = needed.get(node, Box(0, 0, 0, 0))
        if isinstance(node, ImageNode):
            needed[node] = node.extent
            continue
        if box.is_empty():
            continue
        if isinstance(node, LstmNode):
            # What is above a pixel, and beside it on the side from which the sweep comes.
            from_left = all(dx <= 0 for _, dx in node.geometry.offsets())
            box = Box(node.extent.top, box.bottom, node.extent.left, box.right if from_left else node.extent.right)
        # The last row too, where only those above it are read: a row that is there ends the image.
        needed[node] = box._replace(bottom=node.extent.bottom) & node.extent
        for read in inputs_of(node):
            part = needed[node].moved(read.dy, read.dx) & read.node.extent
            needed[read.node] = needed.get(read.node, Box(0, 0, 0, 0)) | part
    return {node: box for node, box in needed.items() if not box.is_empty() or is_vector(node)}


def _place(schedule: Schedule, node: Node) -> None:
    """The earliest anchor with which everything that the node reads is there, and the labels."""
    box = schedule.needed[node]
    if isinstance(node, (ImageNode, ConstantNode)):
        schedule.anchor[node] = (0, 0)
        _label(schedule, node)
        return
    schedule.anchor[node] = (box.top, box.left)
    _label(schedule, node)
    while int(schedule.labels[node].max()) == NEVER:
        if node not in schedule.culprit:
            schedule.culprit[node] = _looks_ahead(schedule, node)
        y, x = schedule.anchor[node]
        schedule.anchor[node] = (y - 1, x)
        _label(schedule, node)


def _label(schedule: Schedule, node: Node) -> None:
    if isinstance(node, ImageNode):
        schedule.labels[node] = torch.arange(1, node.channels + 1)
    elif isinstance(node, ConstantNode):
        schedule.labels[node] = torch.full((node.channels,), ROW)
    elif isinstance(node, PointNode):
        schedule.labels[node] = _latest(
            schedule, node, node.channels, [], [link for part in node.operands for link in part]
        )
    elif isinstance(node, LookupNode):
        width = node.table.shape[1]
        numbers = _latest(schedule, node, node.channels // width, [], node.operand)
        schedule.labels[node] = numbers.repeat_interleave(width)
    elif isinstance(node, AcrossNode):
        groups = schedule.available(node, node.operand).view(node.groups, node.size).amax(1)
        schedule.labels[node] = groups.repeat_interleave(node.results)
    elif isinstance(node, AffineNode):
        schedule.labels[node] = _latest(schedule, node, node.channels, node.taps, node.terms)
    else:
        assert isinstance(node, LstmNode)
        _label_lstm(schedule, node)


def _latest(schedule: Schedule, node: Node, channels: int, taps: list[Tap], links: list[Link]) -> Tensor:
    """The label of each channel: that of the last thing it reads."""
    labels = torch.full((channels,), ROW)
    for tap in taps:
        when = schedule.available(node, tap).expand(channels, -1)
        labels = torch.maximum(labels, torch.where((tap.weight != 0).cpu(), when, ROW).amax(1))
    for link in links:
        rows = torch.tensor(link.rows)
        labels[rows] = torch.maximum(labels[rows], schedule.available(node, link))
    return labels


def _label_lstm(schedule: Schedule, node: LstmNode) -> None:
    gates = _latest(schedule, node, 4 * node.channels, node.taps, node.terms)
    beside = [dx for dy, dx in (*node.geometry.offsets(), node.geometry.cell_offset()) if dy == 0]
    if node.geometry.mirrored:
        # The whole row is swept at once, so all of it must be there.
        gates[gates > ROW] = NEVER
    elif any(dy == 0 for dy, _ in node.geometry.offsets()):
        gates = gates.clamp_min(0)
    units = gates.view(4, -1).amax(0)
    schedule.gate_labels[node] = gates
    schedule.labels[node] = units if node.geometry.mirrored or not beside else units.clamp_min(0)


def _refusal(reason: str, node: Node) -> NotTraceable:
    error = NotTraceable(reason)
    error.line = node.line
    return error


def _looks_ahead(schedule: Schedule, node: Node) -> NotTraceable:
    """What makes a node wait for pixels that come later."""
    for read in inputs_of(node):
        if int(schedule.available(node, read).max()) < NEVER:
            continue
        if read.node in schedule.culprit:
            return schedule.culprit[read.node]
        above_or_beside = isinstance(read.node, PointNode) and any(
            min(link.dy, link.dx) < 0 for operand in read.node.operands for link in operand
        )
        if above_or_beside and not Box(0, schedule.graph.height, 0, schedule.graph.width).holds(read.node.extent):
            return _refusal(
                f"layer {node.name!r} reads {read.node.name!r} at row {read.dy:+d}, column {read.dx:+d}, which was "
                "computed on padded rows or columns; the sampler follows zeros that are padded after such a function "
                "alone",
                node,
            )
        return _refusal(
            f"not causal: layer {node.name!r} reads {read.node.name!r} at row {read.dy:+d}, column {read.dx:+d}, "
            "pixels that are drawn later",
            node,
        )
    return _refusal(f"not causal: layer {node.name!r} reads the whole row, pixels that are drawn later", node)


def _check_logits(schedule: Schedule) -> None:
    graph = schedule.graph
    if schedule.anchor[graph.logits] != (0, 0):
        raise schedule.culprit[graph.logits]
    predictions, channels = graph.distribution.predictions, graph.distribution.channels
    labels = schedule.labels[graph.logits].view(predictions, channels)
    for colour, own in enumerate(labels):  # a prediction for all colours must be there before the first
        label = int(own.max())
        if label > colour:
            layer = _sees_itself(schedule, graph.logits, colour * channels + int(own.argmax()), label)
            raise _refusal(
                f"not causal: the logits of colour {colour} depend on colour {label - 1} of the same pixel, "
                f"which layer {layer.name!r} lets through",
                layer,
            )


def _sees_itself(schedule: Schedule, node: Node, channel: int, label: int) -> Node:
    """The layer that reads the image on the way by which a channel gets its label."""
    found = [(read.node, read.channels[k]) for read, k in _reads_of_channel(schedule, node, channel, label)]
    if not found:
        return node
    source, its_channel = found[0]
    return node if isinstance(source, ImageNode) else _sees_itself(schedule, source, its_channel, label)


def _reads_of_channel(schedule: Schedule, node: Node, channel: int, label: int) -> list[tuple[Tap | Link, int]]:
    """The reads of a channel (with the place in ``channels``) that are available at ``label`` only."""
    units = node.channels if isinstance(node, LstmNode) else 0
    rows = [channel + block * units for block in range(4)] if units else [channel]
    if isinstance(node, LookupNode):
        rows = [channel // node.table.shape[1]]
    if isinstance(node, AcrossNode):
        first = channel // node.results * node.size
        rows = list(range(first, first + node.size))
    found: list[tuple[Tap | Link, int]] = []
    for read in inputs_of(node):
        when = schedule.available(node, read)
        for row in rows:
            if isinstance(read, Tap):
                places = ((read.weight[row] != 0).cpu() & (when == label)).nonzero().flatten().tolist()
            else:
                places = [k for k, r in enumerate(read.rows) if r == row and int(when[k]) == label]
            found += [(read, place) for place in places]
    return found


def _postpone(schedule: Schedule) -> None:
    """Holds back nodes that only later rows read: they become work for a whole row at once."""
    found = readers([node for node in schedule.graph.nodes if node in schedule.needed])
    for node in reversed(schedule.graph.nodes):
        if (
            node is schedule.graph.logits
            or not isinstance(node, (AffineNode, PointNode, LookupNode, AcrossNode))
            or node not in schedule.needed
        ):
            continue
        reads = found[node]
        if (
            reads
            and int(schedule.labels[node].max()) > ROW
            and all(schedule.offset(r, read)[0] < 0 for r, read in reads)
        ):
            y, x = schedule.anchor[node]
            schedule.anchor[node] = (y - 1, x)
