"""Folding of graph nodes where that is exact: fewer nodes are fewer steps at every pixel.

Scales and shifts (batch norm), sums (residuals, the two convolutions of a gate) and activations join the convolution
before them if they are its only reader, other scales and shifts (the gain of a layer norm) the convolution behind them,
if it reads none of the zeros around them; tanh times sigmoid becomes one gate, a product and a sum one node; nodes that
the logits do not need are dropped.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..program.instructions import Function
from ..trace.graph import (
    AffineNode,
    ConstantNode,
    Graph,
    Link,
    LstmNode,
    Node,
    PointNode,
    Tap,
    inputs_of,
    is_vector,
    readers,
)


def fold(graph: Graph) -> Graph:
    """The graph with as few nodes as possible; the one given is used up."""
    needed = _needed(graph)
    count = {node: len({reader for reader, _ in found}) for node, found in readers(needed).items()}
    replaced: dict[Node, Node] = {}
    for node in needed:
        for read in inputs_of(node):
            read.node = replaced.get(read.node, read.node)
        new = _folded(node, count)
        if new is not node:
            replaced[node], count[new] = new, count[node]
    graph.nodes = [replaced.get(node, node) for node in needed]
    graph.logits = replaced.get(graph.logits, graph.logits)
    graph.nodes = _needed(graph)
    return graph


def _needed(graph: Graph) -> list[Node]:
    """The nodes that the logits depend on, and the image, in order."""
    wanted: set[Node] = {graph.image}
    waiting = [graph.logits]
    while waiting:
        node = waiting.pop()
        if node not in wanted:
            wanted.add(node)
            waiting += [read.node for read in inputs_of(node)]
    return [node for node in graph.nodes if node in wanted]


def _folded(node: Node, count: dict[Node, int]) -> Node:
    if isinstance(node, LstmNode):
        _fold_gates(node, count)
        return node
    if isinstance(node, AffineNode):
        for source in dict.fromkeys(tap.node for tap in node.taps):
            _fold_scale(node, source, count)
        return node
    if not isinstance(node, PointNode):
        return node
    name = node.function.name
    if name == "mul":
        gate = _gate(node, count)
        if gate is not None:
            return gate
    sums = [_sum_of(operand, node, count) for operand in node.operands]
    if name == "add":
        return _added(node, sums) or _multiply_add(node, count) or node
    affine = next((s for s in sums if s is not None), None)
    if affine is None:
        return node
    if name == "copy":
        return affine
    if affine.activation is not None:
        return node
    if name == "scale":
        return node if affine.terms else _scaled(affine, *node.function.parameters)
    if name == "mul":
        factor = next((_one_vector(operand) for operand in node.operands if _one_vector(operand) is not None), None)
        return node if affine.terms or factor is None else _scaled(affine, factor, 0)
    if len(node.operands) == 1:
        affine.activation = node.function
        return affine
    return node


def _sum_of(operand: list[Link], reader: Node, count: dict[Node, int]) -> AffineNode | None:
    """The operand as an affine node with the reader's channels and frame, if it is one that has no other reader."""
    if len(operand) != 1:
        return None
    link = operand[0]
    node = link.node
    # Outside its extent a convolution's result is zero, but its formula is not.
    if (
        not isinstance(node, AffineNode)
        or count[node] != 1
        or not node.extent.holds(reader.extent.moved(link.dy, link.dx))
    ):
        return None
    channels = [c for _, c in sorted(zip(link.rows, link.channels, strict=True))]
    return _select(node, channels, link, reader)


def _select(node: AffineNode, channels: list[int], link: Link, reader: Node) -> AffineNode:
    taps = [replace(tap, dy=tap.dy + link.dy, dx=tap.dx + link.dx, weight=tap.weight[channels]) for tap in node.taps]
    terms = []
    for term in node.terms:
        source = dict(zip(term.rows, term.channels, strict=True))
        rows = [row for row, channel in enumerate(channels) if channel in source]
        if rows:
            picked = [source[channels[row]] for row in rows]
            terms.append(Link(term.node, term.dy + link.dy, term.dx + link.dx, picked, rows))
    bias = None if node.bias is None else node.bias[channels]
    return AffineNode(node.name, len(channels), reader.extent, taps, bias, terms, node.activation, line=node.line)


def _added(node: PointNode, sums: list[AffineNode | None]) -> AffineNode | None:
    plain = [s if s is not None and s.activation is None else None for s in sums]
    first = plain[0] or plain[1]
    if first is None:
        return None
    for own, operand in zip(plain, node.operands, strict=True):
        if own is first:
            continue
        vector = _one_vector(operand)
        if own is not None:
            first.taps += own.taps
            first.terms += own.terms
            first.bias = _plus(first.bias, own.bias)
            first.name = f"{first.name} + {own.name}"
        elif vector is not None:
            first.bias = _plus(first.bias, vector)
        else:
            first.terms += operand
    return first


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _one_vector(operand: list[Link]) -> Tensor | None:
    """The operand's numbers [C] where it is a constant that all images and pixels share."""
    if len(operand) != 1 or not is_vector(operand[0].node):
        return None
    node = operand[0].node
    assert isinstance(node, ConstantNode)
    if node.tensor.shape[0] != 1:
        return None
    channels = [c for _, c in sorted(zip(operand[0].rows, operand[0].channels, strict=True))]
    return node.tensor[0, channels]


def _scaled(affine: AffineNode, factor: Tensor | float, shift: float) -> AffineNode:
    column = factor[:, None] if isinstance(factor, Tensor) else factor
    for tap in affine.taps:
        tap.weight = tap.weight * column
    if affine.bias is not None:
        affine.bias = affine.bias * factor + shift
    elif shift:
        affine.bias = affine.taps[0].weight.new_full((affine.channels,), shift)
    return affine


def _fold_scale(affine: AffineNode, source: Node, count: dict[Node, int]) -> None:
    """Has a sum read what its source scales and shifts by constants, if it is the only one that reads the source."""
    found = _scale_of(source) if isinstance(source, PointNode) and count[source] == 1 else None
    if found is None or any(term.node is source for term in affine.terms):
        return
    link, factor, shift = found
    taps = [tap for tap in affine.taps if tap.node is source]
    inside = all(source.extent.holds(affine.extent.moved(tap.dy, tap.dx)) for tap in taps)
    if not inside and (bool(shift.any()) or source.extent.moved(link.dy, link.dx) != link.node.extent):
        return
    channels = dict(zip(link.rows, link.channels, strict=True))
    for tap in taps:
        affine.bias = _plus(affine.bias, tap.weight @ shift[tap.channels])
        tap.node, tap.dy, tap.dx = link.node, tap.dy + link.dy, tap.dx + link.dx
        tap.weight, tap.channels = tap.weight * factor[tap.channels], [channels[c] for c in tap.channels]


def _scale_of(node: PointNode) -> tuple[Link, Tensor, Tensor] | None:
    """What a node scales and shifts, and the numbers [C] by which it does."""
    name, operands = node.function.name, node.operands
    if name not in ("mul", "multiply_add") or len(operands[0]) + len(operands[1]) != 2:
        return None
    factor, link = next(
        ((_one_vector(a), b[0]) for a, b in (operands[:2], operands[1::-1]) if is_vector(a[0].node)), (None, None)
    )
    shift = _one_vector(operands[2]) if name == "multiply_add" else None
    if factor is None or link is None or is_vector(link.node) or (name == "multiply_add" and shift is None):
        return None
    return link, factor, torch.zeros_like(factor) if shift is None else shift


def _multiply_add(node: PointNode, count: dict[Node, int]) -> PointNode | None:
    """a * b + c, in either order, where nothing else reads the product."""
    for operand, other in (node.operands, node.operands[::-1]):
        product = _only_read_here(operand, node, count)
        if product is not None and product.function.name == "mul":
            operands = [*product.operands, other]
            return PointNode(node.name, node.channels, node.extent, Function("multiply_add"), operands, line=node.line)
    return None


def _only_read_here(operand: list[Link], reader: Node, count: dict[Node, int]) -> PointNode | None:
    """The operand as a node of the reader's channels and frame, if it has no other reader."""
    link, whole = operand[0], list(range(reader.channels))
    source = link.node
    fits = (link.dy, link.dx, link.rows, link.channels) == (0, 0, whole, whole) and source.extent == reader.extent
    return source if isinstance(source, PointNode) and fits and len(operand) == 1 and count[source] == 1 else None


def _gate(node: PointNode, count: dict[Node, int]) -> PointNode | None:
    """tanh(a) * sigmoid(b), in either order."""
    inner = {}
    for operand in node.operands:
        source = _only_read_here(operand, node, count)
        if source is None:
            return None
        inner[source.function.name] = source.operands[0]
    if set(inner) != {"tanh", "sigmoid"}:
        return None
    return PointNode(
        node.name, node.channels, node.extent, Function("gate"), [inner["tanh"], inner["sigmoid"]], line=node.line
    )


def _fold_gates(node: LstmNode, count: dict[Node, int]) -> None:
    gates = AffineNode(node.name, 4 * node.channels, node.extent, [], None)
    own = _sum_of(node.terms, gates, count)
    if own is not None and own.activation is None:
        node.taps, node.bias, node.terms = list[Tap](own.taps), own.bias, own.terms
