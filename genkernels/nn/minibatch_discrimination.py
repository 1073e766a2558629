"""``MinibatchDiscrimination``: tells a discriminator how alike the samples of a batch are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MinibatchDiscrimination(nn.Module):
    """Appends to the features of each sample how close it is to the others of its batch.

    With ``M = f @ weight`` as [N, kernels, kernel_dim], ``o_b(i) = sum over j != i of exp(-|M_ib - M_jb|_1)``. A
    generator whose samples are all alike is given away by it. It takes 4 * N² * kernels * kernel_dim bytes.

    These sums grow with the batch: beside features of about 1, those of 128 samples begin near 100, and the layer
    behind sees little else. ``average`` makes them 0 .. 1 in batches of any size.

    Args:
        in_features: F.
        kernels: features that are appended, B.
        kernel_dim: numbers that are compared for each.
        average: divide the sums by the number of other samples, N - 1.

    Shape: [N, F] -> [N, F + kernels].

    Raises:
        ValueError: an argument is not a whole number of at least 1; the message names it.

    Source: Salimans et al. 2016, "Improved Techniques for Training GANs", section 3.2. (Its sum has j = i, which adds
        1 everywhere.)
    """

    def __init__(
        self,
        in_features: int,
        kernels: int = 50,
        kernel_dim: int = 5,
        *,
        average: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("kernels", kernels), ("kernel_dim", kernel_dim)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1; got {value!r}")
        self.in_features, self.kernels, self.kernel_dim, self.average = in_features, kernels, kernel_dim, average
        self.weight = nn.Parameter(torch.empty(in_features, kernels * kernel_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights that keep the size of the features."""
        nn.init.normal_(self.weight, std=self.in_features**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 2 or features.shape[1] != self.in_features:
            raise ValueError(f"features: expected [N, {self.in_features}]; got shape {list(features.shape)}")
        compared = (features @ self.weight).T.unflatten(0, (self.kernels, self.kernel_dim))
        distances = features.new_zeros(())
        for numbers in compared.unbind(1):  # [kernels, N]: rows of samples are quick to take apart
            distances = distances + (numbers[:, :, None] - numbers[:, None]).abs()
        closeness = (-distances).exp().sum(2).T - 1  # less that to itself
        if self.average:
            closeness = closeness / max(len(features) - 1, 1)
        return torch.cat([features, closeness], 1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, kernels={self.kernels}, kernel_dim={self.kernel_dim}, average={self.average}"
