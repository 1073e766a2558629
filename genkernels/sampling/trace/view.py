"""Elements of a traced tensor: each is an element of some node, or zero.

A tensor [N, C, H, W] has two descriptions. As a :class:`Plane` it lists, for its channels, the node, the channel and
the shift. As an *index* it is a tensor [1, C, H, W] of element numbers (0 for zero), on which slicing, padding,
concatenating, viewing and permuting are carried out by PyTorch itself.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import Box, ConstantNode, Link, Node, NotTraceable

_NOT_CHANNELS = (
    "the result is not made of whole channels of earlier layers, shifted or cropped; rows and columns must stay the "
    "last two dimensions, and may not be flipped, strided or resampled"
)


@dataclass(eq=False)
class Piece:
    """Channels ``places[k]`` of a tensor at (y, x) are channels ``channels[k]`` of ``node`` at (y + dy, x + dx).

    Inside ``window`` (in the tensor's rows and columns) alone; elsewhere they are zero.
    """

    node: Node
    dy: int
    dx: int
    channels: list[int]
    places: list[int]
    window: Box

    def link(self) -> Link:
        return Link(self.node, self.dy, self.dx, list(self.channels), list(self.places))


@dataclass(eq=False)
class Plane:
    """A tensor [N, channels, height, width]; channels that no piece names are zero."""

    channels: int
    height: int
    width: int
    pieces: list[Piece]

    @property
    def box(self) -> Box:
        return Box(0, self.height, 0, self.width)

    @classmethod
    def of(cls, node: Node) -> Plane:
        """A whole node whose extent starts at (0, 0)."""
        _, bottom, _, right = node.extent
        every = list(range(node.channels))
        return cls(node.channels, bottom, right, [Piece(node, 0, 0, every, every, Box(0, bottom, 0, right))])

    def padded(self, left: int, right: int, top: int = 0, bottom: int = 0) -> Plane:
        """With rows and columns of zeros around it; negative numbers crop."""
        box = Box(0, self.height + top + bottom, 0, self.width + left + right)
        pieces = [
            Piece(p.node, p.dy - top, p.dx - left, p.channels, p.places, p.window.moved(top, left) & box)
            for p in self.pieces
        ]
        return Plane(self.channels, box.bottom, box.right, [p for p in pieces if not p.window.is_empty()])

    def repeated(self, channels: int) -> Plane:
        """Its one channel, so many times."""
        every = list(range(channels))
        pieces = [Piece(p.node, p.dy, p.dx, p.channels * channels, every, p.window) for p in self.pieces]
        return Plane(channels, self.height, self.width, pieces)

    def parts(self) -> list[Plane]:
        """Planes that add up to it, in each of which no channel is put together of several pieces."""
        rest, parts = self.pieces, []
        while rest:
            here: list[Piece] = []
            later: list[Piece] = []
            places: set[int] = set()
            for piece in rest:
                (later if places & set(piece.places) else here).append(piece)
                places |= set(piece.places)
            parts.append(Plane(self.channels, self.height, self.width, here))
            rest = later
        return parts or [self]

    def taken(self, start: int, stop: int) -> Plane:
        """Channels [start, stop)."""
        pieces = []
        for p in self.pieces:
            kept = [(c, place - start) for c, place in zip(p.channels, p.places, strict=True) if start <= place < stop]
            if kept:
                pieces.append(Piece(p.node, p.dy, p.dx, [c for c, _ in kept], [place for _, place in kept], p.window))
        return Plane(stop - start, self.height, self.width, pieces)


class Numbering:
    """Numbers for the elements of all nodes of a trace, from 1.

    Args:
        size: height and width of the image.
        add: adds a node to the trace.
    """

    def __init__(self, size: tuple[int, int], add: Callable[[Node], Node]) -> None:
        self.size, self.add = size, add
        self.nodes: list[Node] = []
        self.starts: list[int] = []
        self.next = 1

    def _start(self, node: Node) -> int:
        if node not in self.nodes:
            self.nodes.append(node)
            self.starts.append(self.next)
            top, bottom, left, right = node.extent
            self.next += node.channels * (bottom - top) * (right - left)
        return self.starts[self.nodes.index(node)]

    def index(self, plane: Plane) -> Tensor:
        """int64 [1, channels, height, width]"""
        result = torch.zeros(1, plane.channels, plane.height, plane.width, dtype=torch.int64)
        for piece in plane.pieces:
            start = self._start(piece.node)
            top, bottom, left, right = piece.node.extent
            window = piece.window
            rows = torch.arange(window.top, window.bottom) + piece.dy - top
            columns = torch.arange(window.left, window.right) + piece.dx - left
            channels = torch.tensor(piece.channels)
            numbers = (channels[:, None, None] * (bottom - top) + rows[:, None]) * (right - left) + columns
            result[0, piece.places, window.top : window.bottom, window.left : window.right] = numbers + start
        return result

    def plane(self, index: Tensor, name: str) -> Plane:
        """The description of an index [1, ..., H, W], whose dimensions in between become the channels.

        Raises:
            NotTraceable: it is no set of shifted, cropped channels.
        """
        try:
            return self._whole(index, name)
        except NotTraceable:
            # Only of an image's own rows and columns: the last two dimensions may be columns and channels.
            parts = self._in_parts(index, name) if tuple(index.shape[-2:]) == self.size else None
            if parts is None:
                raise
            return parts

    def _in_parts(self, index: Tensor, name: str) -> Plane | None:
        """As constants, the first column and the others: sequences of pixels that are shifted by one."""
        height, width = index.shape[-2:]
        flat = index.reshape(1, -1, height, width)
        constants = self._constants(flat)
        others = torch.where(constants, 0, flat)
        pieces = []
        if bool(constants.any()):
            rows, columns = (constants.any(d).any(0).any(0).nonzero().flatten().tolist() for d in (3, 2))
            window = Box(rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
            if not bool(constants[..., window.top : window.bottom, window.left : window.right].all()):
                return None
            within = flat[..., window.top : window.bottom, window.left : window.right]
            node = self._gathered(within)
            every = list(range(node.channels))
            pieces.append(Piece(node, -window.top, -window.left, every, every, window))
        try:
            pieces += self._whole(others, name).pieces
        except NotTraceable:
            if width == 1:
                return None
            for first, last in ((0, 1), (1, width)):
                part = torch.zeros_like(others)
                part[..., first:last] = others[..., first:last]
                try:
                    pieces += self._whole(part, name).pieces
                except NotTraceable:
                    return None
        return Plane(flat.shape[1], height, width, pieces)

    def _constants(self, flat: Tensor) -> Tensor:
        """Which elements are those of constants, bool like an index."""
        found = torch.zeros_like(flat, dtype=torch.bool)
        for node, start in zip(self.nodes, self.starts, strict=True):
            if isinstance(node, ConstantNode) and not node.is_vector:
                found |= (flat >= start) & (flat < start + node.tensor[0].numel())
        return found

    def _gathered(self, flat: Tensor) -> Node:
        """A constant map of elements of constants."""
        images = max((len(node.tensor) for node in self.nodes if isinstance(node, ConstantNode)), default=1)
        result: Tensor | None = None
        for node, start in zip(self.nodes, self.starts, strict=True):
            if not isinstance(node, ConstantNode) or node.is_vector:
                continue
            numbers = node.tensor.flatten(1)
            own = (flat >= start) & (flat < start + numbers.shape[1])
            if bool(own.any()):
                if result is None:
                    result = numbers.new_zeros(images, *flat.shape[1:])
                result = torch.where(
                    own.to(result.device), numbers[:, (flat[0] - start).clamp(0, numbers.shape[1] - 1)], result
                )
        assert result is not None
        result = result[:1] if bool((result == result[:1]).all()) else result
        return self.add(ConstantNode("constant", result.shape[1], Box(0, flat.shape[2], 0, flat.shape[3]), result))

    def _whole(self, index: Tensor, name: str) -> Plane:
        """The same, where each channel is one piece."""
        height, width = index.shape[-2:]
        flat = index.reshape(math.prod(index.shape[1:-2]), height, width)
        if flat.numel() == 0:  # the row above an image's only one, say
            return Plane(flat.shape[0], height, width, [])
        pieces: dict[tuple[int, ...], Piece] = {}
        rows, columns = flat.any(2).int(), flat.any(1).int()
        corners = zip(*(
            t.tolist() for t in (
                rows.argmax(1), height - rows.flip(1).argmax(1), columns.argmax(1), width - columns.flip(1).argmax(1)
            )
        ), strict=True)  # fmt: skip
        first = flat[torch.arange(flat.shape[0]), rows.argmax(1), columns.argmax(1)].tolist()
        for place, corner in enumerate(corners):
            if not first[place]:
                if bool(flat[place].any()):
                    raise NotTraceable(f"layer {name!r}: {_NOT_CHANNELS}")
                continue
            window = Box(*corner)
            which = bisect_right(self.starts, first[place]) - 1
            extent = self.nodes[which].extent
            row, column = divmod(first[place] - self.starts[which], extent.right - extent.left)
            channel, row = divmod(row, extent.bottom - extent.top)
            dy, dx = row + extent.top - window.top, column + extent.left - window.left
            if not extent.holds(window.moved(dy, dx)):
                raise NotTraceable(f"layer {name!r}: {_NOT_CHANNELS}")
            piece = pieces.setdefault((which, dy, dx, *window), Piece(self.nodes[which], dy, dx, [], [], window))
            piece.channels.append(channel)
            piece.places.append(place)
        plane = Plane(flat.shape[0], height, width, list(pieces.values()))
        if not torch.equal(self.index(plane)[0], flat):
            raise NotTraceable(f"layer {name!r}: {_NOT_CHANNELS}")
        return plane
