"""Results of alternatives compared before anything is timed: each with float64, or with a peer's distance from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class MismatchError(AssertionError):
    """Alternatives that should compute the same do not: nothing may be timed."""


def check_equal(
    results: Mapping[str, Sequence[Tensor]], reference: Sequence[Tensor], *, tolerance: float = 1e-5
) -> None:
    """Raise a MismatchError unless every result equals the reference, tensor by tensor.

    Args:
        results: what each alternative computed, by name: an output and its gradients, say.
        reference: the same in float64.
        tolerance: the largest difference allowed, relative to the reference's largest magnitude.
    """
    for name, tensors in results.items():
        if len(tensors) != len(reference):
            raise MismatchError(f"{name}: {len(tensors)} results where the reference has {len(reference)}")
        for index, (got, expected) in enumerate(zip(tensors, reference, strict=True)):
            if got.shape != expected.shape:
                shapes = f"shape {list(got.shape)}, expected {list(expected.shape)}"
                raise MismatchError(f"{name}, result {index}: {shapes}")
            if expected.numel() == 0:
                continue
            difference = (got.detach().double() - expected.detach().double()).abs().max().item()
            size = expected.detach().abs().max().item()
            if not difference <= tolerance * size:  # a NaN fails this too
                raise MismatchError(
                    f"{name}, result {index}: differs from the reference by {difference:.3g} "
                    f"where the largest value is {size:.3g}"
                )


def check_as_exact(
    results: Mapping[str, Sequence[Tensor]], reference: Sequence[Tensor], *, peer: str, ours: Sequence[str]
) -> None:
    """Raise a MismatchError unless our root mean square errors are at most twice those of ``peer``, and a floor."""
    for name in ours:
        for index, (got, other, exact) in enumerate(zip(results[name], results[peer], reference, strict=True)):
            error, allowed = (float((t.detach().double() - exact).square().mean().sqrt()) for t in (got, other))
            floor = torch.finfo(got.dtype).eps * float(exact.square().mean().sqrt())
            if not error <= 2 * allowed + floor:
                raise MismatchError(f"{name}, result {index}: error {error:.3g} where {peer} has {allowed:.3g}")
