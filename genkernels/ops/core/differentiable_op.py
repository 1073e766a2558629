"""Makes an operator differentiable in every way that PyTorch knows: backward, forward mode, ``torch.func``.

``torch.library.register_autograd`` gives backward alone: under nested ``torch.func`` transforms and in forward mode
its operators raise or, worse, silently return zero. Here each operator has

* a kernel of the Autograd key, which ``torch.compile`` and everything that intercepts operators sees,
* an ``autograd.Function`` with a jvp and a vmap rule, which is taken while a transform or forward mode is active, and
* the CPU kernel itself, with the same backward, where nobody looks on (direct.py).

The formulas call other :class:`DifferentiableOp` objects, so derivatives nest to any order in any mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .dispatch_bypass import are_plain, is_open
from .torch_internals import (
    any_requires_grad,
    apply_of,
    below_autograd,
    below_autograd_keys,
    dispatch_modes,
    forward_mode_is_on,
    jvp_levels,
    name_of,
    transforms_are_active,
)


def _refuse_nested_forward_mode(name: str) -> None:
    """PyTorch drops the outer tangent of any autograd.Function there and returns a wrong number without a word."""
    if jvp_levels() > 1:
        raise NotImplementedError(
            f"{name}: forward mode inside forward mode is not supported; take one of the two derivatives in reverse "
            "(torch.func.hessian does)"
        )


def is_recorded(*inputs: Any) -> bool:
    """Whether a derivative of what is computed of these may be asked for.

    Always of a traced program, which is the same with and without gradients.
    """
    if torch.jit.is_tracing():
        return True
    if not torch.compiler.is_compiling() and (transforms_are_active() or forward_mode_is_on()):
        return True
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs)


class DifferentiableOp:
    """An operator of ``torch.ops.genkernels`` with its derivatives; call it as the operator itself.

    Args:
        library: the library in which op was defined.
        op: the operator overload, positional arguments only.
        setup_context: (ctx, inputs, output) -> the tensors to save; other values go on ctx.
        backward: (ctx, needs_input_grad, *grad_outputs) -> a gradient or None for each input. A grad_output that
            nobody used is None.
        jvp: (ctx, *tangents) -> the tangent of each output; a tangent is None where the input has none.
        foldable: True where the first input has a batch dimension in front that can take up a vmap dimension when
            no other input is mapped. Everything else is mapped one sample at a time.
    """

    def __init__(
        self,
        library: torch.library.Library,
        op: Any,
        *,
        setup_context: Callable[[Any, tuple[Any, ...], Any], tuple[Tensor | None, ...]],
        backward: Callable[..., tuple[Tensor | None, ...]],
        jvp: Callable[..., Any],
        foldable: bool,
    ) -> None:
        map_samples = self._map
        name = name_of(op).removeprefix("genkernels::")

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, keyset: Any, *inputs: Any) -> Any:
                with below_autograd():
                    output = op.redispatch(keyset & below_autograd_keys, *inputs)
                ctx.set_materialize_grads(False)
                ctx.save_for_backward(*setup_context(ctx, inputs, output))
                return output

            @staticmethod
            def backward(ctx: Any, *grad_outputs: Any) -> Any:
                return (None, *backward(ctx, ctx.needs_input_grad[1:], *grad_outputs))

        class Direct(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                assert self._direct is not None
                output = self._direct(*inputs)
                ctx.set_materialize_grads(False)
                ctx.save_for_backward(*setup_context(ctx, inputs, output))
                return output

            @staticmethod
            def backward(ctx: Any, *grad_outputs: Any) -> Any:
                return backward(ctx, ctx.needs_input_grad, *grad_outputs)

        class Transformed(torch.autograd.Function):
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
                return backward(ctx, ctx.needs_input_grad, *grad_outputs)

            @staticmethod
            def jvp(ctx: Any, *tangents: Any) -> Any:
                return jvp(ctx, *tangents)

            @staticmethod
            def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
                return map_samples(info, in_dims, *inputs)

        apply_eager = apply_of(Eager)

        def autograd_kernel(keyset: Any, *inputs: Any) -> Any:
            if self._formula is not None and dispatch_modes() and torch.onnx.is_in_onnx_export():
                return self._formula(*inputs)
            if forward_mode_is_on():
                return Transformed.apply(*inputs)
            if torch.is_grad_enabled() and any_requires_grad(*inputs):
                if transforms_are_active():
                    raise NotImplementedError(
                        f"torch.ops.genkernels.{name} under a torch.func transform: call the function of "
                        "genkernels.ops instead, outside torch.compile"
                    )
                return apply_eager(keyset, *inputs)
            with below_autograd():
                return op.redispatch(keyset & below_autograd_keys, *inputs)

        library.impl(name, autograd_kernel, "Autograd", with_keyset=True)
        self._op = op
        self._foldable = foldable
        self._transformed = Transformed
        self._tensors = 0
        self._direct: Callable[..., Any] | None = None
        self._formula: Callable[..., Any] | None = None
        self._apply_direct = apply_of(Direct)

    def use_directly(self, kernel: Callable[..., Any], *, tensors: int) -> None:
        """Let calls that nobody looks on go to the CPU kernel; the first ``tensors`` inputs are tensors or None."""
        self._direct, self._tensors = kernel, tensors

    def use_formula(self, formula: Callable[..., Any]) -> None:
        """Let an ONNX export see this function of the same inputs, in PyTorch's operators, instead of the operator.

        The exporter decomposes what it does not know, for which it runs the operator under a tracing mode.
        """
        self._formula = formula

    def __call__(self, *inputs: Any) -> Any:
        if self._direct is not None and is_open(inputs[0]) and are_plain(*inputs[1 : self._tensors]):
            return self.call_directly(*inputs)
        if not torch.compiler.is_compiling() and (transforms_are_active() or forward_mode_is_on()):
            _refuse_nested_forward_mode(name_of(self._op))
            return self._transformed.apply(*inputs)
        return self._op(*inputs)

    def call_directly(self, *inputs: Any) -> Any:
        """On the CPU kernel; only after ``direct.is_open`` and ``direct.are_plain`` have said yes."""
        if torch.is_grad_enabled() and any_requires_grad(*inputs[: self._tensors]):
            return self._apply_direct(*inputs)
        assert self._direct is not None
        return self._direct(*inputs)

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
