"""Training loop: one step after another until a limit, with checkpoints from which it goes on exactly."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ..models import GenerativeModel
from . import processes
from .atomic_write import write_atomically
from .checkpoint import BEST_CHECKPOINT, CHECKPOINT, save_checkpoint
from .ctrl_c import InterruptRequest
from .data.augmentation import Augmentation
from .data.batches import Batches, LabelledImages
from .data.file_images import fingerprint
from .diagnosis import first_layer_not_finite
from .errors import TrainingError
from .lock import FolderLock
from .objectives import Drawing, Evaluating, Objective
from .optimization import PRECISIONS, NotFiniteError
from .pictures import save_grids
from .recipes import Recipe
from .settings import Limits, Settings
from .tensorboard import TensorBoard

HISTORY = "history.jsonl"

RECORD_STEPS = 10  # steps that one line of the history averages
EVALUATION_IMAGES = 1000  # at most, of the test images, while training
EVALUATION_STEPS = 100  # at least, between two evaluations; an epoch, where that is longer
SAVE_SECONDS = 30.0
DEFAULT_SAMPLES = 16


def _averaging(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The running average of a weight, which forgets the first steps soon."""

    def average(so_far: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
        count = int(steps)
        return so_far.lerp(new, 1 - min(decay, (1 + count) / (10 + count)))

    return average


def augmentation_of(settings: Settings, levels: int) -> Augmentation:
    """What the settings say is random in training images, of a model of so many levels."""
    return Augmentation(settings.crop, settings.size, settings.flip, settings.binarize == "stochastic", levels)


class Trainer:
    """Trains a model, in one process or in all of torchrun's, and keeps three files in a folder: ``model.pt``,
    ``best.pt`` (of the best test figure), and ``history.jsonl``.

    The objective takes the steps and measures; everything else is the same for all families.

    Args:
        recipe: that of the model.
        objective: takes the steps, measures, and makes pictures.
        model: moved to ``device``.
        train, test: images in levels, on the CPU, with labels where the model takes them; training images are greys
            where :func:`augmentation_of` the settings says so.
        settings: see :class:`Settings`.
        folder: exists already.
        device: where to train.
    """

    def __init__(
        self,
        recipe: Recipe,
        objective: Objective[Any],
        model: GenerativeModel,
        train: LabelledImages,
        test: LabelledImages,
        settings: Settings,
        folder: Path,
        device: torch.device | str = "cpu",
    ) -> None:
        self.recipe, self.settings, self.folder = recipe, settings, folder
        self.device = torch.device(device)
        self.model = model.to(self.device)
        if processes.count() > 1:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.train, self.test = train, test
        augmentation = augmentation_of(settings, objective.levels(model))
        self.batches = Batches(train, settings.batch_size, settings.seed, settings.micro_batches, augmentation)
        self.objective = objective
        self.descents = objective.descents(model, settings)
        self._average = AveragedModel(self.model, avg_fn=_averaging(settings.ema)) if settings.ema else None
        self.epoch = 0
        self.batch = 0  # batches done in this epoch
        self.step = 0
        self.limits = Limits()  # those of the last call of run()
        self.seconds = 0.0  # of training so far, over all resumed parts
        self.history: list[dict[str, Any]] = []
        self.samples = DEFAULT_SAMPLES  # images to draw at the end
        self.images_every: int | None = None  # epochs from one drawing of images to the next while training
        self.tensorboard = False  # whether the history and these images are for TensorBoard, too
        self._board: TensorBoard | None = None
        self.stopped_by: int | None = None  # the number of the signal that ended the last part early
        self._recent: list[dict[str, float]] = []  # results of the steps since the last record
        self._saved_step = -1
        self._best = math.inf  # the first measure of the best evaluation

    @property
    def result(self) -> GenerativeModel:
        """What is evaluated, drawn from and kept: the model, or the average of its weights."""
        return self.model if self._average is None else cast(GenerativeModel, self._average.module)

    @property
    def fingerprint(self) -> list[int]:
        """Fingerprint of the images, to tell them from others: how many there are, and what is in them."""
        return [len(self.train), len(self.test), fingerprint(self.train.images)]

    def latest(self, key: str) -> float | None:
        """The newest entry of that name in the history, such as "train_nats"; None before there is one."""
        return next((record[key] for record in reversed(self.history) if key in record), None)

    def done(self, limits: Limits, seconds: float = 0.0) -> float:
        """The share of the way to the nearest limit, 0 .. 1, ``seconds`` after the start of this part."""
        parts = [0.0]
        if limits.epochs is not None:
            parts.append((self.epoch + self.batch / len(self.batches)) / limits.epochs)
        if limits.steps is not None:
            parts.append(self.step / limits.steps)
        if limits.minutes is not None:
            parts.append(seconds / (60 * limits.minutes))
        return min(max(parts), 1.0)

    def run(self, limits: Limits, on_step: Callable[[float], None] | None = None) -> bool:
        """Train until a limit; ``on_step(done)`` after each step. Ends with a checkpoint.

        Returns:
            False when Ctrl-C or SIGTERM ended it early (after the step in hand), else True; :attr:`stopped_by` says
            which.

        Raises:
            TrainingError: the loss or its gradient is no longer finite. The last checkpoint stays as it is.
            DataError: the file of an image that is not in memory is damaged; the same holds.
            OSError: the folder cannot be written.
        """
        self.limits = limits
        self.model.train()
        with ExitStack() as stack, closing(self.batches), InterruptRequest() as interrupt:
            processes.first_does(lambda: stack.enter_context(FolderLock(self.folder)) and None)
            processes.first_does(lambda: self._open_board(stack))
            if self._saved_step != self.step:
                self.save()  # a folder that cannot be written shows now, not after the first hour
            began, before = time.monotonic(), self.seconds
            saved = began
            signal, elapsed = *processes.largest(interrupt.signal or 0), 0.0
            while not signal and self.done(limits, elapsed) < 1:
                self._one_step()
                elapsed = time.monotonic() - began
                self.seconds = before + elapsed
                if self.step % RECORD_STEPS == 0:
                    self._record()
                if self.step % max(len(self.batches), EVALUATION_STEPS) == 0:
                    self._evaluate()
                if self.images_every is not None and self.batch == 0 and self.epoch % self.images_every == 0:
                    processes.first_does(self._draw)
                if on_step is not None:
                    on_step(self.done(limits, elapsed))
                # The clocks and the signals of processes differ; what follows from them may not.
                signal, elapsed, unsaved = processes.largest(interrupt.signal or 0, elapsed, time.monotonic() - saved)
                if unsaved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
            if self._saved_step != self.step:
                self.save()
        self.stopped_by = int(signal) or None
        return not signal

    def _one_step(self) -> None:
        batch = processes.together(lambda: self.batches.batch(self.epoch, self.batch, self.device))
        dtype = PRECISIONS[self.settings.precision]

        def step() -> dict[str, float]:
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                return self.objective.step(self.model, batch, self.descents)

        try:
            values = step()
        except NotFiniteError as error:
            kept = "the last checkpoint" if self._saved_step < 0 else f"the checkpoint of step {self._saved_step}"
            layer = first_layer_not_finite(self.model, step)
            raise TrainingError(
                f"training diverged: {error} at step {self.step + 1}{f', first in {layer}' if layer else ''}; "
                f"{kept} is kept in {self.folder / CHECKPOINT}; try a smaller learning rate"
            ) from error
        if self._average is not None:
            self._average.update_parameters(self.model)
        self.step += 1
        self.batch += 1
        if self.batch == len(self.batches):
            self.epoch, self.batch = self.epoch + 1, 0
        self._recent.append(values)

    def _record(self) -> None:
        means = {}
        for key in {key: None for step in self._recent for key in step}:  # a generator may rest at some steps
            values = [step[key] for step in self._recent if key in step]
            means[key] = sum(values) / len(values)
        self._note(means)
        self._recent = []

    def _evaluate(self) -> None:
        """Measure, and keep the model in best.pt where its first figure, which is to be low, is the lowest so far."""
        measures = self.objective.evaluate(self.result, self.test.first(EVALUATION_IMAGES), Evaluating())
        if not measures:
            return
        self._note({f"test_{measure.key}": measure.mean for measure in measures})
        if measures[0].mean < self._best:
            self._best = measures[0].mean
            progress = {"step": self.step, measures[0].key: measures[0].mean}
            processes.first_does(
                lambda: save_checkpoint(
                    self.folder / BEST_CHECKPOINT, self.recipe, self.objective, self.result, asdict(self.settings),
                    progress=progress,
                )
            )  # fmt: skip

    def _note(self, figures: dict[str, float]) -> None:
        """A line of the history."""
        self.history.append(
            {
                "step": self.step,
                "epoch": round(self.step / len(self.batches), 4),
                "seconds": round(self.seconds, 3),
                **({} if self.settings.binarize is None else {"binarize": self.settings.binarize}),
                **figures,
            }
        )
        if self._board is not None:
            self._board.write(self.history[-1])

    def _open_board(self, stack: ExitStack) -> None:
        self._board = TensorBoard(self.folder, self.step) if self.tensorboard else None
        if self._board is not None:
            stack.callback(self._board.close)

    def _draw(self) -> None:
        """Write the pictures of this epoch; they compare, since their random numbers are the same at every epoch."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # whatever a family draws without the generator
            torch.manual_seed(self.settings.seed)
            drawing = Drawing(torch.Generator().manual_seed(self.settings.seed))
            pictures = self.objective.pictures(self.result, self.test, max(self.samples, 1), drawing)
        for name, grids in pictures.items():
            path = self.folder / f"{name}-{self.epoch}.png"
            save_grids(path, grids, 256)
            if self._board is not None:
                self._board.show(name, path, self.step)

    def save(self) -> None:
        """Write the checkpoint and the history, each atomically; the first process does."""
        processes.first_does(self._write)
        self._saved_step = self.step

    def _write(self) -> None:
        save_checkpoint(
            self.folder / CHECKPOINT,
            self.recipe,
            self.objective,
            self.result,
            asdict(self.settings),
            weights=None if self._average is None else self.model.state_dict(),
            averaged_steps=0 if self._average is None else int(self._average.n_averaged),
            best=self._best,
            optimizers={name: descent.state_dict() for name, descent in self.descents.items()},
            progress={"epoch": self.epoch, "batch": self.batch, "step": self.step, "seconds": self.seconds},
            limits=asdict(self.limits),
            samples=self.samples,
            images_every=self.images_every,
            tensorboard=self.tensorboard,
            images=self.fingerprint,
            history=self.history,
            recent=self._recent,
            rng={"cpu": torch.get_rng_state(), "cuda": self._cuda_rng_state()},
        )
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(self.folder / HISTORY, lambda file: file.write(lines.encode()))

    def _cuda_rng_state(self) -> Tensor | None:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def restore(self, content: dict[str, Any]) -> None:
        """Go back to where a checkpoint of this run was written; its model is loaded already.

        Raises:
            TrainingError: it is not the checkpoint of a training run.
        """
        try:
            progress, rng = content["progress"], content["rng"]
            for name, descent in self.descents.items():
                descent.load_state_dict(content["optimizers"][name])
            self.history, self._recent = list(content["history"]), list(content["recent"])
            self.epoch, self.batch = progress["epoch"], progress["batch"]
            self.step, self.seconds = progress["step"], progress["seconds"]
            self.limits = Limits(**content["limits"])
            self.samples, self._best = content["samples"], content["best"]
            self.images_every, self.tensorboard = content["images_every"], content["tensorboard"]
            if self._average is not None:
                self._average.module.load_state_dict(content["model"])
                self._average.n_averaged.fill_(content["averaged_steps"])
                self.model.load_state_dict(content["weights"])
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{self.folder / CHECKPOINT}: not a run that can be resumed: {error}") from error
        torch.set_rng_state(rng["cpu"])
        if rng["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)
        self._saved_step = self.step
