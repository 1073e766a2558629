"""The report of ``accelerate``: what was swapped and what was left, with the reasons, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reason:
    """Why a module, or a run of layers, is left as it is. What code decides by is its class, never its text."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Entry:
    """One layer, or one run of layers.

    Attributes:
        name: of the module in the model, "" for the model itself; with the layers of a run behind it.
        kind: the class of the module.
        swapped: what runs it now, or None where it was left as it is.
        detail: what was recognised, or why it was left.
    """

    name: str
    kind: str
    swapped: str | None
    detail: str


@dataclass
class Report:
    """Everything that ``accelerate`` looked at; print it for a table."""

    entries: list[Entry] = field(default_factory=list)

    @property
    def swapped(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.swapped is not None]

    @property
    def left(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.swapped is None]

    def note_swapped(self, name: str, kind: str, operator: str, detail: str) -> None:
        self.entries.append(Entry(name, kind, operator, detail))

    def note_left(self, name: str, kind: str, reason: Reason) -> None:
        self.entries.append(Entry(name, kind, None, str(reason)))

    def __contains__(self, name: str) -> bool:
        """Whether a module has a line."""
        return any(entry.name == name for entry in self.entries)

    def __str__(self) -> str:
        rows = [("module", "class", "now", "")]
        rows += [(e.name or "(model)", e.kind, e.swapped or "left", e.detail) for e in self.swapped + self.left]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(row[c].ljust(widths[c]) for c in range(3)), row[3]]).rstrip() for row in rows]
        count = f"{len(self.swapped)} swapped, {len(self.left)} left as they are"
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], count])
