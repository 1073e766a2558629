"""An operator that is differentiable in every way that PyTorch knows: backward, forward mode, ``torch.func``.

``torch.library.register_autograd`` gives backward alone: under nested ``torch.func`` transforms and in forward mode
its operators raise or, worse, silently return zero. Here a call goes one of two ways, with the same derivatives:

* through the dispatcher, where ``torch.compile``, transforms, modes, autocast and the profiler watch it,
* as a prepared call (prepared_call.py), where nothing does.

The formulas call other :class:`DifferentiableOp` objects, so derivatives nest to any order in any mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .prepared_call import (
    MOST_KEPT,
    Key,
    PreparedCall,
    are_plain_tensors,
    function_of_prepared_calls,
    nothing_watches,
    one_for_each,
)
from .torch_internals import (
    any_requires_grad,
    apply_of,
    below_autograd,
    below_autograd_keys,
    dispatch_modes,
    forward_mode_is_on,
    jvp_levels,
    name_of,
    tensor_count,
    transforms_are_active,
)

_Tensors = tuple[Tensor | None, ...]


def _refuse_nested_forward_mode(name: str) -> None:
    """PyTorch drops the outer tangent of any autograd.Function there and returns a wrong number without a word."""
    if jvp_levels() > 1:
        raise NotImplementedError(
            f"{name}: forward mode inside forward mode is not supported; take one of the two derivatives in reverse "
            "(torch.func.hessian does)"
        )


def may_need_derivative(*inputs: Any) -> bool:
    """Whether a derivative of what is computed of these may be asked for.

    Always of a traced program, which is the same with and without gradients.
    """
    if torch.jit.is_tracing():
        return True
    if not torch.compiler.is_compiling() and (transforms_are_active() or forward_mode_is_on()):
        return True
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs)


class WithNeeds(NamedTuple):
    """Options of a backward operator."""

    options: Any
    """Those of the operator that it belongs to."""
    needs: Sequence[bool]
    """Which gradients are wanted."""


def with_needs(options: Callable[..., Any]) -> Callable[..., WithNeeds]:
    """What makes the options of a backward operator, by what makes the others."""
    return lambda *values: WithNeeds(options(*values[:-1]), values[-1])


class DifferentiableOp:
    """An operator of ``torch.ops.genkernels`` with its derivatives; call it as the operator itself.

    Args:
        library: the library in which op was defined.
        op: the operator overload, positional arguments only: tensors first, then options.
        options: makes of the options what the formulas find as ctx.options; a NamedTuple of the schema's names.
        setup_context: (ctx, tensors, options, output) -> the tensors to save; other values go on ctx.
        backward: (ctx, needs_input_grad, *grad_outputs) -> a gradient or None for each tensor, () for None of all. A
            grad_output that nobody used is None.
        jvp: (ctx, *tangents) -> the tangent of each output; a tangent is None where the input has none.
        foldable: True where the first input has a batch dimension in front that can take up a vmap dimension when
            no other input is mapped. Everything else is mapped one sample at a time.

    Attributes:
        kept: prepared calls that hold for every call with the same key.
    """

    def __init__(
        self,
        library: torch.library.Library,
        op: Any,
        *,
        options: Callable[..., Any] = lambda *options: options,
        setup_context: Callable[[Any, tuple[Any, ...], Any, Any], _Tensors],
        backward: Callable[..., _Tensors],
        jvp: Callable[..., Any],
        foldable: bool,
    ) -> None:
        self._op, self._options, self._tensors, self._foldable = op, options, tensor_count(op), foldable

        def split_and_set_up(ctx: Any, inputs: tuple[Any, ...], output: Any) -> _Tensors:
            ctx.options = options(*inputs[self._tensors :])
            return setup_context(ctx, inputs[: self._tensors], ctx.options, output)

        self._watched = _function_of_watched_calls(op, split_and_set_up, backward, jvp, self._map)
        self.run = function_of_prepared_calls(setup_context, backward)
        self.kept: dict[Key | None, PreparedCall] = {}
        self._kernel: Callable[..., Any] | None = None
        self._formula: Callable[..., Any] | None = None
        self._register(library)

    def _register(self, library: torch.library.Library) -> None:
        """The kernel of the Autograd key, to which ``torch.compile`` and everything that watches operators comes."""
        op, name = self._op, name_of(self._op).removeprefix("genkernels::")
        apply_watched = apply_of(self._watched)

        def autograd_kernel(keys: Any, *inputs: Any) -> Any:
            if self._formula is not None and dispatch_modes() and torch.onnx.is_in_onnx_export():
                return self._formula(*inputs)
            if forward_mode_is_on():
                return self._watched.apply(*inputs)
            if torch.is_grad_enabled() and any_requires_grad(*inputs):
                if transforms_are_active():
                    raise NotImplementedError(
                        f"torch.ops.genkernels.{name} under a torch.func transform: call the function of "
                        "genkernels.ops instead, outside torch.compile"
                    )
                return apply_watched(*inputs)
            with below_autograd():
                return op.redispatch(keys & below_autograd_keys, *inputs)

        library.impl(name, autograd_kernel, "Autograd", with_keyset=True)

    def use_kernel(self, kernel: Callable[..., Any]) -> None:
        """Run calls that nothing watches by this CPU kernel, which takes the operator's inputs."""
        self._kernel = kernel

    def use_formula(self, formula: Callable[..., Any]) -> None:
        """Let an ONNX export see this function of the same inputs, in PyTorch's operators, instead of the operator.

        The exporter decomposes what it does not know, for which it runs the operator under a tracing mode.
        """
        self._formula = formula

    def keep(self, key: Key, call: PreparedCall) -> None:
        if len(self.kept) >= MOST_KEPT:
            self.kept.clear()
        self.kept[key] = call

    def __call__(self, *inputs: Any) -> Any:
        count = self._tensors
        if self._kernel is not None and nothing_watches(inputs[0]) and are_plain_tensors(*inputs[1:count]):
            arguments = inputs[count:]
            return self.run(PreparedCall(self._options(*arguments), arguments, self._kernel), *inputs[:count])
        if not torch.compiler.is_compiling() and (transforms_are_active() or forward_mode_is_on()):
            _refuse_nested_forward_mode(name_of(self._op))
            return self._watched.apply(*inputs)
        return self._op(*inputs)

    def _map(self, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        if self._foldable and in_dims[0] is not None and all(dim is None for dim in in_dims[1:]):
            first = inputs[0].movedim(in_dims[0], 0)
            return self(first.flatten(0, 1), *inputs[1:]).unflatten(0, first.shape[:2]), 0
        columns = [
            value.unbind(dim) if isinstance(value, Tensor) and dim is not None else [value] * info.batch_size
            for value, dim in zip(inputs, in_dims, strict=True)
        ]
        results = [self(*sample) for sample in zip(*columns, strict=True)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


def _function_of_watched_calls(
    op: Any,
    setup_context: Callable[[Any, tuple[Any, ...], Any], _Tensors],
    backward: Callable[..., _Tensors],
    jvp: Callable[..., Any],
    vmap: Callable[..., Any],
) -> type[torch.autograd.Function]:
    """What a transform, forward mode or the dispatcher applies; its arguments are those of DifferentiableOp."""

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            with below_autograd():
                return op(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)
            saved = setup_context(ctx, inputs, output)
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            return one_for_each(ctx.needs_input_grad, backward(ctx, ctx.needs_input_grad, *grad_outputs))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            return jvp(ctx, *tangents)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
            return vmap(info, in_dims, *inputs)

    return Watched
