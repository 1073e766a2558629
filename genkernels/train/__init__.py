"""Training by recipe: what the command line runs, and what a script can run as well."""

from .checkpoint import load_model
from .data.sources import Dataset, open_dataset, quantise
from .errors import GenkernelsError
from .loop import Trainer
from .metrics import Evaluation, evaluate
from .run import resume_run, start_run
from .settings import Limits, Settings

__all__ = [
    "Dataset",
    "Evaluation",
    "GenkernelsError",
    "Limits",
    "Settings",
    "Trainer",
    "evaluate",
    "load_model",
    "open_dataset",
    "quantise",
    "resume_run",
    "start_run",
]
