"""Sampling with a program in plain PyTorch: exactly what full forward passes give, in float64."""

import dataclasses

import pytest
import torch
from helpers.sampler_cases import CASES, logits_from_poisoned_memory, predict, program_of, random_images

from genkernels import sampling
from genkernels.distributions.categorical import draw
from genkernels.models import PixelCNN
from genkernels.sampling.executors import registry
from genkernels.sampling.request import check_request

pytestmark = pytest.mark.usefixtures("one_thread")


def both(case, model, n, **options):
    """Levels drawn by the program and by full forward passes, from the same uniforms."""
    uniforms = torch.rand(n, *case.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    condition = case.condition(n)
    drawn = []
    for backend in ("torch", "full_forward"):
        settings = {"given": None, "known": None, "temperature": 1.0, "top_k": None, "generator": None} | options
        request = check_request((n, *case.size), model.levels, torch.device("cpu"), uniforms=uniforms, **settings)
        table = model._scaled(torch.arange(model.levels))
        images = sampling.sample(
            model, model.predict, table, request,
            distribution=model.distribution, condition=condition, backend=backend,
        )  # fmt: skip
        drawn.append(images)
    return drawn


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_program_computes_the_models_logits_and_reads_nothing_before_it_is_written(name):
    case = CASES[name]
    model, images = case.model(), random_images(3, case.size, 4)
    condition = case.condition(3)
    expected = predict(model, images, condition)
    program = program_of(model, 3, case.size, condition)
    assert torch.allclose(sampling.teacher_forced(program, images), expected, rtol=1e-11, atol=1e-12)
    assert torch.equal(logits_from_poisoned_memory(program, images), sampling.teacher_forced(program, images))
    # A program for one image is the same arithmetic: images do not mix.
    assert torch.allclose(sampling.teacher_forced(program.for_images(1, 2), images[1:2]), expected[1:2], rtol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_samples_are_those_of_full_forward_passes(name):
    case = CASES[name]
    drawn, expected = both(case, case.model(), 3)
    assert torch.equal(drawn, expected)
    assert expected.float().std() > 0.3  # not all one level


@pytest.mark.parametrize(
    "options", [{"temperature": 0.5}, {"temperature": 1e-6}, {"top_k": 2}, {"top_k": 1}, {"top_k": 99}]
)
@pytest.mark.parametrize("name", ["pixelcnn colours", "diagonal lstm"])
def test_temperature_and_top_k_act_as_in_full_forward_passes(name, options):
    case = CASES[name]
    model = case.model()
    drawn, expected = both(case, model, 3, **options)
    assert torch.equal(drawn, expected)
    if options == {"top_k": 1}:
        assert torch.equal(drawn.long(), predict(model, drawn).argmax(1))


@pytest.mark.parametrize("name", ["pixelcnn colours", "diagonal lstm colours", "gated colours classes", "row lstm"])
def test_completion_keeps_every_known_sub_pixel_and_draws_the_rest_as_full_forward_passes_do(name):
    case = CASES[name]
    known = torch.rand(3, *case.size, generator=torch.Generator().manual_seed(2)) < 0.5
    given = random_images(3, case.size, 4, seed=3)
    drawn, expected = both(case, case.model(), 3, given=given, known=known)
    assert torch.equal(drawn[known], given[known])
    assert torch.equal(drawn, expected)


def test_top_k_keeps_the_most_likely_levels_and_those_that_equal_the_last_of_them():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]]).expand(50, 5)
    uniforms = (torch.arange(50) + 0.5) / 50
    for k, left in ((1, {0}), (2, {0, 2, 3}), (4, {0, 1, 2, 3}), (5, {0, 1, 2, 3, 4})):
        assert set(draw(logits, uniforms, top_k=k).tolist()) == left


def test_a_batch_too_large_for_the_memory_is_drawn_in_parts(monkeypatch):
    case = CASES["gated colours classes"]
    model = case.model()
    whole, _ = both(case, model, 5)
    program = program_of(model, 5, case.size, case.condition(5))
    one = registry.choose(program, "torch").bytes_per_image(program)
    sizes = []
    pytorch = registry.EXECUTORS[-1]

    def run(part, given):
        sizes.append(len(given.images))
        pytorch.run(part, given)

    monkeypatch.setattr(registry, "MEMORY", 2 * one)
    monkeypatch.setattr(
        registry, "EXECUTORS", [registry.Executor("torch", lambda p: None, run, pytorch.bytes_per_image)]
    )
    calls = []
    uniforms = torch.rand(5, *case.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = model.sample(
        5, uniforms=uniforms, size=case.size[1:], condition=case.condition(5),
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert torch.equal(parts, whole)
    assert sizes == [2, 2, 1]
    assert calls == [(12 * k, 180) for k in range(1, 16)]  # rows of 4 pixels and 3 colours, three times 5 of them
    roomy = dataclasses.replace(registry.EXECUTORS[0], spare_memory=lambda program: 4 * one)
    monkeypatch.setattr(registry, "EXECUTORS", [roomy])
    sizes.clear()
    parts = model.sample(5, uniforms=uniforms, size=case.size[1:], condition=case.condition(5))
    assert torch.equal(parts, whole)
    assert sizes == [4, 1]


def test_nothing_is_computed_behind_the_last_open_sub_pixel(monkeypatch):
    case = CASES["pixelcnn colours"]
    seen = []
    plain = registry.EXECUTORS[-1]

    def run(program, given):
        seen.append((given.last, len(given.images)))
        plain.run(program, given)

    monkeypatch.setattr(registry, "EXECUTORS", [registry.Executor("torch", plain.refuses, run, plain.bytes_per_image)])
    model = case.model()
    given, known = random_images(2, case.size, 4), torch.ones(2, *case.size, dtype=torch.bool)
    keep = {"given": given, "known": known, "size": case.size[1:]}
    assert torch.equal(model.sample(2, **keep), given) and not seen
    known[1, 1, 3, 2] = False
    drawn = model.sample(2, **keep)
    assert seen == [((3, 2, 1), 2)]
    assert torch.equal(drawn[known], given[known])


@pytest.mark.parametrize("name", ["pixelcnn colours", "diagonal lstm"])
def test_autocast_and_inference_mode_change_nothing(name):
    case = CASES[name]
    model, uniforms = case.model(torch.float32), torch.rand(2, *case.size)
    expected = model.sample(2, uniforms=uniforms, size=case.size[1:], backend="torch")
    for surroundings in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
        with surroundings:
            again = case.model(torch.float32)  # a program is kept with its model
            assert torch.equal(again.sample(2, uniforms=uniforms, size=case.size[1:], backend="torch"), expected)


def test_a_weight_changed_in_any_way_is_seen_by_the_next_sample():
    case = CASES["pixelcnn"]
    model = case.model()
    first = program_of(model, 2, case.size)
    assert program_of(model, 2, case.size) is first
    model.layers[1].weight.data[:] = torch.randn_like(model.layers[1].weight)  # leaves no trace in the version counter
    assert program_of(model, 2, case.size) is not first
    drawn, expected = both(case, model, 2)
    assert torch.equal(drawn, expected)


def test_a_condition_is_part_of_what_a_program_is_made_from():
    case = CASES["gated colours classes"]
    model, labels = case.model(), torch.tensor([0, 1])
    first = program_of(model, 2, case.size, labels)
    assert program_of(model, 2, case.size, labels.clone()) is first
    assert program_of(model, 2, case.size, labels.flip(0)) is not first


def test_a_model_that_cannot_be_traced_is_sampled_by_full_forward_passes_and_says_why():
    class Odd(PixelCNN):
        def predict(self, scaled, condition):
            return super().predict(scaled, condition).sort(1).values

    torch.manual_seed(0)
    model = Odd(1, 4, 1, 3, image_size=(2, 3)).double()
    uniforms = torch.rand(2, 1, 2, 3)
    with pytest.warns(UserWarning, match="sampling Odd with a full forward pass .*: layer 'sort'.*aten::sort"):
        drawn = model.sample(2, uniforms=uniforms)
    assert torch.equal(drawn, model.sample(2, uniforms=uniforms, backend="full_forward"))
    with pytest.raises(sampling.NotTraceable, match="aten::sort"):
        model.sample(2, backend="torch")
