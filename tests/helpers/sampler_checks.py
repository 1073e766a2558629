"""Shared parts of the native executors' tests: drawing, comparing, and programs made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genkernels import sampling
from genkernels.distributions import Categorical, DiscretizedLogisticMixture, Distribution
from genkernels.distributions.categorical import draw
from genkernels.sampling.program.instructions import (
    BINARY,
    TERNARY,
    UNARY,
    Affine,
    Draw,
    Function,
    Pointwise,
    Read,
    Value,
)
from genkernels.sampling.program.program import Program
from genkernels.sampling.request import Request, check_request
from helpers.sampler_cases import Case

PARAMETERS = {
    "elu": (1.2, 0.9, 1.1),
    "leaky_relu": (0.1,),
    "softplus": (2.0, 3.0),
    "clamp": (-0.4, 0.7),
    "scale": (1.5, -0.2),
}


SETTINGS: dict[str, Any] = {"given": None, "known": None, "temperature": 1.0, "top_k": None, "generator": None}


def drawn(case: Case, model: Any, n: int, backend: str, *, seed: int = 1, **options: Any) -> tuple[Tensor, Tensor]:
    """Levels [n, C, H, W] and the request's uniforms, on the CPU; drawn where the model is."""
    device = next(model.parameters()).device
    uniforms = torch.rand(n, *case.size, generator=torch.Generator().manual_seed(seed))
    request = check_request((n, *case.size), model.levels, device, uniforms=uniforms, **SETTINGS | options)
    table = model._scaled(torch.arange(model.levels, device=device))
    condition = case.condition(n)
    condition = None if condition is None else condition.to(device)
    levels = sampling.sample(
        model, model.predict, table, request, distribution=model.distribution, condition=condition, backend=backend
    )
    return levels.cpu(), uniforms


def assert_same_where_clear(program: Program, ours: Tensor, theirs: Tensor, uniforms: Tensor, **options: Any) -> None:
    """Equal levels, but for images whose first difference lies where u is within 1e-4 of a boundary."""
    exact, distribution = sampling.teacher_forced(program, theirs), program.distribution
    for k in (ours != theirs).flatten(1).any(1).nonzero().flatten().tolist():
        y, x, c = (ours[k] != theirs[k]).permute(1, 2, 0).nonzero()[0].tolist()
        parameters = exact[k, :, distribution.prediction_of(c), y, x].expand(2, -1)
        either = (uniforms[k, c, y, x] + torch.tensor([-1e-4, 1e-4])).clamp(0, 1)
        near = distribution.draw(parameters, theirs[k, :c, y, x].expand(2, -1), either, **options)
        assert near[0] != near[1], (
            f"image {k}, colour {c} of pixel {y, x}: {ours[k, c, y, x]}, not {theirs[k, c, y, x]}"
        )


def assert_draws_as_float64_at_boundaries(levels: int, execute: Callable[[Program, Request], Tensor]) -> None:
    """Levels drawn from a thousand logits are those of the definition, where u is next to a boundary too."""
    generator = torch.Generator().manual_seed(0)
    n = 1000
    logits = 4 * torch.randn(n, levels, generator=generator)
    cdf = logits.double().softmax(1).cumsum(1)
    uniforms = torch.rand(n, generator=generator, dtype=torch.float64)
    picked = cdf[torch.arange(n), torch.randint(levels - 1, (n,), generator=generator)]
    uniforms[::4] = (picked[::4] * (1 + 1e-9)).clamp(max=1 - 1e-12)  # just above a boundary
    uniforms[1::4] = picked[1::4] * (1 - 1e-9)  # just below one
    uniforms[:8] = 0
    program = constant_program(logits)
    for options in ({}, {"temperature": 0.3}, {"top_k": 1 + levels // 3}):
        request = check_request(
            (n, 1, 1, 1), levels, torch.device("cpu"), uniforms=uniforms.view(n, 1, 1, 1), **SETTINGS | options
        )
        assert torch.equal(execute(program, request).cpu().flatten().long(), draw(logits, uniforms, **options))


def constant_program(parameters: Tensor, distribution: Distribution | None = None) -> Program:
    """Images of one pixel whose parameters [n, channels] are given: logits of a grey pixel, or one prediction."""
    channels = parameters.shape[1]
    distribution = distribution or Categorical(channels, 1)
    colours = distribution.colours
    image = Value(0, "image", colours, tuple(range(1, colours + 1)), 0, (0, 1))
    constant = Value(1, "constant", channels, (-1,) * channels, 0, (0, 1), constant=parameters)
    result = Value(2, "logits", channels, (0,) * channels, 0, (0, 1))
    copy = Pointwise("copy", 0, 2, ((0, channels),), Function("copy"), (Read(1, 0, 0, ((0, channels),)),))
    values, table = (image, constant, result), torch.linspace(0, 1, distribution.levels)
    draws = [(Draw(colour, 2),) for colour in range(colours)]
    return Program(1, 1, 1, distribution, table, values, (), ((copy, *draws[0]), *draws[1:], ()))


MIXTURES = {  # levels, colours, components
    "photographs": (256, 3, 10),
    "one component of two levels": (2, 1, 1),
    "all that a warp takes": (7, 4, 128),
    "one more than a warp has lanes": (256, 1, 33),
}


def assert_mixture_draws_as_float64_at_boundaries(name: str, execute: Callable[[Program, Request], Tensor]) -> None:
    """Pixels drawn from 400 mixtures are those of the definition, where u is next to a boundary too."""
    distribution = DiscretizedLogisticMixture(*MIXTURES[name])
    colours, n = distribution.colours, 400
    generator = torch.Generator().manual_seed(0)
    parameters = 1.5 * torch.randn(n, distribution.channels, generator=generator)
    parameters[::5] *= 20  # scales that are cut off and logistics wider than the image
    uniforms = torch.rand(n, colours, 1, 1, generator=generator, dtype=torch.float64)
    uniforms[0] = 0
    uniforms[1] = 1 - 1e-12
    for options in ({}, {"temperature": 0.3}, {"temperature": 1e-9}):
        expected = torch.zeros(n, 0, dtype=torch.long)
        for colour in range(colours):
            if not options:  # to one part in a billion above or below where one level turns into another
                low, high = torch.zeros(n - 2, dtype=torch.float64), torch.ones(n - 2, dtype=torch.float64)
                target = distribution.draw(parameters[2:], expected[2:], uniforms[2:, colour, 0, 0])
                for _ in range(45):
                    middle = (low + high) / 2
                    below = distribution.draw(parameters[2:], expected[2:], middle) < target
                    low, high = torch.where(below, middle, low), torch.where(below, high, middle)
                near = torch.where(torch.arange(n - 2) % 2 == 0, low * (1 - 1e-9), high * (1 + 1e-9))
                uniforms[2::3, colour, 0, 0] = near[::3].clamp(0, 1 - 1e-12)
            drawn = distribution.draw(parameters, expected, uniforms[:, colour, 0, 0], **options)
            expected = torch.cat([expected, drawn[:, None]], 1)
        request = check_request(
            (n, colours, 1, 1), distribution.levels, torch.device("cpu"), uniforms=uniforms, **SETTINGS | options
        )
        got = execute(constant_program(parameters, distribution), request).cpu().flatten(1).long()
        assert torch.equal(got, expected), (got != expected).nonzero()


FUNCTIONS = [*((name, 1) for name in UNARY), *((name, 2) for name in BINARY), *((name, 3) for name in TERNARY)]
POSITIVE = {"sqrt", "rsqrt", "log", "log1p", "power"}  # of numbers that are not negative


def synthetic_program(name: str, operands: int, levels: int = 11, width: int = 7, height: int = 3) -> Program:
    """One function in every place where one can stand, on channels that are taken apart, with a constant map."""
    generator = torch.Generator().manual_seed(0)
    function = Function(name, PARAMETERS.get(name, ()))
    spread = ((6, 11), (0, 6))
    noise = torch.randn(2, levels, height, width, generator=generator)
    positive = name in POSITIVE
    if positive:
        noise = noise.sigmoid() + 0.1
    values = (
        Value(0, "image", 1, (1,), 0, (0, width), rows_back=1, columns_left=2, columns_right=1),
        Value(1, "map", levels, (-1,) * levels, 0, (0, width), constant=noise),
        Value(
            2, "row", levels, (-1,) * levels, 0, (0, width), rows_back=1, columns_left=1, outside=torch.randn(levels)
        ),
        Value(3, "pixel", levels, (0,) * levels, 0, (0, width)),
        Value(4, "logits", levels, (0,) * levels, 0, (0, width)),
    )
    reads = (Read(2, 0, 0, spread), Read(1, 0, 0, ((0, 5), (5, 11))), Read(2, 0, 0, ((6, 11), (3, 4))))
    if positive:
        reads = reads[1::-1]
    whole = ((0, levels),)
    once = operands > 1 or positive or name in ("exp", "expm1")  # exp of exp of exp overflows
    activation = None if once else function
    weight = torch.randn(levels, 3 + levels, generator=generator) * 0.15
    bias = torch.rand(levels, generator=generator) - 0.5
    if positive:
        weight, bias = weight.abs(), bias + 1.5
    taps = (Read(0, -1, -1, ((0, 1),)), Read(0, -1, 0, ((0, 1),)), Read(0, -1, 1, ((0, 1),)), Read(1, 0, 0, whole))
    row = (
        Affine("row", -1, 2, whole, taps, weight, bias, activation=activation),
        Pointwise(
            "row point",
            -1,
            2,
            ((0, 5), (5, 11)),
            function,
            (Read(2, 0, 0, ((0, 5), (5, 11))), Read(1, 0, 0, ((0, 5), (5, 11))), Read(1, 0, 0, ((4, 9), (7, 8))))[
                :operands
            ],
        ),
    )
    mixed = (Read(0, 0, -2, ((0, 1),)), Read(0, 0, -1, ((0, 1),)), Read(2, -1, -1, ((1, 4), (7, 9))))
    terms = (
        *[Read(2, 0, 0, ((0, 5), (5, 11)))] * 6,
        Read(1, 0, 0, ((0, 5), (5, 11))),
        Read(1, 0, 0, ((2, 3), (4, 10))),
    )
    step = (
        Pointwise("point", 0, 3, ((0, 5), (5, 11)), function, reads[:operands]),
        Affine(
            "sum", 0, 4, ((0, 5), (5, 11)), (*mixed, Read(3, 0, 0, whole)),
            torch.randn(levels, 7 + levels, generator=generator) * 0.3, None, terms,
            activation=activation,
        ),
        Draw(0, 4),
    )  # fmt: skip
    return Program(height, width, width, Categorical(levels, 1), torch.linspace(-1, 1, levels), values, row, (step, ()))


def to_double(program: Program) -> Program:
    def double(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.double()

    def instruction(i: Any) -> Any:
        return replace(i, weight=double(i.weight), bias=double(i.bias)) if isinstance(i, Affine) else i

    return replace(
        program,
        table=program.table.double(),
        values=tuple(replace(v, outside=double(v.outside), constant=double(v.constant)) for v in program.values),
        row=tuple(map(instruction, program.row)),
        steps=tuple(tuple(map(instruction, step)) for step in program.steps),
        cache={},
    )
