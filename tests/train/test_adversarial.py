"""The adversarial step, held against one written out in plain PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genkernels.models import DCGAN
from genkernels.train.objectives import adversarial_step
from genkernels.train.optimization import Descent, NotFiniteError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DCGAN(1, 4, 6, image_size=16).double()


def adam(network: nn.Module, lr: float = 2e-3) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.999))


def descent(network: nn.Module, lr: float = 2e-3) -> Descent:
    return Descent(adam(network, lr))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(5, 1, 16, 16, dtype=torch.float64) * 2 - 1, torch.rand(5, 6, dtype=torch.float64) * 2 - 1


def states(model: DCGAN) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def written_out_step(model: DCGAN, real, latents, generator_adam, discriminator_adam) -> tuple[float, float]:
    """The step of the usual PyTorch scripts, with every gradient cleared before it is needed."""
    ones, zeros = torch.ones(len(real)).double(), torch.zeros(len(real)).double()
    model.zero_grad()
    fake = model.generator(latents)
    judged = F.binary_cross_entropy_with_logits(model.discriminator(real), ones)
    judged = judged + F.binary_cross_entropy_with_logits(model.discriminator(fake.detach()), zeros)
    judged.backward()
    discriminator_adam.step()
    model.zero_grad()
    deceived = F.binary_cross_entropy_with_logits(model.discriminator(fake), ones)
    deceived.backward()
    generator_adam.step()
    return judged.item(), deceived.item()


def test_three_steps_are_those_of_the_usual_script(model):
    twin = copy.deepcopy(model)
    ours = descent(model.generator), descent(model.discriminator)
    theirs = adam(twin.generator), adam(twin.discriminator)
    for _ in range(3):
        real, latents = batch()
        values = adversarial_step(model.generator, model.discriminator, real, latents, *ours)
        expected = written_out_step(twin, real, latents, *theirs)
        assert (values["discriminator_loss"], values["generator_loss"]) == pytest.approx(expected, rel=1e-9)
    for name, value in twin.state_dict().items():  # weights, and the running statistics of every pass in turn
        assert torch.allclose(model.state_dict()[name], value, rtol=1e-7, atol=1e-10), name


def test_neither_step_moves_the_other_network(model):
    for still in ("generator", "discriminator"):
        before = states(model)
        rates = [0.0 if name == still else 2e-3 for name in ("generator", "discriminator")]
        adversarial_step(
            model.generator,
            model.discriminator,
            *batch(),
            descent(model.generator, rates[0]),
            descent(model.discriminator, rates[1]),
        )
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) == name.startswith(still), name


def test_the_generators_loss_leaves_nothing_in_the_discriminator(model):
    """What stays in its .grad are the gradients of its own loss alone, and it can still be trained."""
    real, latents = batch()
    twin = copy.deepcopy(model)
    logits = twin.discriminator(real), twin.discriminator(twin.generator(latents).detach())
    own = F.softplus(-logits[0]).mean() + F.softplus(logits[1]).mean()
    expected = torch.autograd.grad(own, list(twin.discriminator.parameters()))
    adversarial_step(
        model.generator, model.discriminator, real, latents, descent(model.generator), descent(model.discriminator)
    )
    for parameter, gradient in zip(model.discriminator.parameters(), expected, strict=True):
        assert parameter.requires_grad and torch.allclose(parameter.grad, gradient, rtol=1e-8, atol=1e-12)


def test_real_and_generated_images_have_batch_statistics_of_their_own(model):
    seen = []
    hook = model.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    real, latents = batch()
    fake = model.generator(latents)
    adversarial_step(
        model.generator, model.discriminator, real, latents, descent(model.generator), descent(model.discriminator)
    )
    hook.remove()
    assert [len(images) for images in seen] == [5, 5, 5]
    assert torch.equal(seen[0], real) and torch.allclose(seen[1], fake) and torch.equal(seen[1], seen[2])


def test_the_scores_are_the_probabilities_before_the_step(model):
    real, latents = batch()
    twin = copy.deepcopy(model)
    expected = [twin.discriminator(x).sigmoid().mean().item() for x in (real, twin.generator(latents))]
    values = adversarial_step(
        model.generator, model.discriminator, real, latents, descent(model.generator), descent(model.discriminator)
    )
    assert [values["real_score"], values["fake_score"]] == pytest.approx(expected)


@pytest.mark.parametrize(
    "part, message", [("generator", "generator's loss"), ("discriminator", "discriminator's loss")]
)
def test_a_network_that_broke_stops_before_its_weights_change(model, part, message):
    real, latents = batch()
    if part == "discriminator":
        real = real * float("nan")
    else:
        calls = []

        def break_the_third_pass(module, inputs, output):
            calls.append(0)
            return output * float("nan") if len(calls) == 3 else output

        model.discriminator.register_forward_hook(break_the_third_pass)
    before = states(model)
    with pytest.raises(NotFiniteError, match=f"the {message} became nan"):
        adversarial_step(
            model.generator, model.discriminator, real, latents, descent(model.generator), descent(model.discriminator)
        )
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters() if name.startswith(part))
    assert all(parameter.requires_grad for parameter in model.parameters())
