"""Models that change tensors in place: the program computes what PyTorch does, or says why not."""

import pytest
import torch
import torch.nn.functional as F
from helpers.sampler_cases import logits_from_poisoned_memory, random_images
from helpers.sampler_nets import LEVELS, SIZE, a_layer, compiled, head, made, one
from torch import nn

from genkernels import sampling

pytestmark = pytest.mark.usefixtures("one_thread")


def to_result(y, z, change):
    change(y, z)
    return y


def to_even_channels(y, z, change):
    change(y[:, ::2], z[:, ::2])
    return y


def to_half(y, z, change):
    change(y[:, :3], z[:, 3:])
    return y - z


def to_part(y, z, change):
    first, second = y.chunk(2, 1)
    change(second, first)
    return torch.cat([second, y[:, :3] * first], 1)


def to_reshaped(y, z, change):
    change(y.unflatten(1, (2, 3)).transpose(1, 2)[:, 1:], z.unflatten(1, (3, 2))[:, 1:])
    return y


def to_one_channel(y, z, change):
    change(y[:, 0], z[:, 3])
    first = torch.relu(y[:, 1] - 1) * torch.arange(4, dtype=y.dtype)
    return torch.cat([y[:, :5], first.unsqueeze(1)], 1)


def seen_under_another_name(y, z, change):
    other = y
    change(y, z)
    return other * 0.5 + y


def copied_before(y, z, change):
    other = y.clone()
    change(y, z)
    return other * 0.5 + y


def made_contiguous_before(y, z, change):
    other = y.transpose(2, 3).contiguous().transpose(2, 3)
    change(y, z)
    return other + y * z


def used_before(y, z, change):
    other = y * 2
    change(y, z)
    return other + y


WHERE = [
    to_result, to_even_channels, to_half, to_part, to_reshaped, to_one_channel, seen_under_another_name, copied_before,
    made_contiguous_before, used_before,
]  # fmt: skip


def plus(y, z):
    y += z


def minus(y, z):
    y -= z


def times(y, z):
    y *= z


def over(y, z):
    y /= z.exp()


def numbers(y, z):
    y += 1
    y *= 0.5
    y -= 2
    y /= 3


CHANGES = {
    "a += b": plus,
    "a -= b": minus,
    "a *= b": times,
    "a /= b": over,
    "with numbers": numbers,
    "add_": lambda y, z: y.add_(z),
    "add_ with alpha": lambda y, z: y.add_(z, alpha=-0.5),
    "add_ of a constant": lambda y, z: y.add_(torch.full((1, 1, 1), 0.25, dtype=y.dtype), alpha=3),
    "sub_": lambda y, z: y.sub_(z),
    "sub_ with alpha": lambda y, z: y.sub_(z, alpha=2),
    "mul_": lambda y, z: y.mul_(z),
    "div_": lambda y, z: y.div_(2 + z.tanh()),
    "neg_": lambda y, z: y.neg_(),
    "clamp_": lambda y, z: y.clamp_(0.1, 0.9),
    "clamp_ from below": lambda y, z: y.clamp_(min=1),
    "clamp_min_": lambda y, z: y.clamp_min_(1),
    "clamp_max_": lambda y, z: y.clamp_max_(1),
    "relu_": lambda y, z: y.sub_(1).relu_(),
    "leaky_relu_": lambda y, z: F.leaky_relu_(y.sub_(1), 0.3),
    "elu_": lambda y, z: F.elu_(y.sub_(1)),
    "sigmoid_": lambda y, z: y.sigmoid_(),
    "tanh_": lambda y, z: y.tanh_(),
    "exp_": lambda y, z: y.neg_().exp_(),
    "hardtanh_": lambda y, z: F.hardtanh_(y),
    "F.relu": lambda y, z: F.relu(y.sub_(1), inplace=True),
    "F.leaky_relu": lambda y, z: F.leaky_relu(y.sub_(1), inplace=True),
    "F.elu": lambda y, z: F.elu(y.sub_(1), inplace=True),
    "F.silu": lambda y, z: F.silu(y, inplace=True),
    "nn.ReLU": lambda y, z: nn.ReLU(inplace=True)(y.sub_(1)),
    "nn.LeakyReLU": lambda y, z: nn.LeakyReLU(inplace=True)(y.sub_(1)),
    "nn.ELU": lambda y, z: nn.ELU(inplace=True)(y.sub_(1)),
    "copy_": lambda y, z: y.copy_(z.tanh()),
    "copy_ of a constant": lambda y, z: y.copy_(torch.full(y.shape[2:], 0.5, dtype=y.dtype)),
    "fill_": lambda y, z: y.fill_(0.5),
    "zero_": lambda y, z: y.zero_(),
    "all assigned": lambda y, z: y.__setitem__(slice(None), z),
    "a number assigned": lambda y, z: y.__setitem__(slice(None), 0.5),
    "chosen channels assigned": lambda y, z: y.__setitem__((slice(None), torch.tensor([1, 0])), z[:, :2]),
    "chosen channels zeroed": lambda y, z: y.__setitem__((slice(None), [0]), 0),
}  # fmt: skip


def a_net(body, **layers):
    layers = layers or {"conv": a_layer(), "conv2": a_layer(), "out": one(6)}
    return made(body, layers)


def agrees(net):
    program, table = compiled(net, SIZE)
    images = random_images(3, SIZE, LEVELS)
    with torch.no_grad():
        expected = net(table[images.long()])
    assert torch.allclose(logits_from_poisoned_memory(program, images), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("where", WHERE, ids=lambda where: where.__name__)
def test_a_change_in_place_reaches_what_shares_the_memory_and_nothing_else(where, change):
    net = a_net(lambda self, x: head(self, where(self.conv(x), self.conv2(x), CHANGES[change])))
    if where is to_one_channel and change == "chosen channels assigned":  # rows of that channel exchanged
        with pytest.raises(sampling.NotTraceable, match="the result is not made of whole channels"):
            compiled(net, SIZE)
    else:
        agrees(net)


def test_the_image_itself_may_be_changed_in_place():
    def body(self, x):
        y = self.conv(x)
        x.mul_(2).sub_(1)
        return head(self, y + self.conv2(x))

    agrees(a_net(body))


def test_shifted_views_of_a_tensor_that_is_changed_see_the_change():
    def body(self, x):
        y = self.conv(F.pad(x, (0, 0, 1, 0)))
        a, b = y[:, :, 1:], y[:, :, :-1]
        a *= 2
        return head(self, torch.relu(b) + a)

    # Row by row what b shows is doubled but for its first row: no sum over whole channels.
    with pytest.raises(sampling.NotTraceable, match="the result is not made of whole channels"):
        compiled(a_net(body), SIZE)


def test_shifted_views_that_are_zeroed_see_it():
    def body(self, x):
        y = self.conv(x)
        above = F.pad(y, (0, 0, 1, 0))[:, :, :-1]
        y[:, :, :1] = 0
        y[:, 2:4, :, 1:].zero_()
        return head(self, y * above)

    agrees(a_net(body))


def test_parts_of_one_tensor_that_do_not_cross_may_meet():
    def body(self, x):
        y = self.conv(x)
        y[:, ::2] += y[:, 1::2]
        y *= y
        y[:, :3].mul_(y[:, :3])
        y += y.clone()[:, :1]
        return head(self, y)

    agrees(a_net(body))


REFUSED = {
    "every other column": (
        lambda self, x: head(self, to_result(self.conv(x), x, lambda y, z: y[..., ::2].relu_())),
        "layer 'relu': the result is not made of whole channels",
    ),
    "a tensor made without the image": (
        lambda self, x: head(self, torch.zeros_like(x).repeat(1, 3, 1, 1).copy_(self.conv(x))),
        "layer 'copy_': aten::copy_ writes what depends on the image into a tensor made without it",
    ),
    "one image of the batch": (
        lambda self, x: head(self, to_result(self.conv(x), x, lambda y, z: y[:1].relu_())),
        "layer 'slice': aten::slice mixes the images of a batch",
    ),
    "chosen images": (
        lambda self, x: head(
            self, to_result(self.conv(x), x, lambda y, z: y.__setitem__((torch.tensor([0]), torch.tensor([0])), 0.0))
        ),
        "layer 'index_put_': index_put_ chooses images of the batch",
    ),
    "what is written is read in another place": (
        lambda self, x: head(self, to_result(self.conv(x), x, lambda y, z: y.add_(y[:, :1]))),
        r"layer 'add_': aten::add_ reads other elements of the memory that it writes",
    ),
    "what is written is read one row above": (
        lambda self, x: head(self, to_result(self.conv(x), x, lambda y, z: y[:, :, 1:].mul_(y[:, :, :-1]))),
        r"layer 'mul_': aten::mul_ reads other elements of the memory that it writes",
    ),
    "out=": (
        lambda self, x: head(self, to_result(self.conv(x), x, lambda y, z: torch.add(y, 1, out=y))),
        "layer 'add': aten::add with out=",
    ),
    "an operator that is not known": (
        lambda self, x: head(self, self.conv(x).floor_()), "the sampler does not know the operator aten::floor_",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_change_that_cannot_be_followed_is_refused_with_the_reason(name):
    body, message = REFUSED[name]
    with pytest.raises(sampling.NotTraceable, match=message):
        compiled(a_net(body), SIZE)
