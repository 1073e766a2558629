"""Distributions of the levels of a pixel, which autoregressive models predict the parameters of and samplers draw from.

base.py              Distribution: what every one of them says of itself
categorical.py       a probability for each level of each sub-pixel: softmax, or one logit for two levels
logistic_mixture.py  a mixture of discretized logistics over all colours of a pixel
custom.py            whatever a function of the user's own draws
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import Distribution
from .categorical import Bernoulli, Categorical
from .custom import Custom
from .logistic_mixture import DiscretizedLogisticMixture

DISTRIBUTIONS = (Categorical.name, DiscretizedLogisticMixture.name)  # that the models of this package predict
ALL_DISTRIBUTIONS = (Categorical.name, Bernoulli.name, DiscretizedLogisticMixture.name)


def make_distribution(
    name: str, levels: int, colours: int, mixtures: int, known: Sequence[str] = DISTRIBUTIONS
) -> Distribution:
    """The distribution of that name, if it is one of ``known``; ``mixtures`` is of a mixture alone.

    Raises:
        ValueError: it is not, or an argument does not fit.
    """
    if name not in known:
        raise ValueError(f"distribution: expected one of {', '.join(map(repr, known))}; got {name!r}")
    if name == DiscretizedLogisticMixture.name:
        return DiscretizedLogisticMixture(levels, colours, mixtures)
    return Bernoulli(levels, colours) if name == Bernoulli.name else Categorical(levels, colours)


__all__ = [
    "ALL_DISTRIBUTIONS",
    "DISTRIBUTIONS",
    "Bernoulli",
    "Categorical",
    "Custom",
    "DiscretizedLogisticMixture",
    "Distribution",
    "make_distribution",
]
