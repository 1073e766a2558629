"""Options that several commands take, and the values that their texts stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from ..train import processes
from ..train.data.sources import SPECS

Data = Annotated[str | None, typer.Option(help=f"One of: {', '.join(SPECS)}.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU where there is one.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Equal seeds give equal results.")]
Checkpoint = Annotated[Path, typer.Argument(help="A model.pt that train wrote, or the folder of its run.")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leave out files of a folder that cannot be read.")]


def device_of(name: str | None) -> torch.device:
    """The device of that name; of the processes of a run on GPUs each has its own."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and processes.count() > 1:
            if ":" in (name or ""):
                raise typer.BadParameter(f"--device {name}: each process takes its own GPU; give cuda")
            device = torch.device("cuda", processes.local_rank())
        if device.type in ("cpu", "cuda"):
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"--device {name}: {str(error).splitlines()[0]}") from error
    raise typer.BadParameter(f"--device {name}: expected cpu, cuda, cuda:1 ...")


def size_of(text: str | None) -> tuple[int, int] | None:
    """ "32" or "32x48" (height x width) as a pair."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--size: expected 32 or 32x48 (height x width); got {text!r}")
    return int(parts[0]), int(parts[-1])
