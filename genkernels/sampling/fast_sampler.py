"""``genkernels.fast_sampler``: what somebody's model takes and gives is found out, and its sampler proven."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check_model
from ..distributions import ALL_DISTRIBUTIONS, Categorical, Custom, make_distribution
from .output_layout import check_layout, layouts_of
from .predictor import Interface, Predictor
from .request import MAX_LEVELS, check_levels, check_whole, level_dtype
from .sample import in_evaluation
from .sampler import FastSampler, Verification
from .verification import verify

EXAMPLE_SIZES = ((6, 7), (4, 9))

DrawFunction = Callable[[Tensor, Tensor], Tensor]


def fast_sampler(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    levels: int | None = None,
    in_channels: int | None = None,
    scale: Callable[[Tensor], Tensor] | str | None = None,
    condition: Any = None,
    distribution: str | DrawFunction = Categorical.name,
    mixtures: int = 10,
    layout: str | None = None,
) -> FastSampler:
    """A sampler for a causal model of images that draws them in about the time of one forward pass.

    The model's forward pass is run once on a tensor that records what happens to it, and becomes a sampling program
    (:mod:`genkernels.sampling`). Supported are convolutions that keep the resolution (masked in whatever way), shifts
    by padding and slicing, splitting, concatenating and permuting channels, sums, products, activations and elementary
    functions, comparisons, ``where`` and ``masked_fill``, all of them in place too, linear layers, ``einsum`` and
    ``bmm`` with a constant matrix, embeddings and one-hot vectors of levels, batch norm in evaluation; across the
    channels of a pixel softmax, layer norm, sums, means, variances, maxima and norms, over all channels or groups of
    them; attention over the pixels in raster order, each seeing earlier ones and perhaps itself; Row LSTM and Diagonal
    BiLSTM of this package; and whatever does not depend on the image. What mixes pixels (group norm, a mean over rows
    and columns) is not causal; strides and upsampling are not followed. Before the sampler is returned, it is compared
    with the model on random images; see :class:`Verification`. It may be used from many threads at once.

    Args:
        model: maps images [N, C, H, W], as ``scale`` makes them, and a condition where there is one, to logits or
            log-probabilities [N, levels, C, H, W], or in another ``layout``; or to what else ``distribution`` says. Or
            an :class:`~genkernels.models.AutoregressiveModel`, of which all else is known.
        example: levels, [n, C, H, W], to compare on; needed for a model that takes images of one size alone. None for
            random ones of 6 x 7 and, without a condition, of 4 x 9.
        levels: values that a sub-pixel takes, 2 to 65536.
        in_channels: C; not needed with an example.
        scale: from levels 0 .. levels - 1 (a tensor in the model's dtype) to what the model sees; None for
            ``x / (levels - 1)``; "index" for the levels themselves, int64, which an embedding takes.
        condition: one for the example, or for two images, its tensors with an entry for each; None where the model
            takes none. Labels, vectors, or images of any size: whatever the model makes of it is computed once.
        distribution: "categorical": the model predicts logits. "bernoulli": one logit of level 1, for two levels.
            "logistic_mixture": from the pixels before it, the parameters of each pixel's
            :class:`~genkernels.distributions.DiscretizedLogisticMixture`, in the order of PixelCNN++:
            [N, mixtures * (1 + 2 C + C (C - 1) / 2), H, W]. Or a function (parameters [N, K], uniforms [N] in [0, 1))
            -> levels [N] of your own, for the K numbers that the model predicts for a sub-pixel; PyTorch runs its
            programs.
        mixtures: components of a mixture, 1 to 128.
        layout: of what the model gives, a word of N (images), L (levels, or what there is instead), C (colours), H and
            W, letters that share a dimension in brackets: "N(CL)HW" has all levels of the first colour, then those of
            the second. One of :data:`genkernels.sampling.output_layout.LAYOUTS`. None for [N, L, C, H, W] or, where
            the shape is another, the only one that fits it and is causal.

    Raises:
        TypeError: the model is no ``nn.Module``.
        ValueError: an argument does not fit, or the model is not causal; the message says what.
        NotTraceable: (a ValueError) the model cannot be sampled this way; with the name of the layer and the reason.
    """
    check_model(model)
    if isinstance(model, Predictor):
        levels, in_channels = model.levels, model.in_channels
    if levels is None:
        raise ValueError("levels: expected the number of values that a sub-pixel takes; got None")
    check_whole("levels", levels, 2, MAX_LEVELS)
    if layout is not None:
        check_layout(layout)
    examples = _examples(example, levels, in_channels, several=condition is None)
    in_channels = examples[0].shape[1]
    if isinstance(scale, str) and scale != "index":
        raise ValueError(f"scale: expected a function, 'index' or None; got {scale!r}")
    steps = levels - 1
    seen = scale if callable(scale) else (lambda x: x) if scale == "index" else (lambda x: x / steps)
    if isinstance(model, Predictor):
        return _the_only_one([FastSampler(model, model.distribution, seen, Interface())], examples, condition)
    sampler = FastSampler(model, Categorical(levels, in_channels), seen, Interface(index=scale == "index"))
    first = examples[0].to(sampler.table().device)
    with torch.no_grad(), in_evaluation(model):
        outputs = sampler.outputs(sampler.interface.seen(first, sampler.table()), condition)
    if callable(distribution):
        sampler.distribution = Custom(levels, in_channels, max(1, outputs.numel() // first.numel()), distribution)
    else:
        sampler.distribution = make_distribution(distribution, levels, in_channels, mixtures, ALL_DISTRIBUTIONS)
    candidates = layouts_of(outputs.shape, sampler.sizes(first.shape), layout)
    return _the_only_one([sampler.with_layout(candidate) for candidate in candidates], examples, condition)


def _examples(example: Tensor | None, levels: int, in_channels: int | None, *, several: bool) -> list[Tensor]:
    """The example, or random images of one or ``several`` sizes.

    Raises:
        ValueError: the example does not fit, or says nothing of the colours.
    """
    if example is not None:
        if example.dim() != 4 or example.shape[1] != (in_channels or example.shape[1]):
            wanted = f"[n, {in_channels or 'C'}, H, W]"
            raise ValueError(f"example: expected levels {wanted}; got shape {list(example.shape)}")
        check_levels("example", example, levels)
        return [example]
    if in_channels is None:
        raise ValueError("in_channels: expected the number of sub-pixels of a pixel, or an example; got neither")
    check_whole("in_channels", in_channels, 1)
    generator = torch.Generator().manual_seed(0)
    sizes = EXAMPLE_SIZES if several else EXAMPLE_SIZES[:1]
    return [torch.randint(0, levels, (2, in_channels, *size), generator=generator) for size in sizes]


def _verified(sampler: FastSampler, examples: list[Tensor], condition: Any) -> Verification:
    """The proof for all examples, as one.

    Raises:
        ValueError: it fails.
    """
    first, *others = (example.to(sampler.table().device, level_dtype(sampler.levels)) for example in examples)
    found = [verify(sampler, example, condition) for example in (first, *filter(_takes(sampler), others))]
    return Verification(
        tuple(size for one in found for size in one.sizes), sum(one.pairs for one in found),
        max(one.error for one in found), max(one.scale for one in found),
    )  # fmt: skip


def _takes(sampler: FastSampler) -> Callable[[Tensor], bool]:
    """Whether the model takes images of a size; some have a table of positions, or halve the sides."""

    def takes(images: Tensor) -> bool:
        try:
            with torch.no_grad(), in_evaluation(sampler.model):
                sampler.logits(images, None)
        except Exception:  # whatever a stranger's forward pass raises
            return False
        return True

    return takes


def _the_only_one(samplers: list[FastSampler], examples: list[Tensor], condition: Any) -> FastSampler:
    """The sampler that passes the proof, of those for every layout that the model's shape allows.

    Raises:
        ValueError: none does, or several do.
    """
    proven, errors = [], []
    for sampler in samplers:
        try:
            sampler.verification = _verified(sampler, examples, condition)
            proven.append(sampler)
        except ValueError as error:
            errors.append(error)
    if not proven:
        raise errors[0]
    if len(proven) > 1:
        names = " or ".join(sampler.interface.layout for sampler in proven)
        raise ValueError(f"layout: the model's logits may be {names}, and it is causal either way; say which it is")
    return proven[0]
