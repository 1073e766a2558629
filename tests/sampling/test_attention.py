"""Causal attention: every spelling in use is sampled as the loop of full forwards does, by every executor."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.sampler_exact import assert_exact_on_every_executor
from helpers.sampler_nets import Plain
from torch import nn

import genkernels
from genkernels.sampling import NotTraceable

HEADS, WIDE = 2, 8


class Attends(nn.Module):
    """A masked convolution, attention as ``attend`` does it, a residual, and a head.

    ``attend(net, q, k, v)`` takes queries, keys and values [N, heads, T, d] and returns [N, heads, T, d].
    """

    def __init__(self, attend, *, strict=False, heads=HEADS, blocks=1):
        super().__init__()
        torch.manual_seed(0)
        self.attend, self.strict, self.heads = attend, strict, heads
        self.first = Plain("A", 1, WIDE, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(WIDE + strict, 3 * WIDE, 1) for _ in range(blocks))
        self.out = nn.Conv2d(WIDE, 4, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def mask(self, tokens):
        return torch.ones(tokens, tokens, dtype=torch.bool).tril(-1 if self.strict else 0)

    def forward(self, x):
        y = self.first(x)
        n, _, height, width = y.shape
        for project in self.blocks:
            seen = torch.cat([y, x], 1) if self.strict else y
            q, k, v = (t.view(n, self.heads, -1, height * width).transpose(2, 3) for t in project(seen).chunk(3, 1))
            if self.strict:  # of queries the pixel itself must not be part
                q = self.first(x).view(n, self.heads, -1, height * width).transpose(2, 3)
            attended = self.attend(self, q, k, v)
            y = y + attended.transpose(2, 3).reshape(n, WIDE, height, width)
        return self.out(y)


def scores(q, k):
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])


def with_infinity(net, q, k, v):
    s = scores(q, k)
    return s.masked_fill(~net.mask(s.shape[-1]), float("-inf")).softmax(-1) @ v


def with_large_numbers(net, q, k, v):
    s = scores(q, k)
    mask = net.mask(s.shape[-1]).float()[None, None]
    return F.softmax(s * mask - 1e10 * (1 - mask), -1) @ v


def with_added_mask(net, q, k, v):
    s = scores(q, k)
    return torch.softmax(s + torch.zeros(s.shape[-2:]).masked_fill(~net.mask(s.shape[-1]), -math.inf), dim=-1) @ v


def in_place(net, q, k, v):
    s = q @ k.transpose(-2, -1)
    s /= math.sqrt(q.shape[-1])
    s.masked_fill_(net.mask(s.shape[-1]) == 0, -1e9)
    return torch.matmul(F.dropout(s.softmax(-1), 0.5, net.training), v)


def by_where(net, q, k, v):
    s = scores(q, k)
    return torch.where(net.mask(s.shape[-1]), s, torch.tensor(-1e30)).softmax(-1) @ v


def by_einsum(net, q, k, v):
    s = torch.einsum("nhid,nhjd->nhij", q, k) * q.shape[-1] ** -0.5
    s = s.masked_fill(~net.mask(s.shape[-1]), torch.finfo(s.dtype).min)
    return torch.einsum("nhij,nhjd->nhid", s.softmax(dim=-1), v)


def by_bmm(net, q, k, v):
    n, heads, tokens, d = q.shape
    q, k, v = (t.reshape(n * heads, tokens, d) for t in (q, k, v))
    s = torch.baddbmm(torch.zeros(tokens, tokens), q, k.transpose(1, 2), beta=0.5, alpha=d**-0.5)
    weights = s.masked_fill(~net.mask(tokens), -math.inf).softmax(2)
    return torch.bmm(weights, v).view(n, heads, tokens, d)


def turned_round(net, q, k, v):
    """Keys in rows and queries in columns, the softmax over rows, the values before the weights."""
    s = k @ q.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = s.masked_fill(~net.mask(s.shape[-1]).T, -math.inf).softmax(-2)
    return (v.transpose(-2, -1) @ weights).transpose(-2, -1)


def turned_back(net, q, k, v):
    """Keys in rows, turned before the softmax."""
    s = (k @ q.transpose(-2, -1)).transpose(-2, -1) / math.sqrt(q.shape[-1])
    return s.masked_fill(~net.mask(s.shape[-1]), -math.inf).softmax(-1) @ v


def by_pytorch(net, q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_pytorch_with_a_mask(net, q, k, v):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=net.mask(q.shape[-2]), scale=0.3)


def by_pytorch_with_numbers(net, q, k, v):
    mask = torch.zeros(q.shape[-2], q.shape[-2]).masked_fill(~net.mask(q.shape[-2]), -math.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def with_relative_positions(net, q, k, v):
    tokens = q.shape[-2]
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    bias = -0.2 * distance.abs() * torch.tensor([1.0, 0.5])[:, None, None]  # for each head
    return (scores(q, k) + bias).masked_fill(~net.mask(tokens), -math.inf).softmax(-1) @ v


def over_a_window(net, q, k, v):
    tokens = q.shape[-2]
    near = net.mask(tokens).triu(-4)
    return scores(q, k).masked_fill(~near, -math.inf).softmax(-1) @ v


SPELLINGS = {
    f.__name__: f for f in (
        with_infinity, with_large_numbers, with_added_mask, in_place, by_where, by_einsum, by_bmm, turned_round,
        turned_back, by_pytorch, by_pytorch_with_a_mask, by_pytorch_with_numbers, with_relative_positions,
        over_a_window,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_is_followed(name):
    fast = genkernels.fast_sampler(Attends(SPELLINGS[name]), levels=4, in_channels=1)
    assert_exact_on_every_executor(fast, 3, (4, 5))


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (2, 2)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_images_of_every_shape_and_stacks_are_sampled(size, blocks):
    fast = genkernels.fast_sampler(Attends(by_pytorch, blocks=blocks), levels=4, in_channels=1)
    assert_exact_on_every_executor(fast, 2, size)


def test_the_multiply_adds_are_those_of_the_pixels_that_are_seen():
    net = Attends(by_pytorch)
    fast = genkernels.fast_sampler(net, levels=4, in_channels=1)
    pairs = 12 * 13 // 2  # of 12 pixels each sees those before it and itself
    rest = sum(i.weight.numel() * 12 for i in fast.compile(1, (3, 4)).instructions() if hasattr(i, "weight"))
    assert fast.program.multiplications() == rest + pairs * 2 * WIDE


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_any_number_of_heads(heads):
    fast = genkernels.fast_sampler(Attends(with_infinity, heads=heads), levels=4, in_channels=1)
    assert_exact_on_every_executor(fast, 2, (3, 4))


@pytest.mark.parametrize("spelling", [with_infinity, by_pytorch_with_a_mask], ids=lambda f: f.__name__)
def test_a_pixel_that_does_not_see_itself_may_have_keys_of_itself(spelling):
    """Strictly earlier pixels, whose keys see their own level; the first pixel's weights are zero, and not NaN."""

    def attend(net, q, k, v):
        if spelling is by_pytorch_with_a_mask:  # PyTorch's own gives zeros to the first pixel
            return spelling(net, q, k, v)
        s = scores(q, k).masked_fill(~net.mask(q.shape[-2]), -math.inf)
        return s.softmax(-1).nan_to_num(0.0) @ v

    fast = genkernels.fast_sampler(Attends(attend, strict=True), levels=4, in_channels=1)
    assert_exact_on_every_executor(fast, 3, (4, 3))


def test_a_mask_before_and_one_after_the_softmax():
    """As PixelSNAIL has it: the first pixel sees none, its weights are a mean over all, and then masked."""

    def attend(net, q, k, v):
        mask = net.mask(q.shape[-2]).float()
        s = scores(q, k).masked_fill(mask == 0, -1e4)
        start = torch.ones(q.shape[-2], 1)
        start[0] = 0
        return (s.softmax(-1) * start) @ v

    fast = genkernels.fast_sampler(Attends(attend, strict=True), levels=4, in_channels=1)
    assert_exact_on_every_executor(fast, 3, (4, 3))


def test_rows_above_alone_are_attended_to_in_the_row_phase():
    def attend(net, q, k, v):
        row = torch.arange(q.shape[-2]) // net.width
        above = row[None] < row[:, None]
        return scores(q, k).masked_fill(~above, -math.inf).softmax(-1).nan_to_num(0.0) @ v

    class Above(Attends):
        def forward(self, x):
            self.width = x.shape[3]
            shifted = F.pad(x, (0, 0, 1, 0))[..., :-1, :]  # of queries, only the rows above
            return super().forward(shifted)

    fast = genkernels.fast_sampler(Above(attend), levels=4, in_channels=1)
    assert_exact_on_every_executor(fast, 2, (4, 5))


# --- modules, and sequences of tokens ---------------------------------------------------------------------------


class Block(nn.Module):
    """A transformer's block on tokens [N, T, C]."""

    def __init__(self, channels, heads, need_weights):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.need_weights = need_weights

    def forward(self, x):
        forbidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, attn_mask=forbidden, need_weights=self.need_weights)[0]
        return x + self.mlp(self.norms[1](x))


class ImageTransformer(nn.Module):
    """As ImageGPT: embedded levels behind a start token, positions, blocks, logits [N, T, levels]."""

    def __init__(self, need_weights=False, channels=8, levels=5, positions=64):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.start = nn.Embedding(levels, channels), nn.Parameter(torch.randn(channels))
        self.positions = nn.Parameter(torch.randn(positions, channels))
        self.blocks = nn.ModuleList(Block(channels, 2, need_weights) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, levels, bias=False)

    def forward(self, x):
        tokens = self.embedding(x.flatten(1))
        start = self.start.expand(len(x), 1, -1)
        y = torch.cat([start, tokens[:, :-1]], 1) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y))


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("size", [(4, 5), (1, 6), (5, 1), (1, 1)])
def test_an_image_transformer_is_sampled(size, need_weights):
    fast = genkernels.fast_sampler(ImageTransformer(need_weights), levels=5, in_channels=1, scale="index")
    assert_exact_on_every_executor(fast, 2, size)


def test_pytorchs_own_transformer_is_sampled():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x):
            tokens = F.pad(self.embedding(x.flatten(1)), (0, 0, 1, 0))[:, :-1]
            mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
            return self.head(self.layers(tokens, mask=mask, is_causal=True))

    fast = genkernels.fast_sampler(Transformer().eval(), levels=5, in_channels=1, scale="index")
    assert_exact_on_every_executor(fast, 2, (3, 4))


@pytest.mark.parametrize("norm_first", [True, False])
def test_sequences_whose_first_dimension_is_the_tokens_are_sampled(norm_first):
    """As PyTorch's transformers are by default."""

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)
            self.start, self.positions = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(64, 1, 8))
            layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=norm_first)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x):
            tokens = self.embedding(x.flatten(1)).permute(1, 0, 2)
            start = self.start.expand(1, len(x), -1)
            y = torch.cat([start, tokens[:-1]], 0) + self.positions[: len(tokens)]
            mask = torch.full((len(y), len(y)), -math.inf).triu(1)
            return self.head(self.layers(y, mask=mask)).transpose(0, 1)

    fast = genkernels.fast_sampler(Transformer().eval(), levels=5, in_channels=1, scale="index")
    for size in ((3, 4), (1, 5), (1, 1)):
        assert_exact_on_every_executor(fast, 2, size)


def test_what_mixes_images_in_such_a_sequence_is_refused():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)

        def forward(self, x):
            y = self.embedding(x.flatten(1)).transpose(0, 1)
            return self.head(y - y.mean(1, keepdim=True)).transpose(0, 1)

    with pytest.raises(NotTraceable, match="aten::mean of a sequence whose second dimension is that of the images"):
        genkernels.fast_sampler(Mixes(), levels=5, in_channels=1, scale="index")


# --- refusals ---------------------------------------------------------------------------------------------------


def seeing_all(net, q, k, v):
    return scores(q, k).softmax(-1) @ v


def seeing_the_next(net, q, k, v):
    tokens = q.shape[-2]
    return scores(q, k).masked_fill(torch.ones(tokens, tokens).triu(2).bool(), -math.inf).softmax(-1) @ v


def seeing_none_first(net, q, k, v):
    return scores(q, k).masked_fill(~net.mask(q.shape[-2]), -math.inf).softmax(-1) @ v


def seeing_none_first_by_a_number(net, q, k, v):
    return scores(q, k).masked_fill(~net.mask(q.shape[-2]), -1e9).softmax(-1) @ v


def without_softmax(net, q, k, v):
    return scores(q, k).masked_fill(~net.mask(q.shape[-2]), 0).relu() @ v


def across_channels(net, q, k, v):
    return v @ (q.transpose(-2, -1) @ k / 8).softmax(-1)


@pytest.mark.parametrize(
    "attend, strict, message",
    [
        (seeing_all, False, r"not causal: layer 'bmm' attends to pixels that are drawn later \(test_attention.py"),
        (seeing_the_next, False, "not causal: layer 'bmm' attends to pixels that are drawn later"),
        (seeing_none_first, True, r"pixel \(0, 0\) attends to none, so that its softmax is NaN"),
        (seeing_none_first_by_a_number, True, r"pixel \(0, 0\) attends to none, .* is a mean over all pixels, later"),
        (without_softmax, False, "aten::relu of attention scores; between the product of queries and keys"),
        (across_channels, False, "bmm of attention weights; between the softmax and the product with the values"),
    ],
)
def test_what_is_not_causal_attention_is_refused(attend, strict, message):
    with pytest.raises(NotTraceable, match=message):
        genkernels.fast_sampler(Attends(attend, strict=strict), levels=4, in_channels=1)


def test_attention_over_images_is_refused():
    class OverImages(ImageTransformer):
        def forward(self, x):
            y = self.embedding(x.flatten(1))
            attention = self.blocks[0].attention
            attention.batch_first = False
            return self.head(attention(y, y, y)[0])

    with pytest.raises(NotTraceable, match="attention over images; give it batch_first=True"):
        genkernels.fast_sampler(OverImages(), levels=5, in_channels=1, scale="index")


def test_attention_over_a_part_of_the_pixels_is_refused():
    def attend(net, q, k, v):
        half = q.shape[-2] // 2
        mask = torch.ones(2 * half, half, dtype=torch.bool).tril()
        return scores(q, k[..., :half, :]).masked_fill(~mask, -math.inf).softmax(-1) @ v[..., :half, :]

    with pytest.raises(
        NotTraceable, match="attention of 42 queries over 21 keys; expected as many as an image of 6 x 7"
    ):
        genkernels.fast_sampler(Attends(attend), levels=4, in_channels=1)
