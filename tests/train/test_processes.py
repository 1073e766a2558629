"""Training in several processes: what two do together is what one does alone, and they end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fresh_process import run_fresh

from genkernels.train import Limits, resume_run, start_run
from genkernels.train.drawing import draw

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch was built without torch.distributed or its gloo backend",
)

PIXELCNN = {"hidden_channels": 4, "num_layers": 1}
VAE = {"hidden_channels": 4, "latent_dim": 3}
DCGAN = {"hidden_channels": 4, "latent_dim": 3}
# name: recipe, settings, options of the model and of the objective, steps
RUNS = {
    "likelihood": ("pixelcnn", {"batch_size": 75}, PIXELCNN, {}, 21),  # shares of 37 and 38, the last of 36 and 37
    "one image for two": ("pixelcnn", {"batch_size": 1497}, PIXELCNN, {}, 3),
    "parts": ("pixelcnn", {"batch_size": 75, "micro_batches": 4, "ema": 0.9}, PIXELCNN, {}, 10),
    "vae": ("vae", {"batch_size": 75}, VAE, {"free_bits": 0.05}, 10),
    "pixelvae": ("pixelvae", {"batch_size": 35}, VAE, {}, 3),
    "autoencoder": ("autoencoder", {"batch_size": 75}, VAE, {}, 10),
    "adversarial autoencoder": ("adversarial-autoencoder", {"batch_size": 75}, VAE, {}, 10),
    "dcgan": ("dcgan", {"batch_size": 75}, DCGAN, {"feature_matching": 0.1, "r1": 0.1}, 10),
    "classifier": ("classifier", {"batch_size": 75}, VAE, {}, 10),
    "penalty": ("dcgan", {"batch_size": 75}, DCGAN | {"discriminator_norm": "none"}, {"gradient_penalty": 10.0}, 5),
    "history": ("gan", {"batch_size": 75, "data": "ring"}, {"latent_dim": 3}, {"historical_averaging": 0.1}, 5),
}

BOTH = """
import json, sys
from pathlib import Path
import torch
from genkernels.train import Limits, resume_run, start_run, processes
torch.set_num_threads(1)
with processes.launched():
    assert processes.count() == 2
    rank, folder = processes.rank(), Path(sys.argv[1])
    def run(body):
        try:
            return body()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
"""


def two_processes(folder, body):
    """What the Python ``body`` leaves in ``result`` in each of two processes; a process that hangs fails the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = BOTH + textwrap.indent(textwrap.dedent(body) + "\nprint(json.dumps(result))", "    ")
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            env=shared | {"RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        results = [worker.communicate(timeout=100) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, (_, err) in zip(workers, results, strict=True):
        assert worker.returncode == 0, err
    return [json.loads(out.splitlines()[-1]) for out, _ in results]


def losses_of(recipe, settings, model, objective, steps, folder):
    trainer, _ = start_run(recipe, folder, {"data": "digits", **settings}, model, objective)
    trainer.run(Limits(steps=steps))
    measures = trainer.objective.evaluate(trainer.result, trainer.test.first(150), how_to_evaluate())
    return trainer._recent + trainer.history, {measure.key: measure.mean for measure in measures}


def numbers(record):
    return {key: value for key, value in record.items() if key not in ("seconds", "binarize")}


def how_to_evaluate():
    from genkernels.train.objectives import Evaluating

    return Evaluating(batch_size=40)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(steps, figures) of every run in each of two processes, and the folder of the first."""
    folder = tmp_path_factory.mktemp("two")
    results = two_processes(
        folder,
        f"""
        from genkernels.train.objectives import Evaluating
        result = {{}}
        for name, (recipe, settings, model, objective, steps) in {RUNS!r}.items():
            place = folder / str(rank) / name
            trainer, _ = start_run(recipe, place, {{"data": "digits", **settings}}, model, objective)
            trainer.run(Limits(steps=steps))
            how = Evaluating(batch_size=40)
            measures = trainer.objective.evaluate(trainer.result, trainer.test.first(150), how)
            result[name] = trainer._recent + trainer.history, {{m.key: m.mean for m in measures}}
        """,
    )
    return results, folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_losses_of_one(pair, tmp_path, name):
    # Sums over half a batch round otherwise. A GAN's game, and a batch norm's small variances, make more of it.
    tolerance = 1e-5 if RUNS[name][0] == "pixelcnn" else 1e-3
    expected, figures = losses_of(*RUNS[name], tmp_path)
    for recorded, measured in (one[name] for one in pair[0]):
        assert len(recorded) == len(expected) > 0
        for step, own in zip(recorded, expected, strict=True):
            own = numbers(own)
            assert numbers(step) == pytest.approx(own, rel=tolerance, abs=tolerance)
        if RUNS[name][1].get("data") != "ring":  # how many of 10,000 points fall into a mode is not continuous
            assert measured == pytest.approx(figures, rel=10 * tolerance, abs=tolerance)


def test_the_processes_agree_to_the_bit(pair):
    first, second = pair[0]
    for name in RUNS:
        assert [*map(numbers, first[name][0])] == [*map(numbers, second[name][0])], name
        assert first[name][1] == second[name][1], name


def test_only_the_first_process_writes(pair):
    _, folder = pair
    assert {path.name for path in (folder / "0" / "likelihood").iterdir()} == {"model.pt", "history.jsonl"}
    assert not (folder / "1").exists()


def test_a_run_of_two_processes_goes_on_in_one(pair, tmp_path):
    recipe, settings, model, objective, steps = RUNS["vae"]
    whole, _ = start_run(recipe, tmp_path, {"data": "digits", **settings}, model, objective)
    whole.run(Limits(steps=steps + 3))
    resumed, _ = resume_run(recipe, pair[1] / "0" / "vae", {}, {})
    assert resumed.step == steps
    resumed.run(Limits(steps=steps + 3))
    for own, expected in zip(resumed._recent, whole._recent, strict=True):
        assert own == pytest.approx(expected, rel=1e-3)


DRAWN_AND_JUDGED = """
from genkernels.models import DCGAN, Classifier, PixelCNN
from genkernels.train import open_dataset
from genkernels.train.drawing import draw
from genkernels.train.objectives import AdversarialObjective, LikelihoodObjective
from genkernels.train.sample_metrics import sample_measures
result = []
torch.manual_seed(0)
small = {"in_channels": 1, "hidden_channels": 4, "image_size": 8, "num_classes": 10}
models = [(AdversarialObjective(), DCGAN(**small)), (LikelihoodObjective(), PixelCNN(num_layers=1, **small))]
for objective, model in models:
    drawn = draw(objective, model.eval(), 600, seed=3)
    measures = sample_measures(Classifier(**small), drawn, open_dataset("digits").test, 64)
    sums = drawn.sum((1, 2, 3)).tolist()
    result.append([sums, [m.mean for m in measures], [m.standard_error for m in measures]])
"""


def test_two_processes_draw_and_judge_as_one_does(tmp_path):
    alone: dict[str, Any] = {"torch": torch}
    exec(DRAWN_AND_JUDGED, alone)
    first, second = two_processes(tmp_path, DRAWN_AND_JUDGED)
    assert first == second
    for together, own in zip(first, alone["result"], strict=True):
        assert together[0] == own[0] and len(set(own[0])) > 20
        for a, b in zip(together[1:], own[1:], strict=True):
            assert a == pytest.approx(b, rel=1e-4)


def test_the_command_sample_writes_once_what_one_process_draws(tmp_path):
    pytest.importorskip("typer", reason="the command line needs the extra 'cli'")
    trainer, _ = start_run("vae", tmp_path / "run", {"data": "digits"}, VAE)
    trainer.run(Limits(steps=2))
    body = """
    import os
    from genkernels.cli.app import _run
    os.chdir(folder)
    result = [_run(["sample", "run", "-n", "600", "--out", out]) for out in ("two.npy", "nowhere/two.npy")]
    result.append(_run(["sample", "run", "--complete"]))
    """
    assert two_processes(tmp_path, body) == [[0, 1, 2]] * 2
    alone = draw(trainer.objective, trainer.model, 600, seed=0).permute(0, 2, 3, 1)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "two.npy")), alone)


def test_processes_end_together(tmp_path):
    """Where one gets a signal, numbers that are not finite, other data, a damaged image, or a folder that is in use."""
    (tmp_path / "first").mkdir()
    results = two_processes(
        tmp_path,
        f"""
        import os, signal, time
        from genkernels.train.errors import DataError
        from genkernels.train.lock import FolderLock
        small = {PIXELCNN!r}
        result = []

        def start(place, **settings):
            settings = {{"data": "digits", "batch_size": 200, **settings}}
            return start_run("pixelcnn", folder / place, settings, small)[0]

        trainer = start("signal")
        def on_step(done):
            if rank == 1 and trainer.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
        trainer.run(Limits(steps=50), on_step)
        result.append([trainer.step, trainer.stopped_by])

        trainer = start("minutes")
        def on_step(done):
            if rank == 1:
                time.sleep(0.01)  # the slower one's clock would go on for longer
        trainer.run(Limits(minutes=0.005), on_step)
        result.append(trainer.step)

        trainer = start("nan")
        trainer.run(Limits(steps=2))
        batch = trainer.batches.batch(trainer.epoch, trainer.batch, trainer.device).images
        layer = trainer.model.layers[0]
        def poison(module, inputs, output):
            return output * float("nan") if rank == 1 else None
        layer.register_forward_hook(poison)
        result.append(run(lambda: trainer.run(Limits(steps=9))))

        images = "folder:" + str(folder / "nowhere") if rank == 1 else "digits"
        result.append(run(lambda: start("data", data=images)))

        trainer = start("image")
        trainer.run(Limits(steps=2))
        def damaged(*place):
            raise DataError("cat.png: damaged")
        if rank == 1:
            trainer.batches.batch = damaged
        result.append(run(lambda: trainer.run(Limits(steps=9))))

        trainer = start("locked")
        if rank == 0:
            lock = FolderLock(folder / "locked")
            lock.__enter__()
        result.append(run(lambda: trainer.run(Limits(steps=2))))
        result.append(run(lambda: start("signal")))
        """,
    )
    assert results[0] == results[1]
    stopped, steps, diverged, data, image, locked, held = results[0]
    assert stopped == [3, signal.SIGTERM]
    assert steps > 0
    assert "TrainingError: training diverged: the loss became nan at step 3, first in layers.0;" in diverged
    assert "nowhere" in data
    assert image == "DataError: cat.png: damaged"
    assert "another run is writing" in locked
    assert "holds a run already" in held


@pytest.mark.slow
def test_torchrun_prints_once_and_passes_ctrl_c_on(tmp_path):
    pytest.importorskip("typer", reason="the command line needs the extra 'cli'")
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "genkernels", "train", "pixelcnn", "--out", "run", "--epochs", "100000",
         "--hidden-channels", "4", "--num-layers", "1"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "model.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.count("parameters") == 1
    assert out.count("go on with: genkernels train pixelcnn --out run --resume") == 1
    assert torch.load(tmp_path / "run" / "model.pt", weights_only=True)["progress"]["step"] > 0


def test_a_missing_package_is_told_in_every_process():
    import pickle

    from genkernels.train.errors import MissingPackageError

    error = MissingPackageError("tensorboard", "--tensorboard", extra="tensorboard")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_command_for_one_process_refuses_torchrun():
    printed = run_fresh(
        """
        import os
        import torch
        from genkernels.cli.app import run
        from genkernels.train import processes
        processes.count = lambda: 2
        print(run(["info"]))
        """
    )
    assert printed == "2"
