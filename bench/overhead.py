"""Cost of a call beside its work: layers at a size where there is next to nothing to compute.

    python -m bench.overhead [--quick] [--seconds S] [--json PLACE]
    pytest bench/overhead.py --benchmark-only

Batch 1, 8 channels, 8 x 8 pixels, forward pass with autograd recording, one thread. The claim is the difference of two
medians of one run, in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core.checks import check_equal
from bench.core.report import Claim, Report, Row
from bench.core.session import CPU, Budget, Session, command_line
from genkernels.nn import ConvBnAct2d, ConvTransposeBnAct2d, MaskedConv2d

OURS, PLAIN = "ours", "plain PyTorch"
MOST = 15.0  # microseconds


def pairs() -> dict[str, tuple[nn.Module, nn.Module]]:
    """By name: our layer and PyTorch's, of the same weights."""
    torch.manual_seed(0)
    masked, plain = MaskedConv2d(8, 8, 3, mask_type="B"), nn.Conv2d(8, 8, 3, padding=1)
    with torch.no_grad():
        plain.weight.mul_(masked.live_taps())
    masked.load_state_dict(plain.state_dict())
    found: dict[str, tuple[nn.Module, nn.Module]] = {"masked 3x3, 8 channels": (masked, plain)}
    for name, block, conv in (
        ("convolution + batch norm + ReLU", ConvBnAct2d, nn.Conv2d),
        ("transposed convolution + batch norm + ReLU", ConvTransposeBnAct2d, nn.ConvTranspose2d),
    ):
        layers = nn.Sequential(conv(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        ours = block(8, 8, 3, padding=1, bias=True, activation="relu")
        ours.load_state_dict({**layers[0].state_dict(), **{f"bn.{k}": v for k, v in layers[1].state_dict().items()}})
        found[f"{name}, 8 channels"] = (ours, layers)
    return found


def calls(ours: nn.Module, plain: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """Both, checked."""
    with torch.no_grad():
        check_equal({OURS: [ours(x)], PLAIN: [plain(x)]}, [plain(x).double()])
    return {OURS: lambda: ours(x), PLAIN: lambda: plain(x)}


def measure(session: Session, name: str) -> list[Row]:
    """Check, then time, one pair on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timings = session.time(calls(*pairs()[name], torch.randn(1, 8, 8, 8)), min_turn=5e-3)
    finally:
        torch.set_num_threads(threads)
    return [Row("call overhead, forward with autograd", name, timings, (OURS,), PLAIN)]


def run(session: Session) -> Report:
    """Time every pair."""
    rows = [row for (row,) in session.over(pairs(), measure).values()]
    claims = []
    for row in rows:
        extra = (row.timings[OURS].median - row.timings[PLAIN].median) * 1e6
        claims.append(Claim(f"{row.case}: {MOST:.0f} µs minus what ours takes longer", MOST - extra, "µs", 0.0))
    return session.report("overhead", "What a call costs, float32, 1x8x8x8, one thread", rows, claims, threads=1)


@pytest.mark.parametrize("which", [OURS, PLAIN])
@pytest.mark.parametrize("name", list(pairs()))
def test_call(benchmark: Any, name: str, which: str) -> None:
    call = calls(*pairs()[name], torch.randn(1, 8, 8, 8))[which]
    benchmark.group = name
    benchmark(call)


if __name__ == "__main__":
    budget = Budget(3.0, rounds=51, quick_rounds=5)
    command_line(run, "bench.overhead", {"cpu": (CPU, budget)})
