"""Sampled grids, memory layouts and error bounds for the tests of every operation."""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genkernels import backends
from helpers.fresh_process import run_fresh

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

needs_native = pytest.mark.skipif(
    backends.native() is None,
    reason="tests the native kernels; " + backends.available_backends()["cpu"].reason,
)


ISAS = [] if backends.native() is None else backends.require_native().compiled_isas()


def pairwise(axes: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Few combinations in which every two values of two axes meet at least once; the same ones every time.

    A full grid over a dozen axes has millions of points, and what goes wrong nearly always depends on two of
    them. Greedy: of some random candidates with a pair that has not met, take the one with most of these.
    """
    rng = random.Random(seed)
    names = list(axes)
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(range(len(axes[a])), range(len(axes[b])))
    }
    order = sorted(missing)  # sets of strings have another order in every process
    rng.shuffle(order)
    rows = []
    for pair in order:
        if pair not in missing:
            continue
        best: set[Any] = set()
        for _ in range(20):
            candidate = {name: rng.randrange(len(axes[name])) for name in names} | dict(pair)
            met = missing.intersection(itertools.combinations(candidate.items(), 2))
            if len(met) > len(best):
                best, row = met, candidate
        missing -= best
        rows.append({name: axes[name][i] for name, i in row.items()})
    return rows


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def name_of(case: Any) -> str:
    """The options of a case, a mapping or a dataclass, as the id of its test."""
    return "-".join(map(_word, (case if isinstance(case, Mapping) else vars(case)).values()))


def _word(option: Any) -> str:
    if isinstance(option, tuple):
        return "x".join(map(_word, option))
    return short(option) if isinstance(option, torch.dtype) else str(option)


# --- memory layouts of a [N, C, H, W] tensor (an image or a weight) ---

DENSE = ("contiguous", "channels_last")
SLICED = ("window", "window_channels_last", "every_second")
TURNED = ("rows_and_columns_swapped", "batch_and_channels_swapped")
EXPANDED = ("expanded_batch", "expanded_channels", "expanded_pixels")
LAYOUTS = DENSE + SLICED + TURNED + EXPANDED


def laid_out(values: Tensor, layout: str) -> Tensor:
    """`values` in memory as `layout` says; the expanded ones repeat a part of them.

    What surrounds a slice is NaN, so that a kernel which reads beyond it shows.
    """
    n, c, h, w = values.shape
    if layout in DENSE:
        # Not `contiguous`: it leaves the strides of one channel, which tell what layout is meant, alone.
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        return torch.empty_like(values, memory_format=memory_format).copy_(values)
    if layout in ("window", "window_channels_last"):
        whole = values.new_full((n + 1, c + 2, h + 3, w + 3), torch.nan)
        if layout == "window_channels_last":
            whole = whole.contiguous(memory_format=torch.channels_last)
        return whole[1:, 1:-1, 1:-2, 2:-1].copy_(values)
    if layout == "every_second":
        return values.new_full((n, c, 2 * h, 2 * w), torch.nan)[:, :, ::2, 1::2].copy_(values)
    if layout == "rows_and_columns_swapped":
        return values.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "batch_and_channels_swapped":
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    part = {
        "expanded_batch": values[:1],
        "expanded_channels": values[:, :1],
        "expanded_pixels": values[:, :, :1, :1],
    }[layout]
    return part.clone(memory_format=torch.contiguous_format).expand(values.shape)


@contextlib.contextmanager
def nan_in_fresh_memory() -> Iterator[None]:
    """torch.empty and its like give NaN, so that an output which is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def with_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """The result, and the gradients of those inputs that are there."""
    given = [t if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*given)
    return y.detach(), *torch.autograd.grad(y, [t for t in given if t is not None], grad_output)


# --- exactness ---
#
# A kernel is held against float64 and against what the rounding of its inputs does, never against another library's
# float32, whose error depends on the machine. The unit is how far a result moves when each number that goes in is
# rounded once, at random: for a sum of products, eps / sqrt(6) times the root of the sum of squares of its products.

DIRECT = 16.0  # units: what a sum in float32 may be off, of some thousand products
WINOGRAD = 48.0  # a sum of products of differences, in Winograd's forms
ULPS = 4.0  # of the largest result, for what comes after the sums: activations, a scale, the bias


def widened(t: Tensor) -> Tensor:
    """t in float64; what it repeats stays one number."""
    once = t[tuple(slice(None) if stride else slice(0, 1) for stride in t.stride())]
    return once.to(torch.float64, memory_format=torch.contiguous_format).expand(t.shape)


def with_rounding(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    eps: float | Sequence[float],
    draws: int = 3,
) -> tuple[list[Tensor], list[Tensor]]:
    """The results of ``function`` in float64, and how far each moves (root mean square) when its inputs are rounded.

    Args:
        inputs: float64, or None. What an expanded one repeats is rounded as one number, and in each place.
        eps: the unit in the last place of the rounding, of all inputs or of each.
    """
    generator = torch.Generator().manual_seed(7)
    each = [eps] * len(inputs) if isinstance(eps, float) else eps

    def rounded(t: Tensor | None, ulp: float) -> Tensor | None:
        if t is None:
            return None
        assert t.dtype == torch.float64
        once = [1 if stride == 0 else size for size, stride in zip(t.shape, t.stride(), strict=True)]
        change = torch.zeros(t.shape, dtype=t.dtype)
        for shape in [list(t.shape)] if once == list(t.shape) else [list(t.shape), once]:
            change = change + torch.rand(shape, generator=generator, dtype=t.dtype) - 0.5
        return t * (1 + ulp * change.to(t.device))

    exact = list(function(*inputs))
    moves = [torch.zeros_like(t) for t in exact]
    for _ in range(draws):
        results = function(*(rounded(t, ulp) for t, ulp in zip(inputs, each, strict=True)))
        for move, result, centre in zip(moves, results, exact, strict=True):
            move += (result - centre).square()
    return exact, [(move / draws).sqrt() for move in moves]


def assert_accurate(name: str, got: Tensor, exact: Tensor, unit: Tensor, factor: float = DIRECT) -> None:
    """``got`` is within ``factor`` units of ``exact``: the worst element, and the root mean square within 3/4 of that.

    On top come a few units in the last place of float32 for elementwise functions, and what storing a 16-bit result
    takes: half a unit in its last place.
    """
    assert exact.dtype == unit.dtype == torch.float64
    assert got.shape == exact.shape, name
    assert got.isfinite().all(), f"{name}: {int((~got.isfinite()).sum())} of {got.numel()} are not finite"
    if got.numel() == 0:
        return
    error = (got.double() - exact).abs()
    if got.dtype != torch.float32:
        stored = torch.finfo(got.dtype)
        error = (error - stored.eps / 2 * exact.abs() - stored.tiny * stored.eps / 2).clamp(min=0)
    eps = torch.finfo(torch.float32).eps
    for norm, share in ((_worst, 1.0), (_rms, 0.75)):
        limit = share * (factor * norm(unit) + ULPS * eps * norm(exact))
        assert norm(error) <= limit, (
            f"{name}: {norm.__name__[1:]} error {norm(error):.3g}, {norm(error) / max(norm(unit), 1e-300):.3g} units; "
            f"allowed are {limit:.3g}, {factor} units; the size of the values is {norm(exact):.3g}"
        )


def assert_within_bound(
    names: Sequence[str],
    got: Sequence[Tensor],
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    *,
    eps: float = torch.finfo(torch.float32).eps,
    factor: float = DIRECT,
) -> None:
    """``got`` is what ``function`` gives for the inputs in float64, as :func:`assert_accurate` has it.

    Args:
        eps: as for :func:`with_rounding`.
    """
    exact, units = with_rounding(function, [None if t is None else widened(t) for t in inputs], eps)
    for name, *results in zip(names, got, exact, units, strict=True):
        assert_accurate(name, *results, factor)


def _worst(t: Tensor) -> float:
    return float(t.abs().max())


def _rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())


# --- instruction sets ---


def check_cases_under(isa: str, module: str) -> None:
    """Every third of a grid module's CASES passes its `check` in a process held to an instruction set.

    Fresh memory is filled there, so that a kernel which reads its scratch before writing it shows.
    """
    native = backends.require_native()
    if ISAS.index(isa) > ISAS.index(native.detected_isa()):
        pytest.skip(f"this machine has {native.detected_isa()} only")
    printed = run_fresh(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from {module} import CASES, check
        from genkernels import _C
        for case in CASES[::3]:
            try:
                check(case)
            except Exception as error:
                raise AssertionError(str(case)) from error
        print(_C.active_isa())
        """,
        GENKERNELS_MAX_ISA=isa,
        MALLOC_PERTURB_="1",  # glibc: fresh memory holds 0xfe, which is -1.7e38 as a float
    )
    assert printed == isa
