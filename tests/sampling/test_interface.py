"""What a model takes and gives: levels by number or as they are, many of them, and logits in every layout in use."""

import pytest
import torch
import torch.nn.functional as F
from helpers.sampler_exact import assert_exact_on_every_executor
from helpers.sampler_nets import Plain
from torch import nn

import genkernels
from genkernels import sampling
from genkernels.sampling.output_layout import LAYOUTS, arranged, expected_shape, layouts_of


class Net(nn.Module):
    """Causal features of what ``read`` makes of the image, and what ``give`` makes of logits [N, C * L, H, W].

    With several colours each sees the pixels before its own and the colours before it.
    """

    def __init__(self, read, give, *, inputs, colours=1, outputs=4, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.read, self.give, self.colours = read, give, colours
        self.first, self.second = Plain("A", inputs, width, 3, padding=1), Plain("B", width, width, 3, padding=1)
        self.out = nn.Conv2d(width, colours * outputs, 1)
        self.embedding = nn.Embedding(600, inputs)
        self.register_buffer("table", torch.randn(600, inputs))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, x, *condition):
        features = self.second(self.first(self.read(self, x)).relu()).relu()
        if condition:
            features = features + condition[0]
        return self.give(self.out(features))


def channels_first(x):
    return x.movedim(-1, 1)


READS = {
    "embedding": lambda net, x: channels_first(net.embedding(x[:, 0])),
    "embedding of [N, C, H, W]": lambda net, x: channels_first(net.embedding(x).squeeze(1)),
    "embedding of tokens": lambda net, x: net.embedding(x.flatten(1)).transpose(1, 2).unflatten(2, x.shape[2:]),
    "embedding channels last": lambda net, x: net.embedding(x.permute(0, 2, 3, 1))[..., 0, :].permute(0, 3, 1, 2),
    "one-hot": lambda net, x: channels_first(F.one_hot(x[:, 0], 6).float()),
    "a table indexed": lambda net, x: channels_first(net.table[x[:, 0]]),
    "a table's rows selected": lambda net, x: channels_first(
        net.table.index_select(0, x.flatten()).view(*x[:, 0].shape, -1)
    ),
    "a column": lambda net, x: torch.cat([net.table[:, k][x] for k in range(6)], 1),
    "shifted": lambda net, x: channels_first(net.embedding(2 * x[:, 0] + 7)),
    "scaled by itself": lambda net, x: (x.float() / 3 - 0.5).expand(-1, 6, -1, -1),
    "scaled by division": lambda net, x: (x / 3).repeat(1, 6, 1, 1),
}


@pytest.mark.parametrize("name", READS)
def test_levels_are_read_as_they_are(name):
    net = Net(READS[name], lambda y: y, inputs=6)
    fast = genkernels.fast_sampler(net, levels=4, in_channels=1, scale="index")
    drawn = assert_exact_on_every_executor(fast, 3, (4, 5))
    assert len(drawn.unique()) == 4


def test_levels_read_as_they_are_can_be_padded_with_another():
    """A token that begins the image: its row of the table stands above and to the left of it."""

    def read(net, x):
        return channels_first(net.embedding(F.pad(x, (1, 0, 1, 0), value=5)).squeeze(1))[..., :-1, 1:]

    fast = genkernels.fast_sampler(Net(read, lambda y: y, inputs=6), levels=4, in_channels=1, scale="index")
    assert_exact_on_every_executor(fast, 2, (4, 5))


@pytest.mark.parametrize("levels", [257, 512])
def test_many_levels_are_drawn(levels):
    net = Net(READS["embedding"], lambda y: y, inputs=6, outputs=levels)
    fast = genkernels.fast_sampler(net, levels=levels, in_channels=1, scale="index")
    drawn = assert_exact_on_every_executor(fast, 2, (3, 5))
    assert drawn.dtype == torch.int16 and drawn.max() > 200


def test_colours_are_looked_up_each():
    def read(net, x):
        return channels_first(net.embedding(x).movedim(1, 3).flatten(3))

    class Coloured(Net):
        """The second colour's logits see the first colour of their own pixel."""

        def forward(self, x):
            own = channels_first(self.embedding(x[:, 0]))
            return super().forward(x) + torch.stack([torch.zeros_like(own[:, :4]), own[:, :4]], 2)

    net = Coloured(read, lambda y: y.unflatten(1, (4, 2)), inputs=12, colours=2)
    net.embedding = nn.Embedding(4, 6)
    fast = genkernels.fast_sampler(net, levels=4, in_channels=2, scale="index")
    assert_exact_on_every_executor(fast, 3, (4, 3))


@pytest.mark.parametrize(
    "read, message",
    [
        (lambda net, x: channels_first(net.embedding(x[:, 0].flip(1))), "does not know the operator aten::flip"),
        (lambda net, x: channels_first(F.one_hot(x[:, 0]).float()), "one_hot without the number of classes"),
        (
            lambda net, x: torch.zeros(len(x), 6, *x.shape[2:]).scatter_(1, x, 1.0),
            "scatter_ writes what depends on the image into a tensor made without it",
        ),
        (lambda net, x: channels_first(net.embedding((x[:, 0] / 2).long())), "changes the dtype from torch.float32"),
    ],
)  # fmt: skip
def test_what_cannot_be_looked_up_is_refused(read, message):
    with pytest.raises(sampling.NotTraceable, match=message):
        net = Net(read, lambda y: y, inputs=6, outputs=6)
        genkernels.fast_sampler(net, levels=6, in_channels=1, scale="index")


def test_a_dtype_that_does_not_hold_all_levels_is_refused():
    net = Net(READS["embedding"], lambda y: y, inputs=6, outputs=600).bfloat16()
    with pytest.raises(ValueError, match=r"levels: torch.bfloat16 does not hold all of 0 .. 599; take a float32 model"):
        genkernels.fast_sampler(net, levels=600, in_channels=1, scale="index")


# --- what the model gives ---------------------------------------------------------------------------------------

SIZES = {"N": 2, "L": 5, "C": 3, "H": 6, "W": 7}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_what_its_word_says(layout):
    canonical = torch.arange(2 * 5 * 3 * 6 * 7).view(2, 5, 3, 6, 7)
    sizes = SIZES
    if "C" not in layout:
        canonical, sizes = canonical[:, :, :1], SIZES | {"C": 1}
    letters = layout.replace("(", "").replace(")", "")
    permuted = canonical if "C" in letters else canonical.squeeze(2)
    order = "NLCHW" if "C" in letters else "NLHW"
    given = permuted.permute([order.index(letter) for letter in letters]).reshape(expected_shape(layout, sizes))
    assert torch.equal(arranged(given, layout, sizes), canonical)
    assert layout in layouts_of(given.shape, sizes) or len(layouts_of(given.shape, sizes)) == 1


def test_a_shape_that_may_be_several_layouts_has_all_that_differ():
    assert layouts_of([2, 15, 6, 7], SIZES) == ["N(LC)HW", "N(CL)HW"]
    assert layouts_of([2, 5, 6, 7], SIZES | {"C": 1}) == ["NLHW"]
    assert layouts_of([2, 3, 5, 6, 7], SIZES) == ["NCLHW"]
    assert layouts_of([2, 3, 3, 6, 7], SIZES | {"L": 3}) == ["NLCHW"]  # the documented one
    assert layouts_of([2, 5, 5, 5], {"N": 2, "L": 5, "C": 1, "H": 5, "W": 5}) == ["NLHW", "NHWL"]


GIVES = {  # of logits [N, C * L, H, W], C = 2 and L = 4, colour by colour
    "NLCHW": lambda y: y.unflatten(1, (2, 4)).transpose(1, 2),
    "NCLHW": lambda y: y.unflatten(1, (2, 4)),
    "N(LC)HW": lambda y: y.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),
    "N(CL)HW": lambda y: y,
    "NHWCL": lambda y: y.unflatten(1, (2, 4)).permute(0, 3, 4, 1, 2),
    "NHWLC": lambda y: y.unflatten(1, (2, 4)).permute(0, 3, 4, 2, 1),
    "NCHWL": lambda y: y.unflatten(1, (2, 4)).permute(0, 1, 3, 4, 2),
    "NHW(CL)": lambda y: y.permute(0, 2, 3, 1),
    "N(HW)CL": lambda y: y.unflatten(1, (2, 4)).permute(0, 3, 4, 1, 2).flatten(1, 2),
    "N(HWC)L": lambda y: y.unflatten(1, (2, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3),
    "N(CHW)L": lambda y: y.unflatten(1, (2, 4)).permute(0, 1, 3, 4, 2).flatten(1, 3),
    "N(CL)(HW)": lambda y: y.flatten(2),
}


class Coloured(Net):
    """The second colour's logits see the first colour of their own pixel; so but one layout of the logits is causal."""

    def __init__(self, give):
        super().__init__(lambda net, x: x, give, inputs=2, colours=2)
        self.across = nn.Conv2d(1, 4, 1)

    def forward(self, x):
        features = self.out(self.second(self.first(x).relu()).relu())
        return self.give(features + torch.cat([torch.zeros_like(features[:, :4]), self.across(x[:, :1])], 1))


@pytest.mark.parametrize("layout", GIVES)
def test_logits_of_a_layout_are_sampled_whether_it_is_named_or_found(layout):
    reference = genkernels.fast_sampler(Coloured(GIVES["NLCHW"]), levels=4, in_channels=2)
    expected = assert_exact_on_every_executor(reference, 3, (4, 5))
    for given in (layout, None):
        fast = genkernels.fast_sampler(Coloured(GIVES[layout]), levels=4, in_channels=2, layout=given)
        assert fast.interface.layout == layout or given is None
        assert torch.equal(assert_exact_on_every_executor(fast, 3, (4, 5)), expected)


def test_a_layout_that_nothing_tells_has_to_be_named():
    net = Net(lambda net, x: x, lambda y: y, inputs=2, colours=2)  # the colours do not see each other
    with pytest.raises(ValueError, match=r"layout: the model's logits may be N\(LC\)HW or N\(CL\)HW, and it is causal"):
        genkernels.fast_sampler(net, levels=4, in_channels=2)
    for layout in ("N(LC)HW", "N(CL)HW"):
        assert_exact_on_every_executor(genkernels.fast_sampler(net, levels=4, in_channels=2, layout=layout), 2, (3, 4))


def test_probabilities_are_refused():
    """A table of probabilities: they sum to 1 and would be taken for logits."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding.from_pretrained(torch.rand(4, 4).softmax(1))

        def forward(self, x):
            before = F.pad(x, (1, 0))[..., :-1]
            return channels_first(self.table(before[:, 0]))

    with pytest.raises(ValueError, match="model: expected logits or log-probabilities; got numbers that sum to 1"):
        genkernels.fast_sampler(Table(), levels=4, in_channels=1, scale="index")
    logs = Table()
    logs.table.weight.data.log_()
    assert_exact_on_every_executor(genkernels.fast_sampler(logs, levels=4, in_channels=1, scale="index"), 2, (3, 4))


@pytest.mark.parametrize("colours", [1, 3])
def test_one_logit_is_enough_for_two_levels(colours):
    net = Net(lambda net, x: x, lambda y: y, inputs=colours, colours=colours, outputs=1)
    fast = genkernels.fast_sampler(net, levels=2, in_channels=colours, distribution="bernoulli")
    drawn = assert_exact_on_every_executor(fast, 4, (4, 5))
    uniforms = torch.rand(4, colours, 4, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn.bool(), uniforms >= 1 - net(drawn.float()).sigmoid())


def gaussian(parameters, uniforms):
    """Levels of a normal distribution with mean and log-deviation, cut off at the ends."""
    mean, deviation = parameters[:, 0].double(), parameters[:, 1].double().exp()
    return (mean + deviation * torch.special.ndtri(uniforms.clamp(1e-9, 1 - 1e-9))).round().clamp(0, 9).long()


@pytest.mark.parametrize("colours", [1, 2])
def test_a_function_of_ones_own_draws(colours):
    # Colours, where there are two, do not wait for each other.
    net = Net(lambda net, x: x, lambda y: y.unflatten(1, (2, colours)), inputs=colours, colours=colours, outputs=2)
    fast = genkernels.fast_sampler(net, levels=10, in_channels=colours, distribution=gaussian)
    uniforms = torch.rand(3, colours, 4, 5, generator=torch.Generator().manual_seed(0))
    drawn = fast.sample(3, (4, 5), uniforms=uniforms, backend="full_forward")
    for backend in ("torch", "cpu"):
        seen = []
        own = fast.sample(
            3, (4, 5), uniforms=uniforms, backend=backend, progress=lambda *done, seen=seen: seen.append(done)
        )
        assert torch.equal(drawn, own)
        assert seen[-1] == (20 * colours, 20 * colours)
    outputs = net(drawn / 9).view(3, 2, colours, 4, 5)
    assert torch.equal(drawn.flatten().long(), gaussian(outputs.movedim(1, -1).reshape(-1, 2), uniforms.flatten()))
    for options, name in (({"temperature": 0.5}, "temperature"), ({"top_k": 2}, "top_k")):
        with pytest.raises(ValueError, match=f"{name}: expected .* with a function of your own"):
            fast.sample(1, (4, 5), **options)


@pytest.mark.parametrize("colours", [1, 2])
def test_what_a_function_draws_from_is_told_of_given_images(colours):
    net = Net(lambda net, x: x, lambda y: y.unflatten(1, (2, colours)), inputs=colours, colours=colours, outputs=2)
    fast = genkernels.fast_sampler(net, levels=10, in_channels=colours, distribution=gaussian)
    images = torch.randint(10, (3, colours, 4, 5), generator=torch.Generator().manual_seed(0))
    for backend in ("torch", "cpu"):
        found = sampling.teacher_forced(fast.compile(3, (4, 5)), images, backend)
        assert torch.allclose(found, net(images / 9), atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_a_function_of_ones_own_completes_images(backend):
    net = Net(lambda net, x: x, lambda y: y, inputs=1, outputs=2)
    fast = genkernels.fast_sampler(net, levels=10, in_channels=1, distribution=gaussian)
    given, known = torch.full((2, 1, 3, 4), 7), torch.zeros(2, 1, 3, 4, dtype=torch.bool)
    known[0, :, 1:] = known[1, :, 0, 2:] = True
    options = {"given": given, "known": known, "uniforms": torch.rand(2, 1, 3, 4)}
    drawn = fast.sample(2, (3, 4), **options, backend=backend)
    assert torch.equal(drawn, fast.sample(2, (3, 4), **options, backend="full_forward"))
    assert (drawn[known] == 7).all()


def test_parameters_that_are_no_numbers_are_an_error_that_names_the_place():
    net = Net(lambda net, x: x, lambda y: y, inputs=1, outputs=2)
    fast = genkernels.fast_sampler(net, levels=10, in_channels=1, distribution=gaussian)
    nn.init.constant_(net.out.bias[:1], torch.nan)
    for backend in ("torch", "cpu"):
        with pytest.raises(ValueError, match="parameters: expected numbers; got NaN at image 0, channel 0, row 0"):
            fast.sample(2, (3, 4), backend=backend)


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda p, u: u[:1], r"give levels \[3\]; got \[1\]"),
        (lambda p, u: None, r"give levels \[3\]; got NoneType"),
        (lambda p, u: u + 0.25, r"give whole levels 0 .. 9; got"),
        (lambda p, u: (u * 0 + 10).long(), r"give whole levels 0 .. 9; got 10 .. 10"),
    ],
)
def test_a_function_that_draws_something_else_is_told_so(draw, message):
    fast = genkernels.fast_sampler(
        Net(lambda net, x: x, lambda y: y, inputs=1, outputs=2), levels=10, in_channels=1, distribution=draw
    )
    with pytest.raises(ValueError, match=f"distribution: expected the function to {message}"):
        fast.sample(3, (2, 2), uniforms=torch.full((3, 1, 2, 2), 0.5))


# --- conditions that are images ---------------------------------------------------------------------------------


class Conditioned(Net):
    """Features of a coarser image, upsampled, beside those of the image: a hierarchical prior."""

    def __init__(self):
        super().__init__(READS["embedding"], lambda y: y, inputs=6, outputs=512)
        self.coarse, self.up = nn.Embedding(512, 8), nn.ConvTranspose2d(8, 8, 4, 2, 1)

    def forward(self, x, codes):
        features = self.up(channels_first(self.coarse(codes)).relu())
        return super().forward(x, features)


def test_a_prior_conditioned_on_a_coarser_code_is_sampled():
    net = Conditioned()
    codes = torch.randint(512, (2, 3, 2), generator=torch.Generator().manual_seed(0))
    example = torch.randint(512, (2, 1, 6, 4), generator=torch.Generator().manual_seed(1))
    fast = genkernels.fast_sampler(net, example, levels=512, scale="index", condition=codes)
    first = assert_exact_on_every_executor(fast, 2, (6, 4), codes)
    assert not torch.equal(first, assert_exact_on_every_executor(fast, 2, (6, 4), codes.flip(0)))
    larger = torch.randint(512, (3, 4, 5), generator=torch.Generator().manual_seed(2))
    assert_exact_on_every_executor(fast, 3, (8, 10), larger)
