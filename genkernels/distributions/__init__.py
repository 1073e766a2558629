"""Distributions of the levels of a pixel, which autoregressive models predict the parameters of and samplers draw from.

base.py              Distribution: what every one of them says of itself
categorical.py       a probability for each level of each sub-pixel: softmax
logistic_mixture.py  a mixture of discretized logistics over all colours of a pixel
"""

from __future__ import annotations

from .base import Distribution
from .categorical import Categorical
from .logistic_mixture import DiscretizedLogisticMixture

DISTRIBUTIONS = (Categorical.name, DiscretizedLogisticMixture.name)


def make_distribution(name: str, levels: int, colours: int, mixtures: int) -> Distribution:
    """The distribution of that name; ``mixtures`` is of a mixture alone.

    Raises:
        ValueError: there is none, or an argument does not fit.
    """
    if name == Categorical.name:
        return Categorical(levels, colours)
    if name == DiscretizedLogisticMixture.name:
        return DiscretizedLogisticMixture(levels, colours, mixtures)
    raise ValueError(f"distribution: expected one of {', '.join(map(repr, DISTRIBUTIONS))}; got {name!r}")


__all__ = ["DISTRIBUTIONS", "Categorical", "DiscretizedLogisticMixture", "Distribution", "make_distribution"]
