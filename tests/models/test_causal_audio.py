"""CausalAudioNet: the whole receptive field and no future, an exact likelihood, and the µ-law."""

import itertools
import math

import pytest
import torch
from helpers.causality import future_reached, jacobian_pattern, make_transparent, past, past_missed
from helpers.likelihood import assert_probabilities_sum_to_one, every_image, train_a_little
from helpers.tracing import assert_traceable

from genkernels.models import CausalAudioNet, bits_per_dim, mu_law_decode, mu_law_encode

# --- causality --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(
    "layers, cycle, kernel, field", [(1, 10, 2, 3), (5, 3, 2, 12), (4, 4, 2, 17), (3, 2, 3, 11), (3, 1, 4, 13)]
)
def test_a_sample_sees_its_receptive_field_and_nothing_else(layers, cycle, kernel, field, classes):
    model = make_transparent(CausalAudioNet(2, 4, layers, cycle, kernel, skip_channels=5, num_classes=classes))
    assert model.receptive_field == field

    def of_one_class(x):
        return model(x, None if classes is None else torch.ones(len(x), dtype=torch.long))

    length = field + 7
    pattern = jacobian_pattern(of_one_class, (1, 1, length))
    time = torch.arange(length)
    reach = (time[:, None] - time[None]).view(1, 1, length, 1, 1, length) <= field
    assert torch.equal(pattern, past(1, 1, length) & reach)
    inside = jacobian_pattern(of_one_class, (1, 1, field + 1))
    assert (future_reached(inside), past_missed(inside)) == (0, 0)


def test_random_weights_of_both_signs_reach_no_future_sample():
    torch.manual_seed(0)
    assert future_reached(jacobian_pattern(CausalAudioNet(4, 16, 6, 3).double(), (1, 1, 25))) == 0


def test_a_first_layer_that_sees_its_own_sample_is_caught():
    model = make_transparent(CausalAudioNet(2, 4, 2))
    model.kernel_size = 1  # pads one zero less than the kernel needs, so that it ends one sample later
    padded = jacobian_pattern(lambda x: model(torch.nn.functional.pad(x, (0, 1))), (1, 1, 6))
    assert future_reached(padded) == 6


# --- likelihood and sampling --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 2])
def test_the_probabilities_of_all_waveforms_sum_to_one(classes):
    torch.manual_seed(0)
    model = CausalAudioNet(3, 8, 3, skip_channels=8, num_classes=classes)
    assert_probabilities_sum_to_one(model, every_image(3, 1, 1, 4), None if classes is None else torch.tensor([1]))


def test_log_prob_is_the_sum_of_each_samples_log_softmax():
    torch.manual_seed(0)
    model = CausalAudioNet(5, 8, 3).double()
    waves = torch.randint(0, 5, (2, 7))
    logits = model(waves)
    assert logits.shape == (2, 5, 7)
    expected = torch.zeros(2, dtype=torch.float64)
    for n, t in itertools.product(range(2), range(7)):
        scores = logits[n, :, t].tolist()
        expected[n] += scores[waves[n, t]] - math.log(sum(map(math.exp, scores)))
    assert torch.allclose(model.log_prob(waves), expected, rtol=1e-12)


def test_a_waveform_is_an_image_of_one_row():
    model = CausalAudioNet(4, 8, 3)
    waves = torch.randint(0, 4, (2, 9), dtype=torch.uint8)
    rows = waves[:, None, None]
    assert torch.equal(model(rows)[:, :, 0, 0], model(waves))
    assert torch.equal(model.log_prob(rows), model.log_prob(waves))


@pytest.mark.parametrize("classes", [None, 2])
def test_every_sample_is_drawn_from_its_own_conditional(classes):
    torch.manual_seed(0)
    model = CausalAudioNet(8, 8, 3, num_classes=classes, length=11)
    labels = None if classes is None else torch.tensor([0, 1])
    uniforms = torch.rand(2, 11)
    drawn = model.sample(2, uniforms=uniforms, condition=labels)
    assert drawn.shape == (2, 11) and drawn.dtype == torch.uint8
    with torch.no_grad():
        cdf = model(drawn, labels).double().softmax(1).cumsum(1)
    assert torch.equal((cdf <= uniforms.unsqueeze(1)).sum(1), drawn.long())


def test_a_known_beginning_is_continued_and_the_length_can_be_said():
    torch.manual_seed(0)
    model = CausalAudioNet(8, 8, 3, length=11)
    given = torch.randint(0, 8, (1, 6))
    known = torch.arange(6).expand(1, 6) < 4
    drawn = model.sample(3, length=6, given=given, known=known)
    assert drawn.shape == (3, 6) and torch.equal(drawn[:, :4].long(), given[:, :4].expand(3, 4))
    assert model.sample(1).shape == (1, 11)


def test_it_learns_a_tone():
    """A sine of period 8: which of the 16 levels comes next, the last few decide."""
    torch.manual_seed(0)
    phases = torch.arange(8) / 8
    waves = mu_law_encode(torch.sin(2 * math.pi * (torch.arange(48) / 8 + phases[:, None])), 16)
    model = CausalAudioNet(16, 16, 4, skip_channels=16, length=48)
    before = bits_per_dim(-model.log_prob(waves).mean().item(), 48)
    train_a_little(model, waves, steps=100, lr=0.01)
    after = bits_per_dim(-model.log_prob(waves).mean().item(), 48)
    assert before > 3.5 and after < 0.5  # the first samples cannot be known
    known = torch.arange(48).expand(1, 48) < 16
    continued = model.sample(8, given=waves, known=known.expand(8, 48), temperature=1e-3)
    assert (continued == waves).float().mean() > 0.95


# --- the µ-law ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_decoding_undoes_encoding_up_to_rounding(levels):
    every = torch.arange(levels)
    assert torch.equal(mu_law_encode(mu_law_decode(every, levels), levels).long(), every)
    waves = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    encoded = mu_law_encode(waves, levels)
    assert encoded.dtype == torch.uint8 and (encoded.int().diff() >= 0).all()
    assert (encoded[0], encoded[-1]) == (0, levels - 1)
    # no farther from the waveform than the next level on either side
    decoded = mu_law_decode(every, levels).double()
    low, high = decoded[(encoded.long() - 1).clamp_min(0)], decoded[(encoded.long() + 1).clamp_max(levels - 1)]
    assert ((waves >= low - 1e-6) & (waves <= high + 1e-6)).all()


def test_the_mu_law_is_finer_where_the_sound_is_soft():
    steps = mu_law_decode(torch.arange(256)).diff()
    assert (steps > 0).all() and torch.allclose(steps, steps.flip(0), rtol=1e-4)
    assert steps.max() / steps.min() == pytest.approx(256, rel=0.05)


def test_the_mu_law_is_that_of_the_formula():
    waves = torch.tensor([-1.0, -0.5, -0.01, 0.0, 0.01, 0.5, 1.0])
    expected = [
        math.floor((math.copysign(math.log(1 + 255 * abs(x)) / math.log(256), x) + 1) / 2 * 255 + 0.5)
        for x in waves.tolist()
    ]
    assert mu_law_encode(waves).tolist() == expected
    assert mu_law_encode(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]  # clipped


def test_the_mu_law_refuses_what_is_no_waveform():
    with pytest.raises(TypeError, match=r"waveform: expected a floating-point dtype; got torch\.int64"):
        mu_law_encode(torch.zeros(3).long())
    for call in (mu_law_encode, mu_law_decode):
        with pytest.raises(ValueError, match=r"levels: expected a whole number in 2 \.\. 256; got 1000"):
            call(torch.zeros(3), 1000)


# --- as a module --------------------------------------------------------------------------------------------


def test_a_model_is_rebuilt_from_its_config_and_state_dict():
    model = CausalAudioNet(7, 8, 3, 2, 3, skip_channels=9, num_classes=4, length=50)
    twin = CausalAudioNet(**model.config)
    twin.load_state_dict(model.state_dict())
    waves, labels = torch.randint(0, 7, (2, 12)), torch.tensor([3, 0])
    assert torch.equal(twin(waves, labels), model(waves, labels))
    assert twin.config == model.config and twin.image_size == (1, 50)


def test_every_parameter_is_trained():
    torch.manual_seed(0)
    model = CausalAudioNet(4, 8, 3, num_classes=2)
    model.log_prob(torch.randint(0, 4, (2, 20)), torch.tensor([0, 1])).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_the_default_sees_two_cycles_of_ten_dilations():
    model = CausalAudioNet()
    assert [block.conv.dilation for block in model.blocks] == [(1, 2**k) for k in range(10)] * 2
    assert model.receptive_field == 2 + 2 * 1023


def test_features_keep_their_size_through_a_fresh_stack_of_any_depth():
    torch.manual_seed(0)
    for depth in (1, 10, 30):
        logits = CausalAudioNet(256, 32, depth)(torch.randint(0, 256, (2, 300)))
        assert 0.2 < logits.std().item() < 2, depth


@pytest.mark.parametrize("classes", [None, 3])
def test_its_forward_pass_can_be_traced_for_sampling(classes):
    model = CausalAudioNet(4, 8, 3, num_classes=classes, length=20)
    assert_traceable(model, None if classes is None else torch.tensor([2, 0]))


def test_a_compiled_model_gives_the_same_likelihood_and_gradients():
    torch.manual_seed(0)
    torch.compiler.reset()
    model = CausalAudioNet(4, 8, 2, num_classes=3)
    waves, labels = torch.randint(0, 4, (2, 20)), torch.tensor([2, 0])
    expected = model.log_prob(waves, labels)
    gradients = torch.autograd.grad(expected.sum(), list(model.parameters()))
    nats = torch.compile(model.log_prob, fullgraph=True, backend="aot_eager")(waves, labels)
    assert torch.allclose(nats, expected, rtol=1e-5)
    for got, wanted in zip(torch.autograd.grad(nats.sum(), list(model.parameters())), gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_and_under_autocast_it_gives_its_likelihood_in_float32():
    torch.manual_seed(0)
    model = CausalAudioNet(8, 16, 4)
    waves = torch.randint(0, 8, (2, 30))
    expected = model.log_prob(waves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model.log_prob(waves)
    for nats in (cast, model.bfloat16().log_prob(waves)):
        assert nats.dtype == torch.float32
        assert torch.allclose(nats, expected, rtol=0.02)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"levels": 257}, "levels: expected a whole number in 2 .. 256; got 257"),
        ({"hidden_channels": 0}, "hidden_channels: expected a whole number of at least 1; got 0"),
        ({"num_layers": 0}, "num_layers: expected a whole number of at least 1; got 0"),
        ({"dilation_cycle": 0}, "dilation_cycle: expected a whole number of at least 1; got 0"),
        ({"kernel_size": 1}, "kernel_size: expected a whole number of at least 2; got 1"),
        ({"skip_channels": 0}, "skip_channels: expected a whole number of at least 1; got 0"),
        ({"num_classes": 0}, "num_classes: expected a whole number of at least 1; got 0"),
        ({"length": 0}, "length: expected a whole number of at least 1; got 0"),
    ],
)
def test_a_wrong_constructor_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CausalAudioNet(**arguments)


@pytest.mark.parametrize("call", [lambda model, x: model(x), lambda model, x: model.log_prob(x)])
@pytest.mark.parametrize("shape", [(5,), (2, 1, 5), (1, 1, 2, 5), (1, 3, 1, 5)])
def test_what_is_no_waveform_is_refused(call, shape):
    with pytest.raises(ValueError, match=r"x: expected \[N, T\] or \[N, 1, 1, T\]; got shape"):
        call(CausalAudioNet(4, 4, 1), torch.zeros(shape))


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"length": 0}, "length: expected a whole number of at least 1; got 0"),
        ({"uniforms": torch.rand(1, 1, 1, 5)}, r"uniforms: expected two dimensions, \[1, T\]; got shape"),
        ({"uniforms": torch.rand(1, 6)}, r"uniforms: expected floating-point \[1, 1, 1, 5\]; got"),
        ({"given": torch.zeros(5), "known": torch.ones(5).bool()}, r"given: expected two dimensions, \[1, T\]"),
    ],
)
def test_a_wrong_argument_of_sample_is_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        CausalAudioNet(4, 4, 1, length=5).sample(1, **keywords)
