"""The traced tensor: without storage, a record of its elements and of the tensors that share its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ...ops.core.torch_internals import new_wrapper_tensor, no_torch_function, tree_flatten
from .graph import NotTraceable
from .view import Numbering, Plane


class Recorder(Protocol):
    """The trace that a tensor belongs to: it runs every operator that meets the tensor."""

    dtype: torch.dtype
    device: torch.device
    size: tuple[int, int]
    numbering: Numbering

    def name(self) -> str: ...

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any: ...


class Traced(Tensor):
    """A tensor without storage; its elements are those of nodes, recorded as a plane, an index, or both.

    Attributes:
        memory: the tensors that share their elements, in the order in which they were made: the first has memory of its
            own, each other is a view of an earlier one. Where one is changed in place, all are.
        viewed: what makes the index of a view, from its base's.
    """

    tracer: Recorder
    _plane: Plane | None
    _index: Tensor | None
    memory: list[Traced]
    viewed: Callable[[], Tensor] | None

    @staticmethod
    def __new__(
        cls,
        tracer: Recorder,
        shape: Any,
        plane: Plane | None = None,
        index: Tensor | None = None,
        strides: Any = None,
        dtype: torch.dtype | None = None,
    ) -> Traced:
        self = new_wrapper_tensor(cls, shape, strides=strides, dtype=dtype or tracer.dtype, device=tracer.device)
        self.tracer, self._plane, self._index, self.memory, self.viewed = tracer, plane, index, [self], None
        return self

    def as_dtype(self, dtype: torch.dtype) -> Traced:
        """The same numbers, which the program keeps in its one dtype anyway; memory of its own."""
        return Traced(self.tracer, self.shape, plane=self._plane, index=self._index, dtype=dtype)

    def views(self, base: Traced, viewed: Callable[[], Tensor]) -> None:
        """From now on this is a view of ``base``."""
        self.memory, self.viewed = base.memory, viewed
        self.memory.append(self)

    def crosses(self, other: Traced) -> bool:
        """Whether some elements of both are the same in memory, at different places of the two."""
        if other is self or other.memory is not self.memory:
            return False
        kept = [tensor._index for tensor in self.memory]
        first, *views = self.memory
        first._index = torch.arange(first.as_index().numel()).view(first.as_index().shape)
        for view in views:
            assert view.viewed is not None
            view._index = view.viewed()
        own, others = self.as_index(), other.as_index()
        for tensor, index in zip(self.memory, kept, strict=True):
            tensor._index = index
        return not torch.equal(own, others) and bool(torch.isin(own, others).any())

    def change(self, changed: Traced) -> None:
        """Takes the elements of another tensor of this shape; so do those that share them."""
        if len(self.memory) == 1:
            self._plane, self._index = changed._plane, changed._index
            return
        # The indices of views are views of one index, so that PyTorch changes them all.
        first, *views = self.memory
        first._index = first.as_index().clone()
        for view in views:
            assert view.viewed is not None
            view._index = view.viewed()
        self.as_index().copy_(changed.as_index())
        for tensor in self.memory:
            tensor._plane = None

    __torch_function__ = no_torch_function

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        flat, _ = tree_flatten((args, kwargs or {}))
        return next(a for a in flat if isinstance(a, Traced)).tracer.run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Traced({list(self.shape)})"

    def as_plane(self) -> Plane:
        """As channels: dimensions between the batch and the last two count as one; [N, C, W] is an image of one row."""
        if self._plane is None:
            assert self._index is not None
            index = self._index.unsqueeze(2) if self._index.dim() == 3 else self._index
            if len(index) > 1:
                raise NotTraceable(
                    f"layer {self.tracer.name()!r}: the first dimension is that of the images and of something else, "
                    "which linear layers and functions of [N * H * W, C] may have alone"
                )
            self._plane = self.tracer.numbering.plane(index, self.tracer.name())
        return self._plane

    def ends_in_channels(self) -> bool:
        """Whether the last dimension is not that of columns: [N, H, W, C] and its like."""
        if self._plane is None and self.dim() > 2:
            if tuple(self.shape[1:3]) == self.tracer.size != tuple(self.shape[-2:]):
                return True  # of an image of one column [N, H, 1, 1] is one of many channels, too
            try:
                self.as_plane()
            except NotTraceable:
                return True
        return self.dim() == 2

    def as_index(self) -> Tensor:
        """int64 [1, *shape[1:]], or [k, *shape[1:]] where images and k things of each are the first dimension."""
        if self._index is None:
            assert self._plane is not None
            self._index = self.tracer.numbering.index(self._plane).reshape(1, *self.shape[1:])
        return self._index


class Pending(Traced):
    """A tensor whose elements are none of nodes yet: the operators that take it are those of ``OperatorTable.pending``.

    Attributes:
        what: it is, for people.
    """

    what: ClassVar[str]

    def follow(self, tracer: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operator at hand, of which this is an argument."""
        return tracer.follow_by_table(self, args, kwargs)

    def as_plane(self) -> Plane:
        raise self._refusal()

    def as_index(self) -> Tensor:
        raise self._refusal()

    def _refusal(self) -> NotTraceable:
        return NotTraceable(f"layer {self.tracer.name()!r}: an operation on {self.what}")
