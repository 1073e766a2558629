"""Equivalence before a swap: the module as it was and as it would be, side by side on random inputs.

Both run on copies, in training and in evaluation mode, once in float64 (where rounding hides nothing) and once in the
model's own dtype (where the kernels run), which has to do where the module cannot be run in float64. Outputs, the
gradients of inputs and parameters, and the buffers afterwards are compared; and the dtype that autocast gives, which
some layers choose themselves.

Where a ReLU's argument is zero but for rounding, either side of the kink is right, and the gradient of all that it
reads changes with the side. So outputs that small send no gradient; and as such arguments may lie inside of a module,
where they cannot be seen, a gradient in the module's own dtype counts as different only if it is for several inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.conv_bn_act.heuristics import always_kernel
from ..ops.core.torch_internals import TorchDispatchMode, tree_flatten, tree_map

Swapper = Callable[[nn.Module], None]

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# What rounding may leave of an output that is zero, of its root mean square.
_BESIDE_ZERO = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_TRIALS = 4  # inputs for which a gradient has to differ


class NotEquivalentError(Exception):
    """The reason why a swap is not made."""


class CannotRunError(NotEquivalentError):
    """The module cannot be run as it is."""


class _GradientNotEquivalentError(NotEquivalentError):
    """Outputs are equal, gradients are not."""


def check_equivalence(
    module: nn.Module,
    swapper: Swapper,
    inputs: Sequence[Any],
    *,
    live: dict[str, Tensor] | None = None,
    may_round: bool = False,
) -> bool:
    """Raise a NotEquivalentError unless the swapped module computes what the module does.

    Args:
        module: stays as it is.
        swapper: swaps a copy of it.
        inputs: positional arguments; their floating-point tensors take the dtype of the run.
        live: by name of a parameter, where its gradient counts: 1, or 0 for a tap that is masked away.
        may_round: a module that makes tensors of less than float64 even when it is moved there need not be equal there.

    Returns:
        Whether float64 counts too; else only the module's own dtype was checked.
    """
    own = next((p.dtype for p in module.parameters()), torch.float32)
    in_float64 = True
    for dtype in dict.fromkeys((torch.float64, own)):
        for training in (True, False):
            try:
                before, after = _check_mode(module, swapper, inputs, dtype, training, live)
            except NotEquivalentError as error:
                cannot = isinstance(error, CannotRunError) or (may_round and _rounds(module, inputs, dtype))
                if dtype == own or not cannot:
                    raise
                in_float64 = False  # it makes tensors of its own dtype, say
    _compare_autocast(before, after, inputs, own)
    return in_float64


def _check_mode(
    module: nn.Module, swapper: Swapper, inputs: Sequence[Any], dtype: torch.dtype, training: bool,
    live: dict[str, Tensor] | None,
) -> tuple[nn.Module, nn.Module]:  # fmt: skip
    """Two copies, as they were and swapped, that are equal in a dtype and a mode."""
    for trial in range(_TRIALS):
        before = copy.deepcopy(module).to(dtype).train(training)
        if not training:
            before.eval()
        after = copy.deepcopy(before)
        swapper(after)
        try:
            expected, got = _results(before, after, _varied(inputs, trial), dtype, live)
            _compare(got, expected, dtype, training)
        except _GradientNotEquivalentError:
            if dtype == torch.float64 or trial == _TRIALS - 1:
                raise
        else:
            break
    return before, after


def random_input(module: nn.Module, shape: Sequence[int]) -> Tensor:
    """The same numbers each time, on the module's device; the global generator is left alone."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__


def _varied(inputs: Sequence[Any], trial: int) -> Sequence[Any]:
    """The inputs themselves first, then others of their kind."""
    generator = torch.Generator().manual_seed(trial)

    def vary(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value * (1 + 0.25 * torch.randn(value.shape, generator=generator)).to(value)

    return tree_map(vary, tuple(inputs)) if trial else inputs


def _results(
    before: nn.Module, after: nn.Module, inputs: Sequence[Any], dtype: torch.dtype, live: dict[str, Tensor] | None
) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """Outputs, gradients and buffers of both modules, the gradients from one gradient of the outputs."""
    try:
        expected = _run(before, inputs, dtype)
        factors = [torch.randn(t.shape, generator=torch.Generator().manual_seed(0)).to(t) for t in expected[1]]
        expected_grads = _gradients(before, expected, factors, live)
    except _TROUBLE as error:
        raise CannotRunError(f"it could not be run on a trial input: {first_line(error)}") from error
    try:
        with always_kernel():
            got = _run(after, inputs, dtype)
            shapes = [[t.shape for t in outputs] for _, outputs in (got, expected)]
            if shapes[0] == shapes[1]:
                sent = [_sent(*each, dtype) for each in zip(factors, got[1], expected[1], strict=True)]
                expected_grads = _gradients(before, expected, sent, live)
                grads = _gradients(after, got, sent, live)
            else:
                grads = expected_grads  # nothing to compare
    except _TROUBLE as error:
        raise NotEquivalentError(f"the operator does not take it: {first_line(error)}") from error

    def found(module: nn.Module, outputs: list[Tensor], gradients: list[Tensor]) -> dict[str, list[Tensor]]:
        return {
            "output": [t.detach() for t in outputs],
            "gradient": gradients,
            "buffer": [b for b in module.buffers() if b.is_floating_point()],
        }

    return found(before, expected[1], expected_grads), found(after, got[1], grads)


_TROUBLE = (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError)


def _run(module: nn.Module, inputs: Sequence[Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs that get gradients, and the outputs."""

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.detach().to(dtype).clone().requires_grad_()

    values = tree_map(own, tuple(inputs))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        outputs = [t for t in tree_flatten(module(*values))[0] if isinstance(t, Tensor) and t.is_floating_point()]
    if not outputs:
        raise ValueError("its result holds no tensor")
    return [t for t in tree_flatten(values)[0] if isinstance(t, Tensor) and t.requires_grad], outputs


class _Precisions(TorchDispatchMode):
    """Notes the floating-point types of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        values = (t for t in tree_flatten(result)[0] if isinstance(t, Tensor))
        self.seen.update(t.dtype for t in values if t.is_floating_point())
        return result


def _rounds(module: nn.Module, inputs: Sequence[Any], dtype: torch.dtype) -> bool:
    """Whether it makes tensors that are less exact than the dtype it was moved to."""
    try:
        with _Precisions() as precisions:
            _run(copy.deepcopy(module).to(dtype), inputs, dtype)
    except _TROUBLE:
        return False
    return any(torch.finfo(seen).eps > torch.finfo(dtype).eps for seen in precisions.seen)


def _sent(factors: Tensor, got: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient of an output that is zero where the output is beside zero in one of two runs."""
    near = _BESIDE_ZERO.get(dtype, 0.0) * float(expected.detach().double().square().mean().sqrt())
    beside = [(t.detach() != 0) & (t.detach().abs() <= near) for t in (got, expected)]
    return factors.masked_fill(beside[0] | beside[1], 0)


def _gradients(
    module: nn.Module, run: tuple[list[Tensor], list[Tensor]], factors: list[Tensor], live: dict[str, Tensor] | None
) -> list[Tensor]:
    """The gradients of inputs and parameters, zeros where there is none."""
    leaves, outputs = run
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    wanted = [*leaves, *parameters.values()]
    sums = [(t * factor).sum() for t, factor in zip(outputs, factors, strict=True) if t.requires_grad]
    grads: list[Tensor | None] = [None] * len(wanted)
    if wanted and sums:
        with torch.enable_grad():
            grads = list(torch.autograd.grad(sum(sums), wanted, allow_unused=True, retain_graph=True))  # type: ignore[arg-type]
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads, strict=True)]
    for index, name in enumerate(parameters, len(leaves)):
        if live is not None and name in live:
            filled[index] = filled[index] * live[name].to(filled[index])
    return filled


def _compare_autocast(before: nn.Module, after: nn.Module, inputs: Sequence[Any], dtype: torch.dtype) -> None:
    if dtype != torch.float32:
        return
    found = []
    for module in (before, after):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), always_kernel():
            try:
                outputs = tree_flatten(module(*inputs))[0]
            except RuntimeError as error:
                outputs = [first_line(error)]
        found.append([t.dtype if isinstance(t, Tensor) else t for t in outputs])
    if found[0] != found[1]:
        raise NotEquivalentError(f"its output under autocast is {found[0]}, and would be {found[1]}")


def _compare(
    got: dict[str, list[Tensor]], expected: dict[str, list[Tensor]], dtype: torch.dtype, training: bool
) -> None:
    mode = "training" if training else "evaluation"
    tolerance = _TOLERANCE.get(dtype, 0.0)
    for what, tensors in expected.items():
        # By norm, as a value near the kink of an activation may fall either way; zeros count by the largest.
        size = max((float(t.double().norm()) for t in tensors), default=0.0)
        if len(tensors) != len(got[what]):
            raise NotEquivalentError(f"its {what}s differ in number in {mode} mode")
        for a, b in zip(got[what], tensors, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise NotEquivalentError(f"its {what} differs in shape or dtype in {mode} mode")
            difference = float((a.double() - b.double()).norm())
            if not difference <= tolerance * max(size, 1e-12):
                kind = _GradientNotEquivalentError if what == "gradient" else NotEquivalentError
                raise kind(f"its {what} differs by {difference:.2g} of {size:.2g} in {mode} mode")
