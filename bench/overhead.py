"""What a call costs beside its work: layers at a size where there is next to nothing to compute.

    python -m bench.overhead [--quick] [--seconds S] [--json DIR]
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

from bench.core.report import Claim, Report, Row, command_line
from bench.core.roofline import measure_ceilings
from bench.core.timing import check_equal, interleave
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


def run(quick: bool, seconds: float) -> Report:
    """Time every pair."""
    seconds, min_rounds = (min(seconds, 0.5), 5) if quick else (seconds, 51)
    ceilings = measure_ceilings()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows, claims = [], []
    try:
        for name, (ours, plain) in pairs().items():
            timings = interleave(
                calls(ours, plain, torch.randn(1, 8, 8, 8)), seconds=seconds, min_rounds=min_rounds, min_turn=5e-3
            )
            rows.append(Row("call overhead, forward with autograd", name, timings, (OURS,), PLAIN))
            extra = (timings[OURS].median - timings[PLAIN].median) * 1e6
            claims.append(Claim(f"{name}: {MOST:.0f} µs minus what ours takes longer", MOST - extra, "µs", 0.0))
    finally:
        torch.set_num_threads(threads)
    return Report(
        benchmark="overhead",
        title="What a call costs, float32, 1x8x8x8, one thread",
        ceilings=ceilings.highest(measure_ceilings()),
        rows=tuple(rows),
        claims=tuple(claims),
        settings={"quick": quick, "seconds": seconds, "min_rounds": min_rounds, "threads": 1},
    )


@pytest.mark.parametrize("which", [OURS, PLAIN])
@pytest.mark.parametrize("name", list(pairs()))
def test_call(benchmark: Any, name: str, which: str) -> None:
    call = calls(*pairs()[name], torch.randn(1, 8, 8, 8))[which]
    benchmark.group = name
    benchmark(call)


if __name__ == "__main__":
    command_line(run, "bench.overhead", seconds=3.0)
