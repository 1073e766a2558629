"""Pictures of a run: grids of images side by side, and curves. Matplotlib is imported at the first one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .data.sources import dequantise
from .errors import GenkernelsError, MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS_REACH = (3.0, 6.0)  # of the axes: the ring of points, and the grid or what is further out

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".webp")


def check_picture_path(path: Path) -> None:
    """Raise a GenkernelsError unless a picture can be written there; to be called before any long work.

    Raises:
        GenkernelsError: an unknown suffix or a missing folder.
        MissingPackageError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise GenkernelsError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise GenkernelsError(f"{path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise GenkernelsError(f"{path}: cannot be written")
    _figure(1, 1)


def tile(images: Tensor, levels: int, columns: int | None = None) -> Tensor:
    """Images as one: levels [N, C, H, W] -> uint8 [rows, columns, C], with a thin line between them.

    ``columns`` is the number of images in a row; None for as square a grid as N allows.
    """
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = torch.full((channels, rows * (height + 1) - 1, columns * (width + 1) - 1), 128, dtype=torch.uint8)
    for index, image in enumerate(dequantise(images, levels)):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[:, top : top + height, left : left + width] = image
    return sheet.permute(1, 2, 0)


def save_grids(path: Path, grids: Mapping[str, Tensor], levels: int, columns: int | None = None) -> None:
    """One picture with a titled grid for each entry, levels [N, 1 or 3, H, W], side by side.

    Where the entries are points, float32 [N, 2, 1, 1], they lie over each other in one plot; those of the title "modes"
    are crosses.
    """
    if all(images.is_floating_point() for images in grids.values()):
        figure = _figure(6.0, 5.2)
        _scatter(figure.subplots(), grids)
        _save(figure, path)
        return
    figure = _figure(4.2 * len(grids), 4.6)
    for axes, (title, images) in zip(figure.subplots(1, len(grids), squeeze=False)[0], grids.items(), strict=True):
        axes.set_title(title)
        sheet = tile(images, levels, columns)
        axes.imshow(sheet.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_axis_off()
    _save(figure, path)


def _scatter(axes: Axes, groups: Mapping[str, Tensor]) -> None:
    furthest = max(float(points.abs().max()) for points in groups.values())
    reach = POINTS_REACH[furthest > POINTS_REACH[0]]
    for title, points in groups.items():
        x, y = points.flatten(1).T.numpy()
        if title == "modes":
            axes.scatter(x, y, s=40, c="black", marker="x", linewidths=1, label=title)
        else:
            axes.scatter(x, y, s=6, alpha=0.4, linewidths=0, label=title)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.legend(loc="upper right")


def save_curve(path: Path, history: Sequence[Mapping[str, float]], curves: Mapping[str, str], unit: str) -> None:
    """Entries of the history over the steps.

    Args:
        path: the picture.
        history: records with a "step" and any entries.
        curves: which entries, and what they are called. Those that begin with "test_" are drawn as points.
        unit: of all of them.
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    for key, label in curves.items():
        records = [record for record in history if key in record]
        style = "o-" if key.startswith("test_") else "-"
        if records:
            axes.plot([r["step"] for r in records], [r[key] for r in records], style, markersize=3, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError as error:
        raise MissingPackageError("matplotlib", "drawing a picture") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
