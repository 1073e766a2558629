"""Training by recipe, from the command line or from a script.

recipes.py          recipes by name: model, objective, general settings
defaults.py         defaults by model and data set, with their sources
settings.py         settings and limits of a run
optimization.py     the descent of one loss
schedule.py         schedules of the learning rate
diagnosis.py        the layer where numbers ceased to be finite
run.py              a run in a folder: started or resumed
loop.py             the training loop
objectives/         one training objective per family
data/               data sets by name, as uint8 tensors
metrics.py          means over images, the likelihood first of all
point_metrics.py    modes covered by generated points
sample_metrics.py   Inception score and Fréchet distance by a trained classifier
drawing.py          many images of a trained model, by all processes
pictures.py         grids of images, and curves
tensorboard.py      the same and the history for TensorBoard
checkpoint.py       model and training state in one file
atomic_write.py     files that are written whole or not at all
lock.py             one process at a time in a run's folder
ctrl_c.py           Ctrl-C and SIGTERM between two steps
errors.py           errors that a user can mend
processes.py        the processes of a run that torchrun started
compare.py          our PixelCNN timed against its twin in plain PyTorch
plain_pixelcnn.py   that twin
"""

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
