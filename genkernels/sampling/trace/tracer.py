"""Trace of a model: its forward pass on a tensor that records the operators applied to it.

The image handed to the model is a tensor without storage. Every operator of PyTorch that meets it, whatever module,
function or method it came from, ends in ``__torch_dispatch__``: there it becomes a node of the graph, or rearranges
channels. Everything else, masks multiplied onto weights, embeddings of a condition, is computed as usual. So the
model's Python code runs unchanged, conditions and loops included, and the table of operators stays short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...distributions import Distribution
from ...ops.core.torch_internals import TorchDispatchMode, name_of, tree_flatten, tree_map
from ..program.instructions import Function
from .graph import Box, Graph, ImageNode, NotTraceable, PointNode
from .operator_table import OperatorTable
from .places import pointwise
from .rearranging import REARRANGING, TAKE_INDICES, meta, quickly, rearrange
from .recording import Recording
from .tensor import Pending, Traced
from .view import Plane

_SHAPE_ONLY = """
    zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty
"""
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


class Tracer(Recording):
    """One trace: every operator that meets a traced tensor comes to :meth:`run`."""

    def __init__(
        self,
        operators: OperatorTable,
        dtype: torch.dtype,
        device: torch.device,
        size: tuple[int, int],
        model: nn.Module | None,
    ) -> None:
        super().__init__(dtype, device, size, model, trace.__code__)
        self.operators = operators

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
            return pending.follow(self, func, args, kwargs)
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
            planes = None if kwargs else quickly(self, name, *args)
            if planes is None:
                return rearrange(self, func, args, kwargs)
            return planes
        if name == "aten::_to_copy":
            return self._to_dtype(args[0], kwargs.get("dtype") or args[0].dtype)
        if name.endswith("_") and not isinstance(args[0], Traced):
            raise self._written_outside(name)
        raise NotTraceable(f"layer {self.name()!r}: the sampler does not know the operator {name}")

    def follow_by_table(self, pending: Pending, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operator on a pending tensor, by the table."""
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
            made = func(*tree_map(meta, args), **tree_map(meta, kwargs))
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
                return pointwise(self, self.operators.compute[name], tensors, args, kwargs)
            return self.operators.compute[name](self, *args, **kwargs)
        finally:
            self.result_dtype = before

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

    def _sequence_first(self, x: Any, *dims: Any) -> Any:
        """[T, N, C], where [N, T, C] or [N, C, T] is turned so."""
        if x.dim() != 3 or (order := self.order(3, *dims))[1] != 0:
            return None
        return self.operators.compute["sequence_first"](self, x.permute(0, order[0], order[2]))


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
