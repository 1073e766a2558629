"""``genkernels.accelerate``: the Row and Diagonal LSTM loops of existing models, swapped, or left with the reason."""

import pytest
import torch
import torch.nn.functional as F
from helpers import public_styles as styles
from helpers.accelerated import assert_same, pair, step
from torch import nn

import genkernels
from genkernels.acceleration import recurrent

pytestmark = pytest.mark.usefixtures("seeded")


def assert_equal_to_its_loop(plain, fast, *, float64=True):
    """Outputs, gradients and dtypes, at sizes that no check has seen."""
    for shape in ((2, 3, 5, 7), (2, 3, 7, 2), (1, 3, 1, 4), (1, 3, 4, 1)):
        x = torch.randn(shape)
        assert_same(step(fast, x), step(plain, x))
        with torch.autocast("cpu", torch.bfloat16):
            for given in (x, x.bfloat16()):
                got, expected = fast(given), plain(given)
                assert got.dtype == expected.dtype
                torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)
    if float64:
        x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
        got, expected = step(fast.double(), x), step(plain.double(), x)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10)


def cell(gates, c, order="ofig"):
    blocks = dict(zip(order, gates.chunk(4, 1), strict=True))
    c = blocks["f"].sigmoid() * c + blocks["i"].sigmoid() * blocks["g"].tanh()
    return blocks["o"].sigmoid() * c.tanh(), c


def skew(x, new=torch.Tensor.new_zeros):
    batch, channels, height, width = x.shape
    skewed = new(x, (batch, channels, height, height + width - 1))
    for row in range(height):
        skewed[:, :, row, row : row + width] = x[:, :, row]
    return skewed


def unskew(columns, width):
    whole = torch.stack(columns, 3)
    return torch.stack([whole[:, :, row, row : row + width] for row in range(whole.shape[2])], 2)


@pytest.mark.parametrize("name", styles.LOOPS)
def test_recurrences_that_loop(name):
    detail, runs = {
        "row": ("Row LSTM, gates in the order o, f, i, g", 2),  # and the masked convolution before it
        "diagonal": ("Diagonal LSTM, gates in the order i, g, f, o", 1),
        "bidirectional": ("Diagonal LSTM, gates in the order i, g, f, o", 2),
    }[name]
    plain, fast, report = pair(styles.LOOPS[name], swapped=runs)
    assert report.swapped[0].detail == detail
    x = torch.randn(2, 3, 5, 7)
    assert_same(step(fast, x), step(plain, x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(x), plain(x), rtol=0.1, atol=0.1)


# --- tensors of a dtype of their own ---------------------------------------------------------------------------------


class Zeros(nn.Module):
    """A Row LSTM whose states, result or gates are float32 whatever the model is."""

    def __init__(self, how, hidden=4):
        super().__init__()
        self.hidden, self.how = hidden, how
        self.conv_i = nn.Conv2d(3, 4 * hidden, (1, 3), padding=(0, 1))
        self.conv_s = nn.Conv1d(hidden, 4 * hidden, 3, padding=1)

    def forward(self, x):
        n, _, height, width = x.shape
        gates = self.conv_i(x.float() if self.how == "float before" else x)
        if self.how in ("result", "float of the result"):
            h, c = gates.new_zeros(n, self.hidden, width), gates.new_zeros(n, self.hidden, width)
        elif self.how == "device":
            h = torch.zeros(n, self.hidden, width, device=x.device)
            c = torch.zeros(n, self.hidden, width, device=x.device)
        else:
            h, c = torch.zeros(n, self.hidden, width), torch.zeros(n, self.hidden, width)
        whole, rows = torch.zeros(n, self.hidden, height, width), []
        for index in range(height):
            row = gates[:, :, index]
            h, c = cell((row.float() if self.how == "float in the loop" else row) + self.conv_s(h), c)
            if self.how == "result":
                whole[:, :, index] = h
            rows.append(h.float() if self.how == "float of the result" else h)
        return whole if self.how == "result" else torch.stack(rows, 2)


class ZerosOfASkewedMap(styles.DiagonalLoop):
    """The skewed map is float32, the states are the input's: in float64 it runs, and rounds."""

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], self.hidden, x.shape[2])
        columns = []
        for column in skew(self.conv_is(x), lambda _, shape: torch.zeros(shape)).unbind(3):
            h, c = cell(column + self.conv_ss(F.pad(h, (1, 0))), c)
            columns.append(h)
        return unskew(columns, x.shape[3])


HOW = ["plain", "device", "result", "float before", "float in the loop", "float of the result"]


@pytest.mark.parametrize("how", [*HOW, "skewed map"])
def test_tensors_of_a_dtype_of_their_own_are_no_obstacle(how):
    plain, fast, _ = pair(ZerosOfASkewedMap if how == "skewed map" else lambda: Zeros(how))
    assert_equal_to_its_loop(plain, fast, float64=False)


@pytest.mark.parametrize("how", ["result", "float of the result", "skewed map"])
def test_in_a_dtype_that_was_not_checked_the_loop_itself_runs(how, monkeypatch):
    plain, fast, _ = pair(ZerosOfASkewedMap if how == "skewed map" else lambda: Zeros(how))
    name, calls = "diagonal_lstm" if how == "skewed map" else "row_lstm", []
    operator = getattr(recurrent.ops, name)
    monkeypatch.setattr(recurrent.ops, name, lambda *args: calls.append(1) or operator(*args))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.equal(fast.double()(x), plain.double()(x))
    assert not calls
    torch.testing.assert_close(fast.float()(x.float()), plain.float()(x.float()))
    assert calls == [1]


def test_an_input_that_the_loop_casts_itself_is_taken():
    plain, fast, _ = pair(lambda: Zeros("float before"))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.equal(fast(x), plain(x))


# --- a Conv2d on rows or columns -------------------------------------------------------------------------------------


class RowByConv2d(nn.Module):
    """States of [N, h, 1, W]; all channels of the input are the hidden ones, so either part could be the other."""

    def __init__(self, hidden=3):
        super().__init__()
        self.hidden = hidden
        self.conv_s = nn.Conv2d(hidden, 4 * hidden, (1, 3), padding=(0, 1))
        self.conv_i = nn.Conv2d(3, 4 * hidden, (1, 3), padding=(0, 1))

    def forward(self, x):
        gates = self.conv_i(x)
        h = c = x.new_zeros(x.shape[0], self.hidden, 1, x.shape[3])
        rows = []
        for row in gates.split(1, 2):
            h, c = cell(row + self.conv_s(h), c)
            rows.append(h)
        return torch.cat(rows, 2)


class DiagonalByConv2d(nn.Module):
    """States of [N, h, H, 1] and a kernel of (2, 1), or of [N, h, 1, H] and a kernel of (1, 2)."""

    def __init__(self, kernel, bias=False, hidden=4):
        super().__init__()
        self.hidden, self.kernel = hidden, kernel
        self.conv_i = nn.Conv2d(3, 4 * hidden, 1)
        self.conv_s = nn.Conv2d(hidden, 4 * hidden, kernel, padding=(1, 0) if kernel == (2, 1) else 0, bias=bias)

    def forward(self, x):
        height = x.shape[2]
        h = c = x.new_zeros(x.shape[0], self.hidden, *((height, 1) if self.kernel == (2, 1) else (1, height)))
        columns = []
        for column in skew(self.conv_i(x)).unbind(3):
            if self.kernel == (2, 1):
                h, c = cell(column[:, :, :, None] + self.conv_s(h)[:, :, :-1], c)
            else:
                h, c = cell(column[:, :, None] + self.conv_s(F.pad(h, (1, 0))), c)
            columns.append(h.flatten(2))
        return unskew(columns, x.shape[3])


BY_CONV2D = {
    "row": RowByConv2d,
    "(2, 1)": lambda: DiagonalByConv2d((2, 1)),
    "(1, 2)": lambda: DiagonalByConv2d((1, 2)),
    "with a bias": lambda: DiagonalByConv2d((2, 1), bias=True),
}


@pytest.mark.parametrize("name", BY_CONV2D)
def test_a_state_to_state_part_may_be_a_conv2d(name):
    plain, fast, report = pair(BY_CONV2D[name])
    assert report.swapped[0].swapped == ("row_lstm" if name == "row" else "diagonal_lstm")
    assert not report.left
    assert_equal_to_its_loop(plain, fast)


class NoLoop(nn.Module):
    """Two convolutions whose shapes a Row LSTM's parts could have."""

    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(4, 16, (1, 3), padding=(0, 1)), nn.Conv2d(3, 16, 1)

    def forward(self, x):
        return self.wide(x).chunk(4, 1)[0] + self.narrow(x.repeat(1, 2, 1, 1)[:, :4]).chunk(4, 1)[0]


def test_two_convolutions_that_do_not_loop_are_not_told_to_be_an_lstm():
    assert "LSTM" not in str(genkernels.accelerate(NoLoop()))


# --- a bias and the cells beside the image ---------------------------------------------------------------------------


class BiasedDiagonal(nn.Module):
    """A Conv1d with a bias. Beside the image it is masked, or flows in; the input may be skewed before its part."""

    def __init__(self, how, hidden=4, state_bias=True, input_bias=True):
        super().__init__()
        self.hidden, self.how = hidden, how
        self.conv_i = nn.Conv2d(3, 4 * hidden, 1, bias=input_bias)
        self.conv_s = nn.Conv1d(hidden, 4 * hidden, 2, bias=state_bias)

    def forward(self, x):
        gates = self.conv_i(skew(x)) if self.how == "skewed before" else skew(self.conv_i(x))
        inside = skew(torch.ones_like(x[:, :1]))
        h = c = x.new_zeros(x.shape[0], self.hidden, x.shape[2])
        columns = []
        for index, column in enumerate(gates.unbind(3)):
            h, c = cell(column + self.conv_s(F.pad(h, (1, 0))), c)
            if self.how == "masked":
                h, c = h * inside[..., index], c * inside[..., index]
            columns.append(h)
        return unskew(columns, x.shape[3])


BIASED = {
    "masked": lambda: BiasedDiagonal("masked"),
    "flows in": lambda: BiasedDiagonal("flows in"),
    "flows in, no bias of the input": lambda: BiasedDiagonal("flows in", input_bias=False),
    "both biases flow in": lambda: BiasedDiagonal("skewed before"),
    "the input's bias flows in": lambda: BiasedDiagonal("skewed before", state_bias=False),
    "skewed before, without biases": lambda: BiasedDiagonal("skewed before", state_bias=False, input_bias=False),
}


@pytest.mark.parametrize("name", BIASED)
def test_biases_beside_the_image_flow_in_where_they_do(name):
    plain, fast, _ = pair(BIASED[name])
    assert_equal_to_its_loop(plain, fast)
    plain, fast = plain.float(), fast.float()
    for model in (plain, fast):
        for p in model.parameters():
            p.data.mul_(3)  # so that what flows in is seen
    x = torch.randn(2, 3, 6, 5)
    assert_same(step(fast, x), step(plain, x))


def test_what_flows_in_compiles():
    plain, fast, _ = pair(BIASED["both biases flow in"])
    x = torch.randn(2, 3, 4, 5)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(fast, fullgraph=True, backend="aot_eager")(x), plain(x))


# --- what is left ----------------------------------------------------------------------------------------------------


class Learned(nn.Module):
    """A Row or Diagonal LSTM with an initial state of its own, or with peepholes."""

    def __init__(self, loop, shape, peepholes=False):
        super().__init__()
        self.row, self.peepholes = loop == "row", peepholes
        self.h0, self.c0 = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))
        self.conv_i = nn.Conv2d(3, 16, 1)
        self.conv_s = nn.Conv1d(4, 16, 3, padding=1) if self.row else nn.Conv1d(4, 16, 2, bias=False)

    def forward(self, x):
        size = (x.shape[0], 4, x.shape[3 if self.row else 2])
        h, c = (p.view(1, 4, -1).expand(size) for p in (self.h0, self.c0))
        if self.peepholes:
            h, c = torch.zeros_like(h), torch.zeros_like(c)
        lines = []
        for line in self.conv_i(x).unbind(2) if self.row else skew(self.conv_i(x)).unbind(3):
            gates = line + self.conv_s(h if self.row else F.pad(h, (1, 0)))
            if self.peepholes:
                gates = gates + torch.cat([self.h0.view(1, 4, -1) * c, self.c0.view(1, 4, -1) * c, 0 * c, 0 * c], 1)
            h, c = cell(gates, c)
            lines.append(h)
        return torch.stack(lines, 2) if self.row else unskew(lines, x.shape[3])


@pytest.mark.parametrize("loop", ["row", "diagonal"])
@pytest.mark.parametrize("shape", [(4,), (1, 4, 1), (1, 4, 1, 1)], ids=str)
def test_a_learned_initial_state_is_the_reason(loop, shape):
    (entry,) = genkernels.accelerate(Learned(loop, shape)).entries
    assert entry.detail == "its initial state is learned (h0, c0); the operator begins with zeros"


def test_peepholes_are_not_told_to_be_an_initial_state():
    (entry,) = genkernels.accelerate(Learned("row", (4,), peepholes=True)).entries
    assert entry.detail == "the operator has no place for its own parameters (h0, c0)"


class Strange(Zeros):
    """A Row LSTM that is none: it reads the row below, has another cell, or no padding."""

    def __init__(self, what):
        super().__init__("plain")
        self.what = what
        self.conv_s.padding = (0,) if what == "no padding" else (1,)

    def forward(self, x):
        gates = self.conv_i(x)
        h = c = torch.zeros(x.shape[0], self.hidden, x.shape[3])
        rows = []
        for index, row in enumerate(gates.unbind(2)):
            if self.what == "future":
                row = row + gates[:, :, min(index + 1, gates.shape[2] - 1)]
            r = row + self.conv_s(h)
            if self.what == "GRU":
                h = r[:, :4].sigmoid() * h + (1 - r[:, :4].sigmoid()) * r[:, 4:8].tanh()
            elif self.what == "coupled":
                c = r[:, :4].sigmoid() * c + (1 - r[:, :4].sigmoid()) * r[:, 4:8].tanh()
                h = r[:, 8:12].sigmoid() * c.tanh()
            elif self.what == "hard":
                c = F.hardsigmoid(r[:, :4]) * c + F.hardsigmoid(r[:, 4:8]) * r[:, 8:12].tanh()
                h = F.hardsigmoid(r[:, 12:]) * c.tanh()
            else:
                h, c = cell(r, c)
            rows.append(h)
        return torch.stack(rows, 2)


@pytest.mark.parametrize("what", ["future", "GRU", "coupled", "hard", "no padding"])
def test_what_is_no_such_lstm_is_left(what):
    report = genkernels.accelerate(Strange(what))
    assert not report.swapped
    wanted = "could not be tried" if what == "no padding" else "no order of the gates makes it a row LSTM"
    assert wanted in report.left[0].detail


class LeaksBesideTheImage(BiasedDiagonal):
    """What is beside the image on the right flows into the next row: the future."""

    def forward(self, x):
        return super().forward(x) + super().forward(x.flip(3))


def test_a_diagonal_that_sees_the_future_is_left():
    report = genkernels.accelerate(LeaksBesideTheImage("flows in"))
    assert not report.swapped
    assert "no order of the gates makes it a diagonal LSTM" in report.left[0].detail


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.LSTM, nn.GRU, nn.RNN])
def test_dense_recurrences_are_told_of_once(kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = self.again = kind(3, 4)
            self.conv = nn.Conv2d(3, 3, 1)

    (entry,) = [entry for entry in genkernels.accelerate(Model()).left if entry.name in ("cell", "again")]
    assert (entry.kind, entry.detail.split(";")[0]) == (kind.__name__, "a dense recurrence")
