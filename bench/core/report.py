"""Results of a benchmark: what was timed, where, and what follows; kept as JSON, shown as tables.

One file per machine and benchmark, ``bench/results/<machine>/<benchmark>.json``. It holds the timings
themselves; the tables are computed from them when shown, so they cannot disagree with their data.

    python -m bench.core.report bench/results/<machine> [...]   prints the Markdown of the files found there
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.core import machine as here
from bench.core.roofline import Ceilings, Work
from genkernels.timing import Timing


@dataclass(frozen=True)
class Row:
    """One case, timed in one run for all alternatives.

    Attributes:
        group: what was done, one table each: "forward", say.
        case: on what: the shape.
        timings: by alternative.
        ours: which of them are ours, the usual one first.
        baseline: which one is what most people run.
        work: what the computation cannot do without, or None where there is no such figure.
    """

    group: str
    case: str
    timings: dict[str, Timing]
    ours: tuple[str, ...]
    baseline: str
    work: Work | None = None

    def best_ours(self) -> str:
        return min(self.ours, key=lambda name: self.timings[name].median)

    def best_other(self) -> str:
        others = [name for name in self.timings if name not in self.ours]
        return min(others, key=lambda name: self.timings[name].median)

    def speed_up(self, other: str, ours: str | None = None) -> float:
        """How many times as long the other takes as ours (the usual one unless named)."""
        return self.timings[other].median / self.timings[ours or self.ours[0]].median


@dataclass(frozen=True)
class Claim:
    """One line of the summary: a measured value and, where one was set beforehand, the least it should be."""

    text: str
    value: float
    unit: str  # "×" or "%"
    target: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.value >= self.target

    def cells(self) -> list[str]:
        verdict = {None: "", True: "met", False: "**missed**"}[self.met]
        return [self.text, _number(self.value, self.unit), _number(self.target, self.unit), verdict]


@dataclass(frozen=True)
class Report:
    """A finished benchmark; ``machine`` and ``software`` are what :mod:`bench.core.machine` tells, here and now."""

    benchmark: str
    title: str
    ceilings: Ceilings
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=here.machine)
    software: dict[str, Any] = field(default_factory=here.software)

    def save(self, results: Path) -> Path:
        """Write ``results``, if it is named .json, or ``results/<machine>/<benchmark>.json``; returns the path."""
        is_file = results.suffix == ".json"
        path = results if is_file else results / self.machine["slug"] / f"{self.benchmark}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> Report:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["ceilings"] = Ceilings(**data["ceilings"])
        data["claims"] = tuple(Claim(**claim) for claim in data["claims"])
        data["rows"] = tuple(_row(row) for row in data["rows"])
        return cls(**data)


def _row(data: dict[str, Any]) -> Row:
    timings = {name: Timing(**timing) for name, timing in data.pop("timings").items()}
    work = data.pop("work")
    ours = tuple(data.pop("ours"))
    return Row(timings=timings, work=None if work is None else Work(**work), ours=ours, **data)


def geometric_mean(ratios: Collection[float]) -> float:
    """The mean of speed-ups: it says the same whichever side is called the baseline."""
    return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))


# --- tables -----------------------------------------------------------------------------------------------

CLAIM_HEADER = ["", "measured", "target", ""]


def table(report: Report, group: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of one group of rows: ours against the baseline and against the best alternative."""
    rows = [row for row in report.rows if row.group == group]
    header = ["case", "floor, ms", "ours, ms", "of peak", f"{rows[0].baseline}, ms", "best alternative, ms"]
    cells = []
    for row in rows:
        ours, other = row.best_ours(), row.best_other()
        floor = share = "–"
        if row.work is not None:
            floor = _ms(report.ceilings.floor(row.work))
            share = _share(report, row.work, row.timings[ours].median)
        cells.append([
            row.case,
            floor,
            _ms(row.timings[ours].median) + _variant(ours, row.ours[0]),
            share,
            f"{_ms(row.timings[row.baseline].median)} ({row.speed_up(row.baseline, ours):.2f}×)",
            f"{_ms(row.timings[other].median)} ({row.speed_up(other, ours):.2f}×, {other})",
        ])  # fmt: skip
    return header, cells


def _share(report: Report, work: Work, seconds: float) -> str:
    """Of the peak; nothing where memory traffic alone counts."""
    return f"{report.ceilings.share_of_peak(work, seconds):.0%}" if work.flops else "–"


def full_table(report: Report, row: Row) -> tuple[list[str], list[list[str]]]:
    """Header and cells of one row: every alternative with its spread, quickest first."""
    header = ["", "median, ms", "p20 – p80", "times ours", "of peak"]
    cells = []
    for name, timing in sorted(row.timings.items(), key=lambda item: item[1].median):
        share = "–" if row.work is None else _share(report, row.work, timing.median)
        spread = f"{_ms(timing.p20)} – {_ms(timing.p80)}"
        cells.append([name, _ms(timing.median), spread, f"{row.speed_up(name):.2f}×", share])
    return header, cells


def setting(report: Report) -> str:
    """One line: on what, with what and when this was measured."""
    m, s, c = report.machine, report.software, report.ceilings
    if "gpu" in m:
        where = f"{m['gpu']}, {c.isa}, CUDA {m['cuda']}"
    else:
        name = f"{m['cpu']} ({m['microarchitecture']})" if m["microarchitecture"] else m["cpu"]
        where = f"{name}, {c.threads} threads, {c.isa}"
    commit = (s["commit"] or "unknown")[:10] + (" + changes" if s["dirty"] else "")
    quick = " **Quick run: too few repeats to quote.**" if report.settings.get("quick") else ""
    return (
        f"{where}; measured peak {c.gflops:.0f} GFLOP/s, copy {c.gbs:.0f} GB/s; "
        f"torch {s['torch']}, genkernels {s['genkernels']} at {commit}, {s['compiler']}; {s['date']}.{quick}"
    )


def groups(report: Report) -> list[str]:
    return list(dict.fromkeys(row.group for row in report.rows))


def markdown(report: Report, *, full: bool = False) -> str:
    """The report as Markdown, for a README; ``full`` adds every alternative of every case."""
    parts = [f"### {report.title}", setting(report)]
    for group in groups(report):
        parts += [f"**{group}**", _markdown_table(*table(report, group))]
    parts.append(_markdown_table(CLAIM_HEADER, [claim.cells() for claim in report.claims]))
    if full:
        for row in report.rows:
            parts += [f"{row.case}, {row.group}", _markdown_table(*full_table(report, row))]
    return "\n\n".join(parts) + "\n"


def show(report: Report, *, full: bool = True) -> None:
    """Print the report as tables in the terminal."""
    from rich.console import Console
    from rich.table import Table

    # A file is as wide as need be; what is in brackets is no markup.
    console = Console(width=None if sys.stdout.isatty() else 150, markup=False, emoji=False)

    def show_table(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        shown = Table(title=title, title_justify="left")
        for index, column in enumerate(header):
            shown.add_column(column, justify="left" if index == 0 else "right")
        for line in cells:
            shown.add_row(*(cell.replace("**", "") for cell in line))
        console.print(shown)

    if full:
        for row in report.rows:
            show_table(f"{row.case}, {row.group}", *full_table(report, row))
    for group in groups(report):
        show_table(group, *table(report, group))
    show_table(report.title, CLAIM_HEADER, [claim.cells() for claim in report.claims])
    console.print(setting(report).replace("**", ""), highlight=False)


def _markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *cells])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def _variant(name: str, usual: str) -> str:
    return "" if name == usual else f" ({name.removeprefix(usual).lstrip(', ')})"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if unit == "%" else f"{value:.2f}{unit}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.core.report", description="Print results as Markdown.")
    parser.add_argument("paths", nargs="+", type=Path, help="JSON files, or folders that hold some")
    parser.add_argument("--full", action="store_true", help="every alternative of every case, too")
    options = parser.parse_args()
    for path in options.paths:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            print(markdown(Report.load(file), full=options.full))


if __name__ == "__main__":
    main()
