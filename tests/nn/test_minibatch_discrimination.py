"""MinibatchDiscrimination: the sums of the paper, for every pair of a batch, differentiable twice."""

import pytest
import torch

from genkernels.nn import MinibatchDiscrimination


def test_each_sample_gets_its_closeness_to_the_others():
    torch.manual_seed(0)
    layer = MinibatchDiscrimination(6, kernels=3, kernel_dim=2).double()
    features = torch.randn(5, 6, dtype=torch.float64)
    compared = (features @ layer.weight).view(5, 3, 2)
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            if i != j:
                expected[i] += (-(compared[i] - compared[j]).abs().sum(1)).exp()
    result = layer(features)
    assert result.shape == (5, 9) and torch.equal(result[:, :6], features)
    torch.testing.assert_close(result[:, 6:], expected)


def test_samples_that_are_all_alike_are_as_close_as_can_be():
    layer = MinibatchDiscrimination(4, kernels=2)
    assert torch.allclose(layer(torch.ones(7, 4))[:, 4:], torch.tensor(6.0))


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_average_is_over_the_other_samples(n):
    layer, averaging = MinibatchDiscrimination(4, kernels=2), MinibatchDiscrimination(4, kernels=2, average=True)
    averaging.load_state_dict(layer.state_dict())
    features = torch.randn(n, 4)
    torch.testing.assert_close(averaging(features)[:, 4:] * max(n - 1, 1), layer(features)[:, 4:])
    assert torch.allclose(averaging(torch.ones(n, 4))[:, 4:], torch.tensor(float(n > 1)))


def test_its_derivatives_are_right_twice_over():
    layer = MinibatchDiscrimination(3, kernels=2, kernel_dim=2).double()
    features = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, features)
    assert torch.autograd.gradgradcheck(layer, features)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="kernels: expected a whole number of at least 1; got 0"):
        MinibatchDiscrimination(4, kernels=0)
    with pytest.raises(ValueError, match=r"features: expected \[N, 4\]; got shape \[2, 5\]"):
        MinibatchDiscrimination(4)(torch.zeros(2, 5))
