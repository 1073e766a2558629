"""Steps: places in drawing order, parameters as the model gives them, and the levels that somebody decides on."""

import gc
import threading

import numpy as np
import pytest
import torch
from helpers.sampler_cases import CASES, predict, random_images
from helpers.sampler_nets import Plain
from torch import nn

import genkernels
from genkernels import sampling
from genkernels.distributions.categorical import draw

BACKENDS = ["torch", "cpu"]


def sampler_of(name):
    case = CASES[name]
    model = case.model(torch.float32)
    condition = case.condition(2)
    return genkernels.fast_sampler(model, condition=condition), case


def going_through(steps, images):
    """All parameters on the way through given images, [n, channels, predictions, H, W], and the places."""
    found, places = {}, []
    for step in steps:
        places.append((step.row, step.column, step.colour))
        found[places[-1]] = torch.from_numpy(step.parameters.copy())
        here = (
            images[:, :, step.row, step.column]
            if step.colour is None
            else images[:, step.colour, step.row, step.column]
        )
        step.levels = here.numpy()
    return found, places


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_the_parameters_are_the_models_on_the_way_through_given_images(name, backend):
    fast, case = sampler_of(name)
    images = random_images(3, case.size, fast.levels)
    condition = case.condition(3)
    steps = fast.steps(3, case.size[1:], condition=condition, backend=backend)
    found, places = going_through(steps, images)
    expected = predict(fast.model, images, condition)
    colours, height, width = case.size
    assert places == [(y, x, c) for y in range(height) for x in range(width) for c in range(colours)]
    assert torch.equal(steps.images, images)
    for (y, x, c), parameters in found.items():
        own = expected[:, :, fast.distribution.prediction_of(c), y, x]
        assert torch.allclose(parameters, own, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_no_step_and_stays_the_callers(backend):
    fast, case = sampler_of("pixelcnn colours")
    images = random_images(3, case.size, fast.levels)
    expected, _ = going_through(fast.steps(3, case.size[1:], backend=backend), images)
    with torch.autocast("cpu", torch.bfloat16):
        for step in (steps := fast.steps(3, case.size[1:], backend=backend)):
            assert torch.is_autocast_enabled("cpu")
            assert torch.equal(torch.from_numpy(step.parameters), expected[step.row, step.column, step.colour])
            step.levels = images[:, step.colour, step.row, step.column].numpy()
    assert torch.equal(steps.images, images)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["pixelcnn colours", "mixture colours", "gated colours classes", "diagonal lstm"])
def test_drawing_at_every_step_is_sampling(name, backend):
    fast, case = sampler_of(name)
    uniforms = torch.rand(3, *case.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    condition = case.condition(3)
    steps = fast.steps(3, case.size[1:], condition=condition, backend=backend)
    for step in steps:
        step.draw(uniforms[:, step.colour, step.row, step.column], temperature=0.8)
    options = {"uniforms": uniforms, "condition": condition, "temperature": 0.8, "backend": backend}
    assert torch.equal(steps.images, fast.sample(3, case.size[1:], **options))


def test_log_probabilities_are_those_of_the_softmax_and_draw_as_it_does():
    fast, case = sampler_of("pixelcnn")
    uniforms = torch.rand(2, *case.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in fast.steps(2, case.size[1:]):
        logits = torch.from_numpy(step.parameters.copy())
        assert np.allclose(step.log_probabilities(), logits.double().log_softmax(1), atol=1e-12)
        here = uniforms[:, 0, step.row, step.column]
        step.levels = draw(logits, here).numpy()
        assert (step.levels == draw(logits, here).numpy()).all()


class Context(nn.Module):
    """A context model: channels whose parameters depend on earlier pixels alone."""

    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.first = Plain("A", channels, 8, 5, padding=2)
        self.out = nn.Conv2d(8, 4 * channels, 1)
        self.channels = channels

    def forward(self, x):
        return self.out(self.first(x).relu()).unflatten(1, (4, self.channels))


@pytest.mark.parametrize("backend", BACKENDS)
def test_colours_that_do_not_wait_for_each_other_come_together(backend):
    fast = genkernels.fast_sampler(Context(), levels=4, in_channels=3)
    images = random_images(2, (3, 4, 5), 4)
    known = torch.zeros(2, 3, 4, 5, dtype=torch.bool)
    known[:, :, 1, 2] = known[:, 0, 3] = True  # a whole pixel, and one colour of others
    steps = fast.steps(2, (4, 5), given=images, known=known, backend=backend)
    found, places = going_through(steps, images)
    assert places == [(y, x, None) for y in range(4) for x in range(5) if (y, x) != (1, 2)]
    expected = fast.model(images / 3)
    for (y, x, _), parameters in found.items():
        assert parameters.shape == (2, 3, 4)
        assert torch.allclose(parameters, expected[..., y, x].transpose(1, 2), atol=1e-5)
    assert torch.equal(steps.images, images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_known_in_all_images_is_passed_by_and_what_some_know_stays(backend):
    fast, case = sampler_of("pixelcnn")
    given = random_images(2, case.size, fast.levels)
    known = torch.zeros(2, *case.size, dtype=torch.bool)
    known[:, :, :2] = True
    known[1, :, 3] = True
    steps = fast.steps(2, case.size[1:], given=given, known=known, backend=backend)
    places = []
    for step in steps:
        places.append(step.row)
        step.levels = 3 - given[:, 0, step.row, step.column].numpy().astype(int)
    assert min(places) == 2 and len(places) == (case.size[1] - 2) * case.size[2]
    assert torch.equal(steps.images[known], given[known])
    assert torch.equal(steps.images[~known], 3 - given[~known])


@pytest.mark.parametrize("backend", BACKENDS)
def test_mistakes_are_named(backend):
    fast, case = sampler_of("pixelcnn")
    steps = fast.steps(2, case.size[1:], backend=backend)
    step = next(steps)
    for levels, message in (
        (np.zeros(3, int), r"levels: expected \[2\] or one number; got shape \[3\]"),
        (np.zeros(2), "levels: expected whole numbers; got float64"),
        ([0, 4], r"levels: expected 0 .. 3; got 0 .. 4"),
        (-1, r"levels: expected 0 .. 3; got -1 .. -1"),
    ):
        with pytest.raises(ValueError, match=message):
            step.levels = levels
    with pytest.raises(ValueError, match="levels: expected some at row 0, column 0, colour 0; got none"):
        next(steps)
    with pytest.raises(StopIteration):
        next(steps)
    with pytest.raises(ValueError, match="backend: expected 'cpu', 'torch' or None for steps; got 'cuda'"):
        fast.steps(2, 3, backend="cuda")
    mixture, case = sampler_of("mixture")
    with pytest.raises(ValueError, match="distribution: expected a softmax of all levels; got 'logistic_mixture'"):
        next(mixture.steps(1, 3, backend=backend)).log_probabilities()


def test_a_loop_that_is_left_and_several_at_once_go_their_own_ways():
    fast, case = sampler_of("gated")
    images = [random_images(1, case.size, fast.levels, seed) for seed in range(3)]
    alone = [going_through(fast.steps(1, case.size[1:]), one)[0] for one in images]
    together = [fast.steps(1, case.size[1:]) for _ in images]
    left = fast.steps(1, case.size[1:])
    next(left).levels = 0
    del left
    gc.collect()
    for _ in range(case.size[1] * case.size[2]):  # in turn
        for k, steps in enumerate(together):
            step = next(steps)
            place = (step.row, step.column, step.colour)
            assert np.array_equal(step.parameters, alone[k][place])
            step.levels = images[k][:, step.colour, step.row, step.column].numpy()
    results = {}

    def work(k):
        results[k] = going_through(fast.steps(1, case.size[1:]), images[k])[0]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[k][place], alone[k][place]) for k in range(3) for place in alone[k])


def test_the_weights_of_the_beginning_count():
    fast, case = sampler_of("pixelcnn")
    images = random_images(1, case.size, fast.levels)
    expected, _ = going_through(fast.steps(1, case.size[1:]), images)
    steps = fast.steps(1, case.size[1:])
    with torch.no_grad():
        for parameter in fast.model.parameters():
            parameter.zero_()
    found, _ = going_through(steps, images)
    assert all(torch.equal(found[place], expected[place]) for place in expected)


@pytest.mark.parametrize("n", [1, 2, 5, 13])
def test_a_run_by_one_thread_has_the_same_bits(one_thread, n):
    """So that what an encoder finds in one pass is what a decoder meets at every step."""
    fast, case = sampler_of("diagonal lstm colours")
    images = random_images(n, case.size, fast.levels)
    found, _ = going_through(fast.steps(n, case.size[1:], backend="cpu"), images)
    for first in range(0, n, 5):
        part = images[first : first + 5]
        own, _ = going_through(fast.steps(len(part), case.size[1:], backend="cpu"), part)
        program = fast.compile(len(part), case.size[1:])
        at_once = sampling.teacher_forced(program, part, "cpu")
        for (y, x, c), parameters in own.items():
            assert torch.equal(parameters, at_once[:, :, c, y, x])
    assert len(found) == images[0].numel()


def test_more_images_than_a_product_has_rows():
    fast, case = sampler_of("pixelcnn")
    images = random_images(500, case.size, fast.levels)
    found, _ = going_through(fast.steps(500, case.size[1:], backend="cpu"), images)
    expected = predict(fast.model, images)
    for (y, x, _), parameters in found.items():
        assert torch.allclose(parameters, expected[:, :, 0, y, x], rtol=1e-4, atol=1e-4)


def test_a_model_of_this_package_has_steps_of_its_own():
    case = CASES["gated colours classes"]
    model, labels = case.model(torch.float32), case.condition(2)
    images = random_images(2, case.size, model.levels)
    known = torch.zeros(1, 1, *case.size[1:], dtype=torch.bool)
    known[..., 0, :] = True
    options = {"given": images, "known": known, "condition": labels, "size": case.size[1:]}
    found, places = going_through(model.steps(2, **options), images)
    assert places[0] == (1, 0, 0)
    expected = predict(model, images, labels)
    for (y, x, c), parameters in found.items():
        assert torch.allclose(parameters, expected[:, :, c, y, x], rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    with pytest.raises(ValueError, match="condition: expected int64 labels"):
        model.steps(2, size=3)
