"""Small models as other people write them, for the tests of the sampler."""

import torch
from torch import nn

from genkernels import sampling

LEVELS = 4
SIZE = (2, 5, 4)


class Plain(nn.Conv2d):
    """The usual masked convolution, which multiplies its own weight in place."""

    def __init__(self, mask_type, *args, **keywords):
        super().__init__(*args, **keywords)
        height, width = self.kernel_size
        mask = torch.ones_like(self.weight)
        mask[:, :, height // 2, width // 2 + (mask_type == "B") :] = 0
        mask[:, :, height // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


class Net(nn.Module):
    """Layers, and a function that puts them together."""

    def __init__(self, body, **layers):
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.body(self, x)


def head(self, y):
    """[N, levels * 2, H, W] -> [N, levels, 2, H, W], the second colour after the first one's channels."""
    return self.out(y).unflatten(1, (LEVELS, 2))


def a_layer(out=6, mask_type="A", inputs=2, kernel=3, **keywords):
    return Plain(mask_type, inputs, out, kernel, padding=kernel // 2, **keywords)


def one(inputs, outputs=2 * LEVELS):
    return nn.Conv2d(inputs, outputs, 1)


def conv_b(inputs, outputs):
    return a_layer(outputs, "B", inputs)


def made(body, layers):
    torch.manual_seed(0)
    net = Net(body, **layers).double()
    for tensor in [*net.parameters(), *net.buffers()]:
        if tensor.dtype.is_floating_point and not (tensor.dim() == 4 and set(tensor.unique().tolist()) <= {0, 1}):
            nn.init.uniform_(tensor, 0.1, 0.6)
    return net.eval()


def compiled(net, size, levels=LEVELS):
    table = torch.linspace(-1, 1, levels, dtype=torch.float64)
    return sampling.compile_program(net, lambda x, _: net(x), (2, *size), table), table
