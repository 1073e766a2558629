"""Sampling from models in the styles of published ones, against their own full forward passes, in float32 on the CPU.

    python -m bench.sampler_styles [--quick] [--seconds S] [--json PLACE]

prints the table and the summary, and writes sampler_styles.json.

"Full forwards" is what their users do: one forward pass of the whole batch for each sub-pixel (each pixel, where one
prediction serves all colours). One pass is timed and multiplied. Every sampler has been proven against its model before
it is handed out; here a batch of two is compared besides with the loop on the first rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import genkernels
from bench.core.checks import MismatchError
from bench.core.report import Claim, Report, Row
from bench.core.session import CPU, Budget, Session, command_line
from bench.published_priors import (
    STYLES,
    Binary,
    ContextModel,
    GatedPrior,
    HierarchicalPrior,
    ImageGpt,
    PlusPlus,
    Snail,
)

OURS, FULL, FORWARD = "ours", "full forwards", "one forward pass"
PASSES, PASSES_WITH_ATTENTION = 2.5, 4.0  # at most, of time an image


@dataclass(frozen=True, eq=False)
class Case:
    """A style at a size that people use.

    Attributes:
        style: of ``STYLES``, for what the sampler has to be told.
        make: the module.
        options: instead of the style's.
        size: height and width.
        attends: whether it has attention.
    """

    name: str
    style: str
    make: Any
    options: dict[str, Any]
    size: tuple[int, int]
    batch: int
    attends: bool = False

    def __str__(self) -> str:
        return f"{self.name}, batch {self.batch}"


_STYLES: tuple[tuple[Any, ...], ...] = (
    ("gated prior, 12x64, 32², 512 codes, classes", "gated prior of codes with classes",
     lambda: GatedPrior(512, 64, 12, 4), {"levels": 512}, (32, 32), False),
    ("gated resnets and attention, 4x64, 28², 64 levels", "attention, gated resnets, concat-ELU",
     lambda: Snail(64, 64, 4), {"levels": 64}, (28, 28), True),
    ("fine on coarse codes, 64, 32², 64 levels", "fine codes on coarse codes",
     lambda: HierarchicalPrior(64, 64), {"levels": 64}, (32, 32), True),
    ("image transformer, 4x64, 4 heads, 28², 256 levels", "image transformer",
     lambda: ImageGpt(256, 64, 4, 4, 784), {"levels": 256}, (28, 28), True),
    ("mixture of 10 logistics, 4x48, 32² RGB", "mixture of logistics",
     lambda: PlusPlus(48, 4, 10), {"mixtures": 10}, (32, 32), False),
    ("binary, 7x64, 28²", "binary with one logit", lambda: Binary(64, 7), {}, (28, 28), False),
    ("context model, 192 channels, 16²", "context model with a hyperprior",
     lambda: ContextModel(192, (640, 512)), {"in_channels": 192}, (16, 16), False),
)  # fmt: skip
CASES = tuple(
    Case(name, style, make, options, size, batch, attends)
    for name, style, make, options, size, attends in _STYLES
    for batch in (1, 16)
)


class Sampling:
    """One case, ready to be timed."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        style = STYLES[case.style]
        self.case, self.model = case, case.make().eval()
        self._soften()
        options = {**style.options, **case.options}
        condition = None if style.condition is None else self._condition(2)
        colours, levels = options["in_channels"], options["levels"]
        example = torch.randint(levels, (2, colours, *case.size)) if condition is not None else None
        self.fast = genkernels.fast_sampler(self.model, example, condition=condition, **options)
        self.condition = None if condition is None else self._condition(case.batch)
        self.uniforms = torch.rand(case.batch, colours, *case.size)
        self.given = torch.randint(levels, self.uniforms.shape)

    def _soften(self) -> None:
        """Weights with which 28² pixels of draws stay within the range of floats."""
        for parameter in self.model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def _condition(self, n: int) -> Any:
        if self.case.style == "context model with a hyperprior":
            return torch.randn(n, 384, *self.case.size)
        found = STYLES[self.case.style].condition
        assert found is not None
        return found(n, self.case.size)

    def draw(self, backend: str | None = None) -> torch.Tensor:
        return self.fast.sample(
            self.case.batch, self.case.size, uniforms=self.uniforms, condition=self.condition, backend=backend
        )

    @torch.no_grad()
    def forward(self) -> torch.Tensor:
        seen = self.fast.interface.seen(self.given, self.fast.table())
        return self.fast.outputs(seen, self.condition)

    def passes_of_the_loop(self) -> int:
        """Forward passes that the loop makes: one for each place that waits for another."""
        height, width = self.case.size
        together = self.fast.distribution.predictions == 1 or self.case.style == "context model with a hyperprior"
        return height * width * (1 if together else self.fast.in_channels)

    def check(self) -> None:
        """Raise a MismatchError unless the first row is what the loop of full forwards draws."""
        height, width = self.case.size
        known = torch.ones(1, 1, height, width, dtype=torch.bool)
        known[..., 0, : min(width, 4)] = False
        options = {"given": self.given[:1].to(torch.int32), "known": known, "uniforms": self.uniforms[:1],
                   "condition": None if self.condition is None else self.condition[:1]}  # fmt: skip
        ours, loop = (self.fast.sample(1, self.case.size, backend=b, **options) for b in (None, "full_forward"))
        if not torch.equal(ours, loop):
            raise MismatchError(f"{OURS}: {(ours != loop).sum()} levels are not those of the loop of full forwards")


def measure(session: Session, case: Case) -> list[Row]:
    sampling = Sampling(case)
    sampling.check()
    timings = session.time({OURS: sampling.draw, FORWARD: sampling.forward})
    timings[FULL] = timings[FORWARD].times(sampling.passes_of_the_loop())
    return [Row("sampling", str(case), timings, (OURS,), FULL)]


def claims_of(measured: dict[Case, list[Row]]) -> list[Claim]:
    claims = []
    for case, (row,) in measured.items():
        ours, forward = row.timings[OURS].median, row.timings[FORWARD].median
        most = PASSES_WITH_ATTENTION if case.attends else PASSES
        text = f"{case}: {ours / forward:.2f} forward passes (at most {most:g} were promised); a forward pass is"
        claims += [
            Claim(text, forward / ours, "× of it", 1 / most),
            Claim(f"{case}: over full forwards", row.speed_up(FULL), "×"),
            Claim(f"{case}: drawn in a second", case.batch / ours, " images/s"),
        ]
    return claims


def run(session: Session, cases: Sequence[Case] | None = None) -> Report:
    """Measure everything."""
    measured = session.over(cases or CASES, measure)
    rows = [row for (row,) in measured.values()]
    return session.report("sampler_styles", "Sampling from models of others, float32", rows, claims_of(measured))


if __name__ == "__main__":
    command_line(run, "bench.sampler_styles", {"cpu": (CPU, Budget(3.0, rounds=3, quick_rounds=2))})
