"""VAE: its bounds are what they say, held against distributions and against an integral that is exact."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

from genkernels.models import VAE
from genkernels.models.variational import kl_to_standard_normal

LEVELS = {"bernoulli": 2, "categorical": 5, "gaussian": 256}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(likelihood: str, latent_dim: int = 3, channels: int = 2, **options) -> tuple[VAE, torch.Tensor]:
    """A float64 model whose posterior is not the prior, in evaluation mode, and four images."""
    levels = LEVELS[likelihood]
    model = VAE(channels, 4, latent_dim, levels, likelihood=likelihood, image_size=8, **options).double()
    images = torch.randint(0, levels, (4, channels, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        for _ in range(20):
            model.elbo(images)  # running statistics
        for parameter in model.encoder[-2].parameters():
            parameter.mul_(5)
    return model.eval(), images


def conditional(model: VAE, z: torch.Tensor) -> torch.distributions.Distribution:
    """p(x given z) as PyTorch has it, of images scaled to [0, 1] where it is Gaussian."""
    decoded = model.decode(z)
    if model.likelihood == "bernoulli":
        return Independent(Bernoulli(logits=decoded), 3)
    if model.likelihood == "categorical":
        return Independent(Categorical(logits=decoded.movedim(1, -1)), 3)
    return Independent(Normal(decoded, model.log_spread.exp()), 3)


def log_p(model: VAE, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return conditional(model, z).log_prob(x.double() / 255 if model.likelihood == "gaussian" else x.double())


def test_the_divergence_is_that_of_the_distributions():
    mean, log_variance = torch.randn(2, 6, 5, dtype=torch.float64) * 2
    q = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(q, Normal(torch.zeros_like(mean), 1.0))
    assert torch.allclose(kl_to_standard_normal(mean, log_variance), expected, rtol=1e-12)
    assert kl_to_standard_normal(torch.zeros(3), torch.zeros(3)).eq(0).all()


@pytest.mark.parametrize("likelihood", LEVELS)
def test_both_bounds_are_those_of_the_distributions(likelihood):
    model, x = build(likelihood)
    mean, log_variance = model.encode(x)
    q, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    assert kl_divergence(q, Normal(torch.zeros_like(mean), 1.0)).sum(1).min() > 0.1
    noise = torch.randn(7, 4, 3, dtype=torch.float64)
    codes = mean + q.stddev * noise
    log_weights = torch.stack([
        log_p(model, x, z) + prior.log_prob(z).sum(1) - q.log_prob(z).sum(1) for z in codes
    ])  # fmt: skip
    assert torch.allclose(model.iwae(x, 7, noise=noise), log_weights.logsumexp(0) - math.log(7), rtol=1e-10)
    assert torch.allclose(model.iwae(x, 1, noise=noise[:1]), log_weights[0], rtol=1e-10)
    expected = log_p(model, x, codes[0]) - kl_divergence(q, Normal(torch.zeros_like(mean), 1.0)).sum(1)
    assert torch.allclose(model.elbo(x, noise=noise[0]), expected, rtol=1e-10)
    reconstruction, divergence = model.elbo_terms(x, noise=noise[0])
    assert torch.allclose(reconstruction - divergence.sum(1), expected, rtol=1e-10) and (divergence > 0).all()


def test_the_gradient_of_the_weighted_bound_takes_the_normalised_weights_as_constants():
    model, x = build("bernoulli")
    noise = torch.randn(5, 4, 3, dtype=torch.float64)
    log_weights = torch.stack([model.iwae(x, 1, noise=noise[i : i + 1]) for i in range(5)])
    weights = log_weights.softmax(0).detach()
    parameters = list(model.parameters())
    expected = torch.autograd.grad((weights * log_weights).sum(), parameters)
    got = torch.autograd.grad(model.iwae(x, 5, noise=noise).sum(), parameters)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10 * other.abs().max().item())


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_the_bounds_close_in_on_the_exact_likelihood_from_below(likelihood):
    """With one latent number log p(x) is an integral over a line: a sum over 4,001 points here."""
    model, x = build(likelihood, latent_dim=1, channels=1)
    x = x[:1]
    with torch.no_grad():
        for parameter in model.decoder[1].parameters():
            parameter.mul_(4)  # so that the image depends on the code
        line = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
        step = (line[1] - line[0]).item()
        prior = Normal(0.0, 1.0).log_prob(line)[:, 0]
        given = model.log_likelihood(x.expand(4001, -1, -1, -1), line)
        exact = ((given + prior).logsumexp(0) + math.log(step)).item()
        mean, log_variance = model.encode(x)
        q = Normal(mean, (0.5 * log_variance).exp())
        posterior = (q.log_prob(line)[:, 0]).exp() * step
        assert posterior.sum().item() == pytest.approx(1, abs=1e-9)
        elbo = (posterior * given).sum().item() - kl_to_standard_normal(mean, log_variance).sum().item()

        many = x.expand(4000, -1, -1, -1)
        estimates = [model.elbo(many), *(model.iwae(many[: 16000 // k], k) for k in (4, 16, 64, 256))]
        means = [estimate.mean().item() for estimate in estimates]
        errors = [estimate.std().item() / len(estimate) ** 0.5 for estimate in estimates]
    assert means[0] == pytest.approx(elbo, abs=5 * errors[0])
    assert elbo < exact - 0.05  # there is a gap to close
    for lower, upper, error in zip(means, means[1:], errors[1:], strict=False):
        assert lower < upper + 5 * error
    assert means[1] > elbo + 5 * errors[1]
    assert all(mean < exact + 5 * error for mean, error in zip(means, errors, strict=True))
    assert means[-1] == pytest.approx(exact, abs=0.1 * (exact - elbo) + 5 * errors[-1])


@pytest.mark.parametrize("likelihood", LEVELS)
def test_expected_images_are_the_means_of_the_distributions(likelihood):
    model, x = build(likelihood)
    z = torch.randn(6, 3, dtype=torch.float64)
    p = conditional(model, z)
    if likelihood == "categorical":
        expected = (p.base_dist.probs * torch.arange(5) / 4).sum(-1)
    else:
        expected = p.mean
    assert torch.allclose(model.expected_images(z), expected)
    assert torch.allclose(model.sample(6, latents=z), expected)
    mean, _ = model.encode(x)
    assert torch.allclose(model.reconstruct(x), model.expected_images(mean))


def test_in_evaluation_mode_an_image_has_its_own_bound():
    model, x = build("bernoulli")
    noise = torch.randn(4, 3, dtype=torch.float64)
    alone = torch.cat([model.elbo(x[i : i + 1], noise=noise[i : i + 1]) for i in range(4)])
    assert torch.allclose(model.elbo(x, noise=noise), alone)


def test_randomness_comes_from_the_generator_that_is_given():
    model, x = build("bernoulli")

    def draw(seed: int) -> list[torch.Tensor]:
        calls = (model.elbo, lambda x, generator: model.iwae(x, 3, generator=generator))
        bounds = [call(x, generator=torch.Generator().manual_seed(seed)) for call in calls]
        return [*bounds, model.sample(2, generator=torch.Generator().manual_seed(seed))]

    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(draw(1), draw(2), strict=True))


def test_the_latent_grid_walks_over_the_quantiles_of_the_prior():
    model, _ = build("bernoulli", latent_dim=2)
    quantiles = Normal(0.0, 1.0).icdf(torch.tensor([1 / 6, 3 / 6, 5 / 6], dtype=torch.float64))
    codes = torch.stack([torch.stack([a, b]) for a in quantiles for b in quantiles])
    assert torch.allclose(model.latent_grid(3), model.expected_images(codes))
    with pytest.raises(ValueError, match="latent_grid: expected a model with latent_dim 2; got 3"):
        build("bernoulli")[0].latent_grid(3)


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_training_on_a_bound_raises_it(bound):
    model = VAE(1, 4, 2, image_size=8)
    images = (torch.rand(32, 1, 1, 1) + 0.2 * torch.rand(32, 1, 8, 8) > 0.6).byte()  # black or white, by and large
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    nats = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = -(model.elbo(images) if bound == "elbo" else model.iwae(images, 4)).mean()
        loss.backward()
        optimizer.step()
        nats.append(loss.item())
    assert nats[0] > 35 and nats[-1] < 0.5 * nats[0]


def test_a_bfloat16_model_gives_its_bound_in_float32_and_a_compiled_one_the_same_gradients():
    model, x = build("categorical", channels=3)
    noise = torch.randn(4, 3, dtype=torch.float64)
    expected = model.elbo(x, noise=noise)
    gradients = torch.autograd.grad(expected.sum(), list(model.parameters()))
    torch.compiler.reset()
    compiled = torch.compile(model.elbo, fullgraph=True, backend="aot_eager")(x, noise=noise)
    assert torch.allclose(compiled, expected)
    for got, wanted in zip(torch.autograd.grad(compiled.sum(), list(model.parameters())), gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-8, atol=1e-10 * wanted.abs().max().item())
    nats = model.bfloat16().elbo(x, noise=noise)
    assert nats.dtype == torch.float32 and torch.allclose(nats.double(), expected, rtol=0.05)


@pytest.mark.parametrize("likelihood", LEVELS)
def test_a_model_is_rebuilt_from_its_config_and_state_dict(likelihood):
    model, x = build(likelihood, beta=0.5)
    twin = VAE(**model.config).double().eval()
    twin.load_state_dict(model.state_dict())
    noise = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(twin.elbo(x, noise=noise), model.elbo(x, noise=noise)) and twin.beta == 0.5


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"in_channels": 0}, "in_channels: expected a whole number of at least 1; got 0"),
        ({"latent_dim": 0}, "latent_dim: expected a whole number of at least 1; got 0"),
        ({"levels": 17}, "levels: a Bernoulli likelihood takes 2; got 17"),
        ({"levels": 1, "likelihood": "categorical"}, "levels: expected a whole number in 2 .. 256; got 1"),
        (
            {"likelihood": "poisson"},
            "likelihood: expected one of 'bernoulli', 'categorical', 'gaussian'; got 'poisson'",
        ),
        ({"beta": -1.0}, "beta: expected a number of at least 0; got -1.0"),
        ({"image_size": 9}, "image_size: expected sides that halving"),
    ],
)
def test_a_wrong_constructor_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(**arguments)


def test_a_wrong_call_is_named():
    model, x = build("bernoulli")
    with pytest.raises(ValueError, match=r"x: expected \[N, 2, 8, 8\]; got shape \[4, 2, 8, 4\]"):
        model.elbo(x[..., :4])
    with pytest.raises(ValueError, match=r"x: expected levels 0 \.\. 1; got 0 \.\. 3"):
        model.elbo(x * 3)
    with pytest.raises(ValueError, match=r"noise: expected \[4, 3\]; got shape \[3\]"):
        model.elbo(x, noise=torch.zeros(3))
    with pytest.raises(ValueError, match=r"noise: expected \[2, 4, 3\]; got shape \[4, 3\]"):
        model.iwae(x, 2, noise=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="k: expected a whole number of at least 1; got 0"):
        model.iwae(x, 0)
    with pytest.raises(ValueError, match=r"latents: expected \[2, 3\]; got shape \[1, 3\]"):
        model.sample(2, latents=torch.zeros(1, 3))
