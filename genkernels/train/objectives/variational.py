"""Variational autoencoders: a bound of the likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...models import VAE
from ..data.batches import Batch
from ..data.sources import Dataset, as_picture, dequantise
from ..metrics import Measure, mean_over
from ..optimization import Descent
from .base import Objective, Progress, refuse

LATENT_GRID_SIDE = 15


@dataclass(frozen=True)
class VariationalObjective(Objective[VAE]):
    """Maximises the evidence lower bound with the model's weight ``beta`` of the divergence.

    The gradient that is clipped is that of nats per sub-pixel. The figures for test images are of the bound itself
    (beta = 1), with the same random numbers at every evaluation.
    """

    curves: ClassVar = {"train_nats": "training", "test_nats": "test"}
    unit = "nats per image (upper bound)"

    def levels(self, model: VAE) -> int:
        return model.levels

    def model_options(self, dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
        return {} if given.get("likelihood", "bernoulli") == "bernoulli" else {"levels": dataset.levels}

    def step(self, model: VAE, batch: Batch, descents: Mapping[str, Descent]) -> dict[str, float]:
        nats, kl, size = 0.0, 0.0, batch.images[0].numel()

        def losses() -> Iterator[Tensor]:
            nonlocal nats, kl
            for part, share in batch.parts():
                reconstruction, divergence = model.elbo_terms(part.images)
                nats += (divergence - reconstruction).mean().item() * share
                kl += divergence.mean().item() * share
                yield (model.beta * divergence - reconstruction).mean() * (share / size)

        norm = descents["model"].step(losses()).norm
        return {"train_nats": nats, "train_kl": kl, "grad_norm": norm}

    def evaluate(
        self,
        model: VAE,
        images: Tensor,
        batch_size: int = 64,
        progress: Progress | None = None,
        importance_samples: int | None = None,
        labels: Tensor | None = None,
    ) -> list[Measure]:
        generator = torch.Generator().manual_seed(0)
        if importance_samples is not None:

            def weighted(x: Tensor) -> tuple[Tensor]:
                return (-model.iwae(x, importance_samples, generator=generator),)

            (nats,) = mean_over(model, images, weighted, batch_size, progress)
            return [Measure("nats", f"nats per image (upper bound from {importance_samples} samples)", *nats)]

        def bound(x: Tensor) -> tuple[Tensor, Tensor]:
            reconstruction, divergence = model.elbo_terms(x, generator=generator)
            return divergence - reconstruction, divergence

        nats, divergence = mean_over(model, images, bound, batch_size, progress)
        return [Measure("nats", self.unit, *nats), Measure("kl", "nats of divergence in them", *divergence)]

    def sample(
        self,
        model: VAE,
        n: int,
        generator: torch.Generator,
        progress: Progress | None = None,
        temperature: float | None = None,
        label: int | None = None,
    ) -> Tensor:
        refuse("temperature", temperature, "a VAE")
        refuse("label", label, "a VAE")
        return as_picture(model.sample(n, generator=generator))

    def pictures(
        self, model: VAE, images: Tensor, n: int, generator: torch.Generator, progress: Progress | None = None
    ) -> dict[str, dict[str, Tensor]]:
        device = next(model.parameters()).device
        real = dequantise(images[:n], model.levels)
        grids = {
            "samples": {"samples": self.sample(model, n, generator), "real": real},
            "reconstructions": {"real": real, "reconstructed": as_picture(model.reconstruct(images[:n].to(device)))},
        }
        if model.latent_dim == 2:
            grids["latent_grid"] = {"decoded over the plane of codes": as_picture(model.latent_grid(LATENT_GRID_SIDE))}
        return grids
