"""``genkernels.accelerate`` and ``restore`` as functions: arguments, modes, dtypes, and sampling afterwards."""

import pytest
import torch
from helpers import public_styles as styles
from helpers.accelerated import pair
from torch import nn

import genkernels
from genkernels.ops.conv_bn_act.heuristics import always_kernel

pytestmark = pytest.mark.usefixtures("seeded")


class Reshapes(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm = nn.ConvTranspose2d(6, 4, 4), nn.BatchNorm2d(4)

    def forward(self, z, scale):
        return scale * self.norm(self.up(z.view(-1, 6, 1, 1)))


def test_an_example_shows_what_a_forward_of_its_own_takes():
    x = (torch.randn(3, 6), torch.tensor(2.0))
    assert "give example=" in genkernels.accelerate(Reshapes()).left[0].detail
    plain, fast, _ = pair(Reshapes, example=x)
    with always_kernel():
        torch.testing.assert_close(fast(*x), plain(*x), rtol=1e-4, atol=1e-4)


def test_it_is_sampled_as_it_was():
    plain, fast, _ = pair(lambda: styles.pixelcnn(levels=3, channels=4, layers=2, kernel=3).eval(), swapped=2)
    uniforms = torch.rand(2, 1, 3, 4, dtype=torch.float64)
    samplers = [genkernels.fast_sampler(model, levels=3, in_channels=1) for model in (plain, fast)]
    assert torch.equal(*(sampler.sample(2, (3, 4), uniforms=uniforms) for sampler in samplers))


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_model_moved_to_another_dtype(dtype, before):
    plain, fast, _ = pair(lambda: styles.pixelcnn(layers=2, kernel=3).to(dtype if before else torch.float32), swapped=2)
    x = torch.randn(2, 1, 6, 6, dtype=dtype)
    got, expected = fast.to(dtype)(x), plain.to(dtype)(x)
    tolerance = {torch.float64: 1e-10, torch.float16: 2e-2}.get(dtype, 1e-1)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off_where_it_is_called(mode):
    model = styles.pixelcnn(layers=2, kernel=3)
    with mode():
        report = genkernels.accelerate(model)
    assert len(report.swapped) == 2, str(report)


@pytest.mark.parametrize("model, kind", [("x", "str"), (nn.ReLU, "type")])
@pytest.mark.parametrize("function", [genkernels.accelerate, genkernels.restore])
def test_a_model_that_is_no_module_is_named_with_its_type(function, model, kind):
    with pytest.raises(TypeError, match=rf"^model: expected a torch\.nn\.Module; got {kind}$"):
        function(model)
