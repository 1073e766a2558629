"""The nodes of a trace so far, where in the model it is, and how handlers read planes and put constants in."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.core.torch_internals import module_call_code
from ..program.instructions import Function
from .graph import Box, ConstantNode, Link, Node, PointNode
from .tensor import Traced
from .view import Numbering, Piece, Plane

# Folders of PyTorch and of this package.
NOT_THE_USERS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[2]))


class Recording:
    """What is known of one trace.

    Args:
        dtype, device: of the model.
        size: height and width of the image.
        model: whose layers have names.
        root: the code that calls the model: nothing further out is of the model.

    Attributes:
        nodes: in the order in which they were made.
        numbering: of their elements.
        operator: the one at hand.
        result_dtype: of its result.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        size: tuple[int, int],
        model: nn.Module | None,
        root: CodeType,
    ) -> None:
        self.dtype, self.device, self.size, self.root = dtype, device, size, root
        self.nodes: list[Node] = []
        self.numbering = Numbering(size, self.add)
        self.operator = ""
        self.result_dtype = dtype
        self.names = {id(module): (name, module) for name, module in model.named_modules()} if model is not None else {}

    def name(self) -> str:
        """The innermost module by name, and the operator unless that module is little else."""
        path, module = self._calling()
        is_leaf = module is not None and not any(True for _ in module.children())
        if path and (is_leaf or self.operator.startswith("genkernels::")):
            return path
        operator = self.operator.removeprefix("aten::")
        return f"{path} ({operator})" if path else operator

    def order(self, rank: int, *dims: Any) -> list[int]:
        """The dimensions of the transpose or permute at hand, as permute names them."""
        if self.operator == "aten::permute":
            return [d % rank for d in dims[0]]
        order = list(range(rank))
        a, b = (d % rank for d in dims)
        order[a], order[b] = order[b], order[a]
        return order

    def _calling(self) -> tuple[str, nn.Module | None]:
        """The innermost module of the model that is being called, by name: read from this thread's stack, so that the
        model needs no hooks, which calls of other threads would run into."""
        frame = sys._getframe()
        while frame.f_back is not None and frame.f_code is not self.root:
            if frame.f_code is module_call_code and id(frame.f_locals.get("self")) in self.names:
                return self.names[id(frame.f_locals["self"])]
            frame = frame.f_back
        return "", None

    def _line(self) -> str | None:
        """The innermost line of code that is neither PyTorch's nor this package's."""
        frame = sys._getframe()
        while frame.f_back is not None and frame.f_code is not self.root:
            file = frame.f_code.co_filename
            if not file.startswith(NOT_THE_USERS):
                return f"{os.path.basename(file)}, line {frame.f_lineno}"
            frame = frame.f_back
        return None

    def add(self, node: Any) -> Any:
        node.line = self._line()
        self.nodes.append(node)
        return node

    def result(self, node: Node, shape: Any) -> Traced:
        """The tensor of this shape that a new node is; its last two dimensions are those of the node."""
        return Traced(self, shape, plane=Plane.of(self.add(node)), dtype=self.result_dtype)

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operator with at least one traced argument."""
        raise NotImplementedError

    def number(self, x: Any) -> Tensor:
        """A number as a tensor of no dimension; tensors as they are."""
        return x if isinstance(x, Tensor) else torch.tensor(x, dtype=self.dtype, device=self.device)

    def constant(self, tensor: Tensor) -> Traced:
        """A map [n, C, H, W] (or [n, C, W]) that does not depend on the image."""
        tensor = tensor.detach().to(self.device, self.dtype)
        if not bool(tensor.any()):
            index = torch.zeros(1, *tensor.shape[1:], dtype=torch.int64)
            return Traced(self, tensor.shape, index=index)
        image = tensor.unsqueeze(2) if tensor.dim() == 3 else tensor
        flat = image.reshape(image.shape[0], -1, *image.shape[-2:])
        if bool((flat == flat[:1]).all()):
            flat = flat[:1]
        node = ConstantNode("constant", flat.shape[1], Box(0, flat.shape[2], 0, flat.shape[3]), flat)
        return self.result(node, tensor.shape)

    def vector(self, values: Tensor) -> Node:
        """Numbers [n or 1, C] that are the same at every pixel."""
        if values.shape[0] > 1 and bool((values == values[:1]).all()):
            values = values[:1]
        tensor = values.detach().to(self.device, self.dtype)
        return self.add(ConstantNode("constant", values.shape[1], Box(0, 1, 0, 1), tensor))

    def clean(self, plane: Plane, reach: Box) -> list[Piece]:
        """The pieces of a plane, read within ``reach``: where a cropped one would show what was cropped, a copy."""
        pieces = []
        for piece in plane.pieces:
            seen = piece.node.extent.moved(-piece.dy, -piece.dx) & reach
            if not piece.window.holds(seen):
                link = Link(piece.node, piece.dy, piece.dx, piece.channels, list(range(len(piece.channels))))
                copy = PointNode(f"{self.name()} (crop)", len(piece.channels), piece.window, Function("copy"), [[link]])
                piece = Piece(self.add(copy), 0, 0, list(range(copy.channels)), piece.places, piece.window)
            pieces.append(piece)
        return pieces

    def copied(self, links: list[Link], channels: int) -> Link:
        """An operand as channels 0, 1, ... of one node, of its own where they are not that already."""
        every, box = list(range(channels)), Box(0, self.size[0], 0, self.size[1])
        link = links[0]
        whole = len(links) == 1 and (link.dy, link.dx, link.channels, link.rows) == (0, 0, every, every)
        if (
            whole
            and (link.node.channels, link.node.extent) == (channels, box)
            and not isinstance(link.node, ConstantNode)
        ):
            return link
        copy = PointNode(self.name(), channels, box, Function("copy"), [links])
        return Link(self.add(copy), 0, 0, every, list(every))

    def operand(self, plane: Plane) -> list[Link]:
        """The links with which a pointwise operation reads a whole plane, zeros included."""
        parts = plane.parts()
        if len(parts) > 1:  # channels that are put together of several rectangles
            one, *others = (self.operand(part) for part in parts)
            every = list(range(plane.channels))
            for other in others:
                total = PointNode(self.name(), plane.channels, plane.box, Function("add"), [one, other])
                one = [Link(self.add(total), 0, 0, every, list(every))]
            return one
        links = [piece.link() for piece in self.clean(plane, plane.box)]
        covered = {place for link in links for place in link.rows}
        empty = [place for place in range(plane.channels) if place not in covered]
        if empty:
            zero = self.vector(torch.zeros(1, len(empty)))
            links.append(Link(zero, 0, 0, list(range(len(empty))), empty))
        return links
