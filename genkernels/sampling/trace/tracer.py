"""Trace of a model: its forward pass on a tensor that records the operators applied to it.

The image handed to the model is a tensor without storage. Every operator of PyTorch that meets it, whatever module,
function or method it came from, ends in ``__torch_dispatch__``: there it becomes a node of the graph, or rearranges
channels. Everything else, masks multiplied onto weights, embeddings of a condition, is computed as usual. So the
model's Python code runs unchanged, conditions and loops included, and the table of operators stays short.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...distributions import Distribution
from ...ops.core.torch_internals import TorchDispatchMode, module_call_code, name_of, tree_flatten, tree_map
from ..program.instructions import Function
from .graph import Box, ConstantNode, Graph, ImageNode, Link, Node, NotTraceable, PointNode
from .tensor import Pending, Traced
from .view import Numbering, Piece, Plane

Handler = Callable[..., Any]

# Folders of PyTorch and of this package.
NOT_THE_USERS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[2]))


class OperatorTable:
    """The operators that compute, by name without the overload ("aten::relu"): how each becomes nodes of the graph.

    A handler is called as ``handler(tracer, *arguments of the operator)``.

    Attributes:
        compute: operators that return their result; their variants with an underscore are derived.
        in_place: operators that write into their first argument and have no variant that returns its result.
        pending: operators on tensors whose elements are none of nodes, see :class:`Pending`.
    """

    def __init__(self) -> None:
        self.compute: dict[str, Handler] = {}
        self.pending: dict[str, Handler] = {}
        self.in_place: dict[str, Handler] = {}

    def handles(self, *names: str) -> Callable[[Handler], Handler]:
        """Registers a function as the handler of these operators."""

        def register(handler: Handler) -> Handler:
            self.compute.update(dict.fromkeys(names, handler))
            return handler

        return register

    def of_pending(self, *names: str) -> Callable[[Handler], Handler]:
        """Registers a function as the handler of these operators where an argument is pending."""

        def register(handler: Handler) -> Handler:
            self.pending.update(dict.fromkeys(names, handler))
            return handler

        return register

    def writes(self, name: str) -> Callable[[Handler], Handler]:
        """Registers a function that returns what the first argument of an operator becomes."""

        def register(handler: Handler) -> Handler:
            self.in_place[name] = handler
            return handler

        return register


_REARRANGING = """
    slice select narrow view _unsafe_view reshape permute transpose t unsqueeze squeeze expand cat stack split
    split_with_sizes unbind chunk constant_pad_nd clone alias detach contiguous index index_select unflatten movedim
    swapaxes repeat lift_fresh view_as flatten
"""
_SHAPE_ONLY = """
    zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty
"""
REARRANGING = {f"aten::{name}" for name in _REARRANGING.split()}
SHAPE_ONLY = {f"aten::{name}" for name in _SHAPE_ONLY.split()}
_POINTWISE = """
    relu tanh sigmoid exp silu gelu elu leaky_relu softplus hardtanh clamp clamp_min clamp_max neg add sub rsub mul div
    reciprocal
    abs sign sgn sqrt rsqrt log log1p expm1 sin cos erf pow maximum minimum addcmul addcdiv lerp
    _prelu_kernel mish hardsigmoid hardswish celu threshold hardshrink softshrink
    lt le gt ge eq ne where masked_fill
    bitwise_and bitwise_or bitwise_xor bitwise_not logical_and logical_or logical_xor logical_not
"""
_REDUCING = """
    sum mean amax amin max min
"""
POINTWISE = {f"aten::{name}" for name in _POINTWISE.split()}
ANY_DTYPE = POINTWISE | {f"aten::{name}" for name in _REDUCING.split()}  # results have the dtype that PyTorch says
WHOLE = (torch.int64, torch.int32, torch.int16)
TAKE_INDICES = {"aten::index", "aten::index_select"}
FOLDING = {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::clone", "aten::detach", "aten::alias"}
TAKE_SIZES = {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::expand"}


class Tracer:
    """One trace: the nodes so far, and where in the model it is."""

    def __init__(
        self,
        operators: OperatorTable,
        dtype: torch.dtype,
        device: torch.device,
        size: tuple[int, int],
        model: nn.Module | None,
    ) -> None:
        self.operators, self.dtype, self.device = operators, dtype, device
        self.nodes: list[Node] = []
        self.numbering = Numbering(self.add)
        self.operator = ""
        self.result_dtype = dtype  # of the operator at hand
        self.size = size
        self.names = {id(module): (name, module) for name, module in model.named_modules()} if model is not None else {}

    def name(self) -> str:
        """The innermost module by name, and the operator unless that module is little else."""
        path, module = self._calling()
        is_leaf = module is not None and not any(True for _ in module.children())
        if path and (is_leaf or self.operator.startswith("genkernels::")):
            return path
        operator = self.operator.removeprefix("aten::")
        return f"{path} ({operator})" if path else operator

    def _calling(self) -> tuple[str, nn.Module | None]:
        """The innermost module of the model that is being called, by name: read from this thread's stack, so that the
        model needs no hooks, which calls of other threads would run into."""
        frame = sys._getframe()
        while frame.f_back is not None and frame.f_code is not trace.__code__:
            if frame.f_code is module_call_code and id(frame.f_locals.get("self")) in self.names:
                return self.names[id(frame.f_locals["self"])]
            frame = frame.f_back
        return "", None

    def _line(self) -> str | None:
        """The innermost line of code that is neither PyTorch's nor this package's."""
        frame = sys._getframe()
        while frame.f_back is not None and frame.f_code is not trace.__code__:
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
        try:
            return self._run(func, args, kwargs)
        except NotTraceable as error:
            error.line = error.line or self._line()
            raise

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self.operator = name_of(func)
        if kwargs.get("out") is not None:
            raise NotTraceable(f"layer {self.name()!r}: {name_of(func)} with out=, which the sampler does not follow")
        pending = next((a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Pending)), None)
        if pending is not None:
            return self._of_pending(pending, args, kwargs)
        if name_of(func) in SHAPE_ONLY:
            plain = tree_map(self._without_content, (args, kwargs))
            return func(*plain[0], **plain[1])
        name = self.operator
        if name in TAKE_INDICES and any(isinstance(a, Traced) for a in tree_flatten(args[1:])[0]):
            return self.operators.compute[f"{name}.lookup"](self, *args, **kwargs)
        if name in self.operators.in_place or (name.endswith("_") and name[:-1] in self.operators.compute):
            return self._in_place(name, args, kwargs)
        if name in self.operators.compute:
            return self._compute(name, self._dtype_of_result(func, args, kwargs), args, kwargs)
        if name == "aten::constant_pad_nd" and args[2:] and args[2] != 0:
            x, pad, value = args
            border = torch.constant_pad_nd(torch.zeros(1, *x.shape[1:], dtype=x.dtype), pad, value)
            return torch.constant_pad_nd(x, pad) + border.to(self.device)
        if name in ("aten::transpose", "aten::permute") and (turned := self._sequence_first(*args)) is not None:
            return turned
        if name in REARRANGING:
            planes = None if kwargs else self._quickly(name, *args)
            if planes is None:
                return self._rearrange(func, args, kwargs)
            return planes
        if name == "aten::_to_copy":
            return self._to_dtype(args[0], kwargs.get("dtype") or args[0].dtype)
        if name.endswith("_") and not isinstance(args[0], Traced):
            raise self._written_outside(name)
        raise NotTraceable(f"layer {self.name()!r}: the sampler does not know the operator {name}")

    def _of_pending(self, pending: Pending, args: Any, kwargs: dict[str, Any]) -> Any:
        name = self.operator
        in_place = name.endswith("_") and name[:-1] in self.operators.pending
        handler = self.operators.pending.get(name[:-1] if in_place else name)
        if handler is None:
            raise NotTraceable(f"layer {self.name()!r}: {name} of {pending.what}")
        if not in_place:
            return handler(self, *args, **kwargs)
        self.operator = name[:-1]
        vars(args[0]).update(vars(handler(self, *args, **kwargs)))
        return args[0]

    def _without_content(self, a: Any) -> Any:
        return torch.empty((), dtype=a.dtype, device=self.device).expand(a.shape) if isinstance(a, Traced) else a

    def _to_dtype(self, x: Traced, dtype: torch.dtype) -> Traced:
        if dtype == torch.bool != x.dtype:
            return x != 0  # type: ignore[return-value]
        if dtype in (x.dtype, self.dtype) or (dtype in WHOLE and not x.dtype.is_floating_point):
            return x.as_dtype(dtype)
        raise NotTraceable(
            f"layer {self.name()!r}: changes the dtype from {x.dtype} to {dtype}"
            + ("" if dtype not in WHOLE else "; a model that looks numbers up takes scale='index'")
        )

    def _dtype_of_result(self, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.dtype:
        name = name_of(func)
        if name in ANY_DTYPE:
            made = func(*tree_map(_meta, args), **tree_map(_meta, kwargs))
            dtype: torch.dtype = (made[0] if isinstance(made, (tuple, list)) else made).dtype
            return self.dtype if dtype.is_floating_point else dtype
        given = [a.dtype for a in args if isinstance(a, Traced)]
        if name.startswith("aten::") and name != "aten::embedding" and not all(d.is_floating_point for d in given):
            raise NotTraceable(f"layer {self.name()!r}: {name} of {given[0]}; turn it into {self.dtype} first")
        return self.dtype

    def _compute(self, name: str, dtype: torch.dtype, args: Any, kwargs: dict[str, Any]) -> Any:
        """A handler's result; functions channel by channel see the channels where they expect them."""
        tensors = [a for a in args if isinstance(a, Tensor) and a.dim()]
        before, self.result_dtype = self.result_dtype, dtype
        try:
            if name in POINTWISE:
                return self._pointwise(name, tensors, args, kwargs)
            return self.operators.compute[name](self, *args, **kwargs)
        finally:
            self.result_dtype = before

    def _pointwise(self, name: str, tensors: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        handler = self.operators.compute[name]
        shape = torch.broadcast_shapes(*(a.shape for a in tensors))
        of_images = all(a.dim() == 3 and a.memory[0].dim() > 3 for a in tensors if isinstance(a, Traced))
        if of_images and tuple(shape[1:]) == self.size:  # one channel, y[:, 0], and not a signal
            images = [_one_channel(a, shape) for a in args]
            self.operator = name
            return handler(self, *images, **kwargs).squeeze(1)
        tokens = self._token_dimension(shape, tensors)
        if tokens is not None:
            images = [self._unfolded(a, shape, tokens) for a in args]
            self.operator = name
            return self._pointwise_result(handler(self, *images, **kwargs), shape, tokens)
        if not any(isinstance(a, Traced) and a.ends_in_channels() for a in tensors):
            return handler(self, *args, **kwargs)

        def channels_first(a: Any) -> Any:
            if not isinstance(a, Tensor) or a.dim() == 0:
                return a
            if isinstance(a, Traced):
                return self.channels_first(a if a.shape == shape else a.expand(shape))
            full = a.reshape((1,) * (max(4, len(shape)) - a.dim()) + tuple(a.shape))
            return full.movedim((1, 2), (-2, -1))

        if len(shape) == 2 and any(not isinstance(a, Traced) and a.shape[:-1].numel() > 1 for a in tensors):
            raise NotTraceable(f"layer {self.name()!r}: {name} of a tensor for each pixel of the batch's images")
        moved = [channels_first(a) for a in args]
        self.operator = name
        return handler(self, *moved, **kwargs).movedim((-2, -1), (1, 2)).reshape(shape)

    def _token_dimension(self, shape: torch.Size, tensors: list[Tensor]) -> int | None:
        """Which dimension of tensors [N, H * W, C] or [N, C, H * W] the pixels are; None for other tensors."""
        height, width = self.size
        if len(shape) != 3 or height == 1:
            return None
        for dim in (1, 2):
            if shape[dim] == height * width and all(
                _has_pixels(a, dim, height, width) for a in tensors if isinstance(a, Traced) and a.shape == shape
            ):
                return dim
        return None

    def _unfolded(self, a: Any, shape: torch.Size, dim: int) -> Any:
        """[N, H * W, C] or [N, C, H * W] as [N, C, H, W]; what broadcasts to it likewise."""
        if not isinstance(a, Tensor) or a.dim() == 0:
            return a
        a = a.reshape((1,) * (3 - a.dim()) + tuple(a.shape))
        if a.shape[dim] == 1:
            a = (
                a.expand(*shape)
                if isinstance(a, Traced)
                else a.expand(-1, *(shape[d] if d == dim else -1 for d in (1, 2)))
            )
        a = a.transpose(1, 2) if dim == 1 else a
        return a.reshape(*a.shape[:2], *self.size)

    def _pointwise_result(self, result: Any, shape: torch.Size, dim: int) -> Any:
        folded = result.reshape(*result.shape[:2], -1)
        return (folded.transpose(1, 2) if dim == 1 else folded).reshape(shape)

    def channels_first(self, x: Any) -> Any:
        """[N, H, W, ..., C], [N, W, C] or [N * H * W, C] as [N, ..., C, H, W]."""
        if x.dim() == 2:
            height, width = self.size
            pixels = x.as_index().shape[0]
            if pixels != height * width:
                raise NotTraceable(f"layer {self.name()!r}: {pixels} rows for an image of {height} x {width} pixels")
            return x.view(-1, height, width, x.shape[1]).movedim(-1, 1)
        return (x.unsqueeze(1) if x.dim() == 3 else x).movedim((1, 2), (-2, -1))

    def as_image(self, x: Any) -> Any:
        """[N, K, H, W], [N, H, W], [N, W], [N, H * W] or [N * H * W] as [N, K, H, W] of the image's size."""
        height, width = self.size
        if x.dim() > 3:
            return x.reshape(x.shape[0], -1, *x.shape[-2:])
        if x.dim() == 3:
            return x.unsqueeze(1 if tuple(x.shape[1:]) == self.size or x.memory[0].dim() > 3 else 2)
        each = x.as_index().numel()
        if each % (height * width):
            raise NotTraceable(f"layer {self.name()!r}: {each} numbers for an image of {height} x {width} pixels")
        return x.view(-1, each // (height * width), height, width)

    def _in_place(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        target = args[0]
        if not isinstance(target, Traced):
            raise self._written_outside(name)
        if any(isinstance(a, Traced) and target.crosses(a) for a in args):
            raise NotTraceable(
                f"layer {self.name()!r}: {name} reads other elements of the memory that it writes, so that the result "
                "is left to chance; clone() what it reads"
            )
        if name in self.operators.in_place:
            result = self.operators.in_place[name](self, *args, **kwargs)
        else:
            self.operator = name[:-1]  # read by handlers of several operators
            result = self._compute(self.operator, target.dtype, args, kwargs)
        if result.shape != target.shape:
            result = result.expand(target.shape)
        target.change(result)
        return target

    def _written_outside(self, name: str) -> NotTraceable:
        return NotTraceable(
            f"layer {self.name()!r}: {name} writes what depends on the image into a tensor made without it; put the "
            "result together with torch.cat or torch.stack (a one-hot vector with torch.nn.functional.one_hot)"
        )

    def _quickly(self, name: str, x: Any, *args: Any) -> Any:
        """Common operators without indices, which are slow where images are large; None for all others."""
        if not isinstance(x, Traced) or x.dim() != 4:
            return None
        try:
            x.as_plane()
        except NotTraceable:  # tokens of several heads, say
            return None
        batch, channels, height, width = x.shape
        sizes = (batch, channels, height, width)
        results: list[Plane] = []
        if name == "aten::expand" and channels == 1 != args[0][1] and _only_channels(args[0], sizes):
            results = [x.as_plane().repeated(args[0][1])]
        elif name == "aten::split" and len(args) == 2 and args[1] in (1, -3):
            starts = range(0, channels, args[0])
            results = [x.as_plane().taken(start, min(start + args[0], channels)) for start in starts]
        elif name == "aten::constant_pad_nd" and len(args[0]) <= 4 and args[1:] in ((), (0,)):
            results = [x.as_plane().padded(*args[0])]
        elif name == "aten::slice" and len(args) == 3:
            dim = args[0] % 4
            start, stop, _ = slice(*args[1:]).indices(sizes[dim])
            if dim == 1:
                results = [x.as_plane().taken(start, stop)]
            elif dim > 1:
                crop = (-start, stop - sizes[dim])
                results = [x.as_plane().padded(*(crop if dim == 3 else (0, 0, *crop)))]
        if not results or any(min(p.channels, p.height, p.width) < 1 for p in results):
            return None
        if name == "aten::constant_pad_nd":
            (p,) = results
            return Traced(self, (batch, p.channels, p.height, p.width), plane=p, dtype=x.dtype)
        strides = x.stride() if name != "aten::expand" else (x.stride(0), 0, *x.stride()[2:])
        made = [
            Traced(self, (batch, p.channels, p.height, p.width), plane=p, strides=strides, dtype=x.dtype)
            for p in results
        ]
        for k, traced in enumerate(made):
            if name == "aten::expand":
                traced.views(x, lambda p=results[0]: x.as_index().expand(1, p.channels, -1, -1))  # type: ignore[misc]
            elif name == "aten::split":
                traced.views(x, lambda k=k: x.as_index().split(args[0], 1)[k])  # type: ignore[misc]
            else:
                traced.views(x, lambda: x.as_index()[(slice(None),) * dim + (slice(*args[1:]),)])
        return made if name == "aten::split" else made[0]

    def _sequence_first(self, x: Any, *dims: Any) -> Any:
        """[T, N, C], where [N, T, C] or [N, C, T] is turned so."""
        if x.dim() != 3:
            return None
        order = [0, 1, 2]
        if len(dims) == 2:
            a, b = (d % 3 for d in dims)
            order[a], order[b] = order[b], order[a]
        else:
            order = [d % 3 for d in dims[0]]
        if order[1] != 0:
            return None
        return self.operators.compute["sequence_first"](self, x.permute(0, order[0], order[2]))

    def _rearrange(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Carries the operator out on the indices; the true shapes come from PyTorch's meta device."""
        shapes = func(*tree_map(_meta, args), **tree_map(_meta, kwargs))
        sources = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Traced)]
        folded = sources[0].as_index().shape[0]
        batch = sources[0].shape[0] // folded

        def as_index(a: Any) -> Any:
            if isinstance(a, Traced):
                return a.as_index()
            if isinstance(a, Tensor) and self.operator not in TAKE_INDICES:
                return self.constant(a).as_index()
            return a.cpu() if isinstance(a, Tensor) else a

        several = not isinstance(shapes, Tensor)
        moves = NotTraceable(
            f"layer {self.name()!r}: {self.operator} mixes the images of a batch, or moves them from the first "
            "dimension"
        )
        folds = self.operator in FOLDING  # rows stay in order, so those of an image stay together
        if any(not shape.dim() or shape.shape[0] % batch for shape in (shapes if several else [shapes])):
            raise moves
        if not folds and any(s.shape[0] != batch * folded for s in (shapes if several else [shapes])):
            raise moves
        if self.operator in TAKE_SIZES and args[1][0] > 0:
            args = (args[0], [args[1][0] // batch, *args[1][1:]], *args[2:])

        def carry_out() -> Any:
            return func(*tree_map(as_index, args), **tree_map(as_index, kwargs))

        def wrap(index: Tensor, shape: Tensor, viewed: Callable[[], Tensor]) -> Traced:
            if index.shape != (shape.shape[0] // batch, *shape.shape[1:]):
                raise moves
            result = Traced(self, shape.shape, index=index, strides=shape.stride(), dtype=shape.dtype)
            if index.untyped_storage().data_ptr() == sources[0].as_index().untyped_storage().data_ptr():
                result.views(sources[0], viewed)
            return result

        try:
            indices = carry_out()
        except RuntimeError as error:  # what the whole batch can do, and an image of it alone cannot
            raise moves from error
        if not several:
            return wrap(indices, shapes, carry_out)
        return [
            wrap(index, shape, lambda k=k: carry_out()[k])  # type: ignore[misc]
            for k, (index, shape) in enumerate(zip(indices, shapes, strict=True))
        ]

    # --- for the handlers ---

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
        if len(links) == 1 and (link.dy, link.dx, link.channels, link.rows) == (0, 0, every, every):
            if link.node.channels == channels and link.node.extent == box and not isinstance(link.node, ConstantNode):
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


class _NoRandomNumbers(TorchDispatchMode):
    """Refuses operators that draw random numbers, in this thread."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotTraceable("the model draws random numbers of its own, which a program would draw once for all")
        return func(*args, **(kwargs or {}))


class _WholeFunctions(TorchFunctionMode):
    """Takes functions to their handlers before they become operators: ``one_hot`` would look into the numbers, which a
    trace has not; instance norm arrives as batch norm of other images, and products without rows and columns.
    """

    HANDLERS: ClassVar[dict[Any, str]] = {
        torch.nn.functional.one_hot: "one_hot",
        torch.nn.functional.instance_norm: "instance_norm",
        torch.einsum: "einsum",
        torch.nn.functional.scaled_dot_product_attention: "scaled_dot_product_attention",
        torch.nn.functional.multi_head_attention_forward: "multi_head_attention_forward",
    }

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self.HANDLERS.get(func)
        if name is not None and any(isinstance(a, Traced) for a in tree_flatten(args)[0]):
            self.tracer.operator = name
            return self.tracer.operators.compute[name](self.tracer, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _only_channels(sizes: Sequence[int], old: Sequence[int]) -> bool:
    """Whether an expansion of [N, 1, H, W] leaves all but the channels as they are."""
    return len(sizes) == 4 and sizes[1] > 0 and all(sizes[k] in (-1, old[k]) for k in (0, 2, 3))


def _has_pixels(a: Traced, dim: int, height: int, width: int) -> bool:
    index = a.as_index()
    image = (index.transpose(1, 2) if dim == 1 else index).unflatten(2, (height, width))
    try:
        a.tracer.numbering.plane(image, "")
    except NotTraceable:
        return False
    return True


def _one_channel(a: Any, shape: torch.Size) -> Any:
    """A tensor that broadcasts to [N, H, W] as one that broadcasts to [N, 1, H, W]; numbers as they are."""
    if not isinstance(a, Tensor) or a.dim() == 0:
        return a
    if isinstance(a, Traced):
        return (a if a.shape == shape else a.expand(shape)).unsqueeze(1)
    return a.reshape((1,) * (3 - a.dim()) + tuple(a.shape)).unsqueeze(1)


def _meta(a: Any) -> Any:
    if not isinstance(a, Tensor):
        return a
    return torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="meta")


def trace(
    function: Callable[[Tensor], Tensor],
    model: nn.Module | None,
    shape: tuple[int, int, int, int],
    distribution: Distribution,
    dtype: torch.dtype,
    image_dtype: torch.dtype,
    device: torch.device,
    operators: OperatorTable,
) -> Graph:
    """The graph of ``function``, from an image [N, C, H, W] to logits [N, levels, C, H, W]; or what else a distribution
    predicts, [N, channels, predictions, H, W] (or, if there is one, without it).

    Raises:
        NotTraceable: with the name of the layer and the reason.
    """
    batch, colours, height, width = shape
    tracer = Tracer(operators, dtype, device, (height, width), model)
    image = tracer.add(ImageNode("image", colours, Box(0, height, 0, width)))
    for name, module in model.named_modules() if model is not None else ():
        if isinstance(module, torch.jit.ScriptModule):
            layer = f"layer {name!r}" if name else "the model"
            raise NotTraceable(
                f"{layer} is TorchScript, which cannot be followed; take the Python model it was made of"
            )
    try:
        with torch.no_grad(), _NoRandomNumbers(), _WholeFunctions(tracer):
            logits = function(Traced(tracer, shape, plane=Plane.of(image), dtype=image_dtype))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # most often a tensor in the model that fits a batch of another size alone
        reason = str(error).strip().split("\n")[0]
        raise NotTraceable(
            f"the model cannot be run on a batch of {batch} images of {height} x {width}: {tracer.operator} says "
            f"{reason}"
        ) from error
    tracer.operator = "logits"
    channels, predictions = distribution.channels, distribution.predictions
    expected = [[batch, channels, predictions, height, width]]
    if predictions == 1:
        expected.append([batch, channels, height, width])
    if not isinstance(logits, Traced):
        raise NotTraceable(f"logits: expected a tensor computed from the image; got {type(logits).__name__}")
    if list(logits.shape) not in expected:
        forms = " or ".join("[N, " + ", ".join(map(str, form[1:])) + "]" for form in expected)
        raise NotTraceable(f"logits: expected {forms}; got [N, {', '.join(map(str, logits.shape[1:]))}]")
    index = logits.as_index().reshape(1, channels, predictions, height, width).transpose(1, 2)
    plane = tracer.numbering.plane(index, "logits")
    head = PointNode("logits", predictions * channels, plane.box, Function("copy"), [tracer.operand(plane)])
    return Graph([*tracer.nodes, head], image, head, height, width, distribution)
