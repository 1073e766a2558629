"""Sampling from one model in several threads at once."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.sampler_cases import CASES

import genkernels

pytestmark = pytest.mark.usefixtures("one_thread")

THREADS = 6


def together(tasks):
    """The results of functions that start at the same moment, a thread for each."""
    barrier = threading.Barrier(len(tasks))

    def run(task):
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(run, task) for task in tasks]]


def uniforms_of(case, k):
    channels, height, width = case.size
    return torch.rand(2, channels, height + k % 3, width, generator=torch.Generator().manual_seed(k))


def drawn(model, case, k):
    uniforms = uniforms_of(case, k)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a slow sampler would warn
        return model.sample(2, size=tuple(uniforms.shape[2:]), uniforms=uniforms)


@pytest.mark.parametrize("name", ["pixelcnn colours", "row lstm", "diagonal lstm", "gated"])
def test_a_models_first_samples_in_many_threads_and_sizes_are_those_of_one_thread(name):
    case = CASES[name]
    model = case.model(torch.float32)
    expected = [drawn(case.model(torch.float32), case, k) for k in range(THREADS)]
    got = together([lambda k=k: drawn(model, case, k) for k in range(THREADS)])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_fast_sampler_may_be_used_from_many_threads():
    case = CASES["row lstm"]
    fast = genkernels.fast_sampler(case.model(torch.float32))

    def draw(k):
        uniforms = uniforms_of(case, k)
        return fast.sample(2, tuple(uniforms.shape[2:]), uniforms=uniforms)

    expected = [draw(k) for k in range(THREADS)]
    assert all(
        torch.equal(a, b)
        for a, b in zip(together([lambda k=k: draw(k) for k in range(THREADS)]), expected, strict=True)
    )


def test_forward_passes_of_other_threads_meanwhile_are_neither_recorded_nor_disturbed():
    case = CASES["pixelcnn"]
    model = case.model(torch.float32)
    images = torch.rand(2, *case.size)
    with torch.no_grad():
        expected_logits = model.predict(images, None)
    expected = drawn(case.model(torch.float32), case, 0)
    stop = threading.Event()

    def forward():
        while True:
            torch.rand(3)
            with torch.no_grad():
                assert torch.equal(model.predict(images, None), expected_logits)
            if stop.is_set():
                return

    def sample():
        try:
            for k in (0, 1, 2, 0):
                last = drawn(model, case, k)
            return last
        finally:
            stop.set()

    assert torch.equal(together([forward, forward, sample])[2], expected)


def test_the_mode_of_the_model_is_kept_whoever_is_done_last():
    case = CASES["pixelcnn"]
    model = case.model(torch.float32).train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    together([lambda k=k: drawn(model, case, k) for k in range(THREADS)])
    assert [module.training for module in model.modules()] == modes
