"""The traced model as a graph: what the tracer builds, the folding simplifies, and the scheduling reads.

A node is a map of features in a frame of its own; nothing is said yet about when it is computed. Reads are kept channel
by channel, so that slicing, concatenating and permuting channels never becomes an operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ...distributions import Distribution
from ...ops.wavefront_lstm.geometry import Geometry
from ..program.instructions import Function


class NotTraceable(ValueError):
    """The model cannot be turned into a sampling program; the message names the layer and the reason.

    Attributes:
        line: of the user's code, as "net.py, line 12"; None where it is not known. The message has it, too.
    """

    line: str | None = None

    def __str__(self) -> str:
        return super().__str__() + (f" ({self.line})" if self.line else "")


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    def moved(self, dy: int, dx: int) -> Box:
        return Box(self.top + dy, self.bottom + dy, self.left + dx, self.right + dx)

    def __and__(self, other: Box) -> Box:
        return Box(
            max(self.top, other.top), min(self.bottom, other.bottom),
            max(self.left, other.left), min(self.right, other.right),
        )  # fmt: skip

    def __or__(self, other: Box) -> Box:
        """The smallest box around both."""
        if self.is_empty() or other.is_empty():
            return other if self.is_empty() else self
        return Box(
            min(self.top, other.top), max(self.bottom, other.bottom),
            min(self.left, other.left), max(self.right, other.right),
        )  # fmt: skip

    def is_empty(self) -> bool:
        return self.top >= self.bottom or self.left >= self.right

    def holds(self, other: Box) -> bool:
        return other.is_empty() or self & other == other


@dataclass(eq=False)
class Node:
    """A map of features, zero outside ``extent``.

    Attributes:
        name: of the layer, for people.
        channels: how many.
        extent: where it is defined, in its own frame.
        line: of the user's code that made it, as "net.py, line 12"; None where it is not known.
    """

    name: str
    channels: int
    extent: Box
    line: str | None = field(default=None, kw_only=True)


@dataclass(eq=False)
class Link:
    """Channel ``rows[k]`` of the reader at (y, x) reads channel ``channels[k]`` of ``node`` at (y + dy, x + dx)."""

    node: Node
    dy: int
    dx: int
    channels: list[int]
    rows: list[int]


@dataclass(eq=False)
class Tap:
    """A matrix: the reader at (y, x) gets ``weight`` [its channels, channels] times ``node`` at (y + dy, x + dx)."""

    node: Node
    dy: int
    dx: int
    channels: list[int]
    weight: Tensor


@dataclass(eq=False)
class ImageNode(Node):
    """The image, as the model sees it."""


@dataclass(eq=False)
class ConstantNode(Node):
    """A constant, independent of the image: ``tensor`` [n or 1, C], the same everywhere, or [n or 1, C, H, W]."""

    tensor: Tensor

    @property
    def is_vector(self) -> bool:
        return self.tensor.dim() == 2


@dataclass(eq=False)
class AffineNode(Node):
    """``activation(sum of taps + bias + terms)``; the rows of ``weight`` and of the links are its channels."""

    taps: list[Tap]
    bias: Tensor | None
    terms: list[Link] = field(default_factory=list)
    activation: Function | None = None


@dataclass(eq=False)
class PointNode(Node):
    """A function of up to three operands, channel by channel; an operand is a list of links to all channels."""

    function: Function
    operands: list[list[Link]]


@dataclass(eq=False)
class LookupNode(Node):
    """Rows of a table: channels [k D, (k + 1) D) are row number ``operand``[k] of ``table`` [numbers, D].

    The operand is a list of links that covers channels 0, 1, ... of it, whole numbers.
    """

    table: Tensor
    operand: list[Link]


@dataclass(eq=False)
class AcrossNode(Node):
    """A function across ``size`` channels at each pixel, group by group: ACROSS or REDUCE of instructions.py.

    Group g is channels ``operand.channels``[g * size ...] of the operand, which lie side by side, and gives channels
    from g * (channels / groups) on.
    """

    function: Function
    size: int
    operand: Link

    @property
    def groups(self) -> int:
        return len(self.operand.channels) // self.size

    @property
    def results(self) -> int:
        """Channels that a group gives."""
        return self.channels // self.groups


@dataclass(eq=False)
class LstmNode(Node):
    """A wavefront LSTM. Its gates [4h] are an affine sum, as in :class:`AffineNode`, plus the state taps.

    Attributes:
        taps, bias, terms: the input-to-state part of the gates.
        state_weight: [taps of the geometry, 4h, h].
        h0, c0: [h] or None, outside the image.
        geometry: the path.
    """

    taps: list[Tap]
    bias: Tensor | None
    terms: list[Link]
    state_weight: Tensor
    h0: Tensor | None
    c0: Tensor | None
    geometry: Geometry


@dataclass(eq=False)
class Graph:
    """Nodes in an order in which each reads only earlier ones; ``logits`` has the distribution's predictions, one after
    the other.
    """

    nodes: list[Node]
    image: ImageNode
    logits: Node
    height: int
    width: int
    distribution: Distribution


def inputs_of(node: Node) -> list[Tap | Link]:
    """Every read of a node, its own state excepted."""
    if isinstance(node, (AffineNode, LstmNode)):
        return [*node.taps, *node.terms]
    if isinstance(node, PointNode):
        return [link for operand in node.operands for link in operand]
    if isinstance(node, LookupNode):
        return [*node.operand]
    if isinstance(node, AcrossNode):
        return [node.operand]
    return []


def is_vector(node: Node) -> bool:
    return isinstance(node, ConstantNode) and node.is_vector


def readers(nodes: Sequence[Node]) -> dict[Node, list[tuple[Node, Tap | Link]]]:
    """For each node, who reads it and how."""
    found: dict[Node, list[tuple[Node, Tap | Link]]] = {node: [] for node in nodes}
    for node in nodes:
        for read in inputs_of(node):
            found[read.node].append((node, read))
    return found
