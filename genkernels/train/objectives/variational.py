"""Variational autoencoders: a bound of the likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...models import VariationalModel
from .. import processes
from ..data.batches import Batch, LabelledImages
from ..data.sources import Dataset, as_picture, dequantise
from ..metrics import Measure, mean_over
from ..optimization import Descent
from .base import Drawing, Evaluating, Objective, classes_to_draw, refuse

LATENT_GRID_SIDE = 15


@dataclass(frozen=True)
class VariationalObjective(Objective[VariationalModel]):
    """Maximises the evidence lower bound with the model's weight ``beta`` of the divergence.

    The gradient that is clipped is that of nats per sub-pixel. The figures for test images are of the bound itself
    (beta = 1), with the same random numbers at every evaluation.

    Both options keep a strong decoder from doing without the code.

    Attributes:
        kl_warmup: steps over which the weight of the divergence rises from 0 to ``beta`` (Bowman et al. 2016,
            "Generating Sentences from a Continuous Space", section 3.1).
        free_bits: nats of divergence of each number in a code, in the mean over a batch, that cost nothing (Kingma et
            al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", section 4.1, each number a
            group of its own).
    """

    kl_warmup: int = 0
    free_bits: float = 0.0

    curves: ClassVar = {"train_nats": "training", "test_nats": "test"}
    unit = "nats per image (upper bound)"

    def __post_init__(self) -> None:
        for name, value in (("kl_warmup", self.kl_warmup), ("free_bits", self.free_bits)):
            if not value >= 0:
                raise ValueError(f"{name}: expected a number of at least 0; got {value!r}")

    def levels(self, model: VariationalModel) -> int:
        return model.levels

    def takes_labels(self, model: VariationalModel) -> bool:
        return model.num_classes is not None

    def model_options(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        return {} if given.get("likelihood", "bernoulli") == "bernoulli" else {"levels": dataset.levels}

    def step(self, model: VariationalModel, batch: Batch, descents: Mapping[str, Descent]) -> dict[str, float]:
        nats, kl, size = 0.0, 0.0, batch.images[0].numel()
        weight = model.beta * min(1.0, batch.step / self.kl_warmup if self.kl_warmup else 1.0)

        def losses() -> Iterator[Tensor]:
            nonlocal nats, kl
            for part, share in batch.parts():
                noise = part.drawn(lambda n: torch.randn(n, model.latent_dim))
                reconstruction, divergence = model.elbo_terms(part.images, part.labels, noise=noise)
                nats += (divergence.sum(1) - reconstruction).mean().item() * share
                kl += divergence.sum(1).mean().item() * share
                paid = part.mean(divergence).clamp_min(self.free_bits).sum()
                yield (weight * paid - reconstruction.mean()) * (share / size)

        norm = descents["model"].step(losses()).norm
        nats, kl = processes.total(nats, kl)
        return {"train_nats": nats, "train_kl": kl, "grad_norm": norm}

    def evaluate(self, model: VariationalModel, test: LabelledImages, how: Evaluating) -> list[Measure]:
        if (k := how.importance_samples) is not None:

            def weighted(x: Tensor, condition: Tensor | None, generator: torch.Generator) -> tuple[Tensor]:
                return (-model.iwae(x, k, condition, generator=generator),)

            (nats,) = mean_over(model, test, weighted, how.batch_size, how.progress)
            return [Measure("nats", f"nats per image (upper bound from {k} samples)", *nats)]

        def bound(x: Tensor, condition: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            reconstruction, divergence = model.elbo_terms(x, condition, generator=generator)
            return divergence.sum(1) - reconstruction, divergence.sum(1)

        nats, divergence = mean_over(model, test, bound, how.batch_size, how.progress)
        return [Measure("nats", self.unit, *nats), Measure("kl", "nats of divergence in them", *divergence)]

    def sample(self, model: VariationalModel, n: int, how: Drawing) -> Tensor:
        refuse("temperature", how.temperature, "a VAE")
        condition = classes_to_draw(model, model.num_classes, n, how)
        return as_picture(model.sample(n, condition, generator=how.generator))

    def pictures(
        self, model: VariationalModel, test: LabelledImages, n: int, how: Drawing
    ) -> dict[str, dict[str, Tensor]]:
        device = next(model.parameters()).device
        real = dequantise(test.images[:n], model.levels)
        condition = None if test.labels is None else test.labels[:n].to(device)
        reconstructed = as_picture(model.reconstruct(test.images[:n].to(device), condition))
        grids = {
            "samples": {"samples": self.sample(model, n, how), "real": real},
            "reconstructions": {"real": real, "reconstructed": reconstructed},
        }
        if model.latent_dim == 2 and model.num_classes is None:
            grids["latent_grid"] = {"decoded over the plane of codes": as_picture(model.latent_grid(LATENT_GRID_SIDE))}
        return grids
