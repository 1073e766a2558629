"""Checks of any implementation: that it runs at all, and that concurrent calls do not meet."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import torch
from torch import Tensor


def refuse(*_args: object, **_options: object) -> NoReturn:
    """Stands where no call should arrive."""
    raise AssertionError("the wrong implementation was called")


def check_undisturbed(jobs: Sequence[Callable[[], Sequence[Tensor]]], rounds: int) -> None:
    """Each job gives the same bits alone as many times over beside the others, each in a thread of its own."""
    alone = [job() for job in jobs]

    def often(job: Callable[[], Sequence[Tensor]]) -> list[Sequence[Tensor]]:
        torch.set_num_threads(2)  # per thread in some builds of torch
        return [job() for _ in range(rounds)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        for expected, results in zip(alone, pool.map(often, jobs), strict=True):
            for got in results:
                assert all(a.equal(b) for a, b in zip(got, expected, strict=True))
