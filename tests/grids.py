"""What the tests of every operation share: sampled grids, memory layouts, and how exact is exact enough."""

import contextlib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_process import run_fresh
from torch import Tensor

from genkernels import backends

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


# --- exactness ---


def assert_as_exact(name: str, got: Tensor, *, oracle: Tensor, peer: Tensor, typical: Tensor | None = None) -> None:
    """`got` is at most twice as far from the float64 `oracle` as `peer`, PyTorch in its dtype, and a floor.

    Both the worst element and the root mean square. The floor is a few float32 units in the last place
    (16-bit types accumulate in float32) of the results, or of `typical` where that is more: the size that
    results of such terms have if they do not happen to cancel. Without it a lucky `peer` fails a good kernel.
    """
    assert oracle.dtype == torch.float64
    assert (got.dtype, got.shape) == (peer.dtype, oracle.shape), name
    assert got.isfinite().all(), f"{name}: {int((~got.isfinite()).sum())} of {got.numel()} are not finite"
    if got.numel() == 0:
        return
    eps = torch.finfo(torch.float32).eps
    error, error_of_peer = (t.double() - oracle for t in (got, peer))
    for norm, ulps in ((_worst, 8), (_rms, 4)):
        size = norm(oracle) if typical is None else max(norm(oracle), norm(typical))
        limit = 2 * norm(error_of_peer) + ulps * eps * size
        assert norm(error) <= limit, (
            f"{name}: {norm.__name__[1:]} error {norm(error):.3g}, PyTorch's is {norm(error_of_peer):.3g}, "
            f"allowed are {limit:.3g}; the size of the values is {size:.3g}"
        )


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
        sys.path.insert(0, {str(Path(__file__).parent)!r})
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
