"""Modes that a GAN covers on the ring of 8 Gaussians, plain and with each stabiliser, over five seeds.

    python -m bench.gan_modes [--steps 5000] [--seeds 5] [--data ring] [--json FILE]

Prints a table and writes its figures with the machine and the commit; those of one run are in gan_modes.json. Not a
matter of speed: the seconds are there to show what a stabiliser costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.core.machine import machine, software
from genkernels.train import Limits, start_run
from genkernels.train.objectives import Evaluating

NETWORKS = {"hidden_channels": 128, "num_layers": 2, "latent_dim": 16}
SETTINGS = {"batch_size": 128, "learning_rate": 1e-3}


@dataclass(frozen=True)
class Game:
    """What is added to the plain game."""

    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)


GAMES = {
    "plain (non-saturating)": Game(),
    "plain (minimax)": Game(objective={"loss": "minimax"}),
    "minibatch discrimination": Game({"minibatch_kernels": 4}),
    "feature matching": Game(objective={"feature_matching": 1.0}),
    "historical averaging": Game(objective={"historical_averaging": 0.01}),
    "label smoothing": Game(objective={"label_smoothing": 0.1}),
    "R1": Game(objective={"r1": 0.1}),
    "WGAN-GP": Game(objective={"loss": "wasserstein", "gradient_penalty": 1.0}),
    "spectral norm": Game({"spectral_norm": True}),
    "hinge, spectral norm": Game({"spectral_norm": True}, {"loss": "hinge"}),
    "minibatch discrimination, R1": Game({"minibatch_kernels": 4}, {"r1": 0.1}),
}


@dataclass(frozen=True)
class Outcome:
    """One run."""

    game: str
    seed: int
    steps: int
    covered: int
    good_share: float
    seconds: float


def play(name: str, data: str, seed: int, steps: int) -> Outcome:
    """Train one GAN and count."""
    game = GAMES[name]
    with tempfile.TemporaryDirectory() as folder:
        trainer, dataset = start_run(
            "gan", Path(folder), {"data": data, "seed": seed, **SETTINGS}, NETWORKS | game.model, game.objective
        )
        began = time.perf_counter()
        trainer.run(Limits(steps=steps))
        seconds = time.perf_counter() - began
        missed, share = trainer.objective.evaluate(trainer.result, trainer.test, Evaluating())
    assert dataset.mixture is not None
    return Outcome(name, seed, steps, len(dataset.mixture.centres) - int(missed.mean), share.mean, seconds)


def table(outcomes: list[Outcome]) -> str:
    """Markdown: a row for each game, the modes of each seed."""
    lines = ["| game | modes covered, by seed | good points, mean | seconds |", "|---|---|---|---|"]
    for name in dict.fromkeys(outcome.game for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.game == name]
        modes = ", ".join(str(outcome.covered) for outcome in own)
        good = statistics.mean(outcome.good_share for outcome in own)
        lines.append(f"| {name} | {modes} | {good:.0%} | {statistics.median(o.seconds for o in own):.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="ring", choices=("ring", "grid"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    outcomes = []
    for name in GAMES:
        for seed in range(arguments.seeds):
            outcomes.append(play(name, arguments.data, seed, arguments.steps))
            print(outcomes[-1], flush=True)
    print(table(outcomes))
    if arguments.json is not None:
        found = {
            "machine": machine(),
            "software": software(),
            "data": arguments.data,
            "outcomes": [asdict(o) for o in outcomes],
        }
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
