"""Geometry of a direction: which cells make up a step, and which earlier cells each of them reads.

A step is a row, or an anti-diagonal of the image: the paper skews the image, so that row r stands r places to the
right, and goes over the columns of the skewed map (van den Oord et al. 2016, "Pixel Recurrent Neural Networks",
sections 3.1 and 3.2). Here the skew is index arithmetic alone: a tap is an offset in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

FRONTS = ("row", "diagonal")


@dataclass(frozen=True)
class Geometry:
    """The order of the cells of one direction; hashable, so that derived tables can be cached.

    Attributes:
        front: "row" (top to bottom) or "diagonal" (anti-diagonals, from the top left corner to the bottom right).
        taps: where on the step before its own a cell reads h. Row: columns relative to its own, any whole numbers.
            Diagonal: rows relative to its own, at most 0 (0 is the cell to the left, -1 the cell above).
        mirrored: left and right exchanged: the diagonals start from the top right corner. For "diagonal" only.
    """

    front: str
    taps: tuple[int, ...]
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.front not in FRONTS:
            raise ValueError(f"front: expected 'row' or 'diagonal'; got {self.front!r}")
        if not self.taps or len(set(self.taps)) < len(self.taps) or any(not isinstance(t, int) for t in self.taps):
            raise ValueError(f"taps: expected one or more whole numbers, each once; got {list(self.taps)}")
        if self.front == "diagonal" and max(self.taps) > 0:
            raise ValueError(
                f"taps: a diagonal front reads rows at most 0, those below hold future pixels; got {list(self.taps)}"
            )
        if self.front == "row" and self.mirrored:
            raise ValueError("mirrored: only a diagonal front has a mirror image; got front 'row'")

    @classmethod
    def of(cls, front: str, taps: Sequence[int], mirrored: bool = False) -> Geometry:
        """The same from any sequence of taps."""
        return cls(front, tuple(taps), mirrored)

    def offsets(self) -> list[tuple[int, int]]:
        """(dy, dx) from a cell to the cell whose h it reads, for each tap."""
        if self.front == "row":
            return [(-1, tap) for tap in self.taps]
        side = -1 if self.mirrored else 1
        return [(tap, side * (-1 - tap)) for tap in self.taps]

    def cell_offset(self) -> tuple[int, int]:
        """(dy, dx) from a cell to the cell whose c it carries on: above, or on the diagonal's own row."""
        if self.front == "row":
            return -1, 0
        return 0, 1 if self.mirrored else -1

    def steps(self, height: int, width: int) -> int:
        """The number of steps; 0 for an image without cells."""
        if height == 0 or width == 0:
            return 0
        return height if self.front == "row" else height + width - 1

    def step(self, y: int, x: int, width: int) -> int:
        """The step to which a cell belongs, counted from 0."""
        if self.front == "row":
            return y
        return y + (width - 1 - x if self.mirrored else x)

    def cells(self, step: int, height: int, width: int) -> list[tuple[int, int]]:
        """(y, x) of the cells of a step, top to bottom or left to right."""
        if self.front == "row":
            return [(step, x) for x in range(width)]
        rows = range(max(0, step - width + 1), min(height, step + 1))
        return [(y, width - 1 - (step - y) if self.mirrored else step - y) for y in rows]


@lru_cache(maxsize=256)
def geometries_of(front: str, taps: tuple[int, ...], mirrored: tuple[bool, ...]) -> tuple[Geometry, ...]:
    """The geometry of each direction."""
    return tuple(Geometry(front, taps, one) for one in mirrored)
