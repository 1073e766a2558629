"""Models in the styles of published ones: each is sampled as the loop of full forwards does it, by every executor."""

import pytest
import torch
from helpers.sampler_exact import assert_exact_on_every_executor

import genkernels
from bench.published_priors import STYLES


@pytest.mark.parametrize("name", STYLES)
def test_a_published_style_is_sampled_exactly(name):
    style = STYLES[name]
    model = style.model()
    size = style.sizes[0]
    condition = None if style.condition is None else style.condition(2, size)
    example = None
    if condition is not None:
        shape = (2, style.options["in_channels"], *size)
        example = torch.randint(style.options["levels"], shape, generator=torch.Generator().manual_seed(0))
    fast = genkernels.fast_sampler(model, example, condition=condition, **style.options)
    for n, size in zip((1, 3), style.sizes, strict=True):
        condition = None if style.condition is None else style.condition(n, size)
        drawn = assert_exact_on_every_executor(fast, n, size, condition)
        assert len(drawn.unique()) > 1
