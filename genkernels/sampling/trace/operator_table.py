"""The table of operators: what becomes of each that meets a traced tensor. Handlers register themselves in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Handler = Callable[..., Any]


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
