"""``genkernels.accelerate``: swaps what can be proven equal in an existing model, in place."""

from .accelerate import accelerate, restore
from .report import Entry, Report

__all__ = ["Entry", "Report", "accelerate", "restore"]
