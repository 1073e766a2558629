"""The sampling program: what has to be computed, and when, to draw an image in the time of one forward pass.

**Values.** A value is a map of features, ``value[y, x, channel]`` for every image of the batch, on a grid of
``height`` x ``grid_width``. The grid is as high as the image and as wide or a little wider (a model that pads the image
on the right works on more columns). Value 0 is the image as the model sees it, ``table[level]``, in its own columns.
Whatever lies outside a value's support (rows before ``first_row``, columns outside ``columns``, anything outside the
grid) is never written and reads as ``outside``: zero, but for the states of an LSTM with a learned initial state. A
value may also be a constant: known before the first pixel, a vector for each image or a whole map.

**The sweep.** ::

    for y in range(height):
        program.row                    at row y, each instruction for all columns of its value's support
        for x in range(grid_width):
            program.steps[0]           at pixel (y, x)
            draw colour 0              (the last instruction of step 0; left out where x >= width)
            program.steps[1]
            draw colour 1
            ...
            program.steps[colours]     what needs the whole pixel

An instruction at (y, x) writes ``channels`` of its value at (y, x), if that lies in the value's support, and reads
others at (y + dy, x + dx). dy is never above 0. In ``row`` it reads rows above, and row y only of channels that ``row``
itself has finished before, in any column; in a step it reads row y to the left, or at dx = 0 (or, with dx > 0, channels
that ``row`` has finished). Instructions are listed in an order in which every read finds its value written.

**Labels.** ``Value.labels`` says when each channel at (y, x) is finished: ROW in the row phase of row y, s in step s of
its pixel. The channels of one layer can differ in this: with colours, the features of a later colour come later.

**Partial sums.** An affine instruction of a step usually continues what the row phase began: its ``accumulate`` is
True, and the channels that it writes hold a partial sum then. Nothing reads these before they are finished.

Every tensor in a program has the dtype and device of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROW = -1  # the phase before the pixels of a row; 0, 1, ... are the steps of a pixel

Spans = tuple[tuple[int, int], ...]
"""Channels as ranges [start, stop), in the order in which they are meant."""


def span_count(spans: Spans) -> int:
    return sum(stop - start for start, stop in spans)


def span_indices(spans: Spans) -> list[int]:
    return [channel for start, stop in spans for channel in range(start, stop)]


@dataclass(frozen=True, eq=False)
class Value:
    """A map of features; see the module's text.

    Attributes:
        index: its place in ``Program.values``.
        name: of the layer that makes it, for people.
        channels: how many.
        labels: when each channel is finished, ROW or a step.
        first_row: the first row that is written; those above read as ``outside``.
        columns: [start, stop) of the columns that are written.
        rows_back: how many rows above its own are still read: a ring of ``rows_back + 1`` rows holds all of it.
        columns_left, columns_right: how far beyond ``columns`` something may be read, on either side.
        outside: [channels], or None for zero.
        constant: None; or [n or 1, channels]: the same at every (y, x), also outside the support; or
            [n or 1, channels, height, grid_width], a map (``outside`` is None then). n is the number of images.
    """

    index: int
    name: str
    channels: int
    labels: tuple[int, ...]
    first_row: int
    columns: tuple[int, int]
    rows_back: int = 0
    columns_left: int = 0
    columns_right: int = 0
    outside: Tensor | None = None
    constant: Tensor | None = None


@dataclass(frozen=True)
class Read:
    """Channels of a value, read at (y + dy, x + dx)."""

    value: int
    dy: int
    dx: int
    channels: Spans


@dataclass(frozen=True)
class Function:
    """A function by name, with what it needs besides: see :data:`UNARY`."""

    name: str
    parameters: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.name + (f"({', '.join(f'{p:g}' for p in self.parameters)})" if self.parameters else "")


UNARY = {
    "copy": "x",
    "relu": "max(x, 0)",
    "tanh": "tanh(x)",
    "sigmoid": "1 / (1 + exp(-x))",
    "exp": "exp(x)",
    "silu": "x * sigmoid(x)",
    "gelu": "x * Phi(x), with the error function",
    "gelu_tanh": "0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))",
    "elu": "x if x > 0 else p0 * p1 * (exp(p2 * x) - 1), times p1 if x > 0 (alpha, scale, input_scale)",
    "leaky_relu": "x if x > 0 else p0 * x",
    "softplus": "log(1 + exp(p0 * x)) / p0, and x where p0 * x > p1",
    "clamp": "min(max(x, p0), p1)",
    "scale": "p0 * x + p1",
    "abs": "abs(x)",
    "sign": "1, 0 or -1; 0 for NaN",
    "sqrt": "sqrt(x)",
    "rsqrt": "1 / sqrt(x)",
    "log": "log(x)",
    "log1p": "log(1 + x)",
    "expm1": "exp(x) - 1",
    "sin": "sin(x)",
    "cos": "cos(x)",
    "erf": "the error function",
}
"""Functions of one number, by name; p0, p1, ... are the parameters of a :class:`Function`."""

BINARY = {
    "add": "a + b",
    "sub": "a - b",
    "mul": "a * b",
    "div": "a / b",
    "gate": "tanh(a) * sigmoid(b)",
    "maximum": "max(a, b), NaN where one is NaN",
    "minimum": "min(a, b), NaN where one is NaN",
    "power": "a ** b",
    "less": "1 if a < b else 0",
    "less_equal": "1 if a <= b else 0",
    "equal": "1 if a == b else 0",
    "unequal": "1 if a != b else 0",
}
"""Functions of two numbers in a :class:`Pointwise`."""

TERNARY = {
    "where": "b if a != 0 else c",
    "multiply_add": "a * b + c",
}
"""Functions of three numbers in a :class:`Pointwise`."""

ACROSS = {
    "softmax": "exp(x) / sum(exp(x))",
    "log_softmax": "x - logsumexp(x)",
    "standardise": "(x - mean(x)) / sqrt(mean((x - mean(x))^2) + p0)",
}
"""Functions of the n numbers of a group that give n numbers; see :class:`Across`."""

REDUCE = {
    "sum": "sum(x)",
    "mean": "sum(x) / n",
    "max": "max(x), NaN where there is one",
    "logsumexp": "log(sum(exp(x)))",
    "variance": "sum((x - mean(x))^2) / (n - p0)",
}
"""Functions of the n numbers of a group that give one; see :class:`Across`."""


@dataclass(frozen=True, eq=False)
class Affine:
    """Sums over taps: ``value[channels] = act(weight @ taps + bias + terms [+ value[channels] if accumulate])``.

    Attributes:
        name: of the layers it comes from, for people.
        phase: ROW, or the step.
        value: the one written.
        channels: of it, in the order of the rows of ``weight``.
        taps: what is read; their channels, one tap after the other, are the columns of ``weight``.
        weight: [channels, columns]; [channels, 0] where there are no taps.
        bias: [channels] or None.
        terms: values or constants to add as they are; their spans are as long as those of ``channels``, one by one, or
            one channel long, which is then added to all channels of its span.
        accumulate: whether to add to what the value holds there, left by an earlier instruction of row or step.
        activation: applied last, or None.
    """

    name: str
    phase: int
    value: int
    channels: Spans
    taps: tuple[Read, ...]
    weight: Tensor
    bias: Tensor | None
    terms: tuple[Read, ...] = ()
    accumulate: bool = False
    activation: Function | None = None


@dataclass(frozen=True, eq=False)
class Pointwise:
    """``value[channels] = function(operands)``, channel by channel.

    ``function`` is one of :data:`UNARY` with one operand, one of :data:`BINARY` with two, or of :data:`TERNARY` with
    three. An operand's spans are as long as those of ``channels``, one by one, or one channel long, which then is the
    operand of all channels of its span.
    """

    name: str
    phase: int
    value: int
    channels: Spans
    function: Function
    operands: tuple[Read, ...]


@dataclass(frozen=True, eq=False)
class Lookup:
    """``value[channels] = table[number]``: a row of a table [numbers, channels].

    ``source`` reads the number, one channel; outside the table the nearest row is meant.
    """

    name: str
    phase: int
    value: int
    channels: Spans
    source: Read
    table: Tensor


@dataclass(frozen=True, eq=False)
class Across:
    """``value[channels] = function(operand)`` for one group of channels after the other.

    A group is a span of ``operand``; all are equally long. ``function`` is one of :data:`ACROSS`, and the spans of
    ``channels`` are as long as those of the operand, or one of :data:`REDUCE`, and they are one channel long.
    """

    name: str
    phase: int
    value: int
    channels: Spans
    function: Function
    operand: Read


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention of pixel (y, x) over the pixels that it sees, head after head::

        score[s] = scale * <query[y, x], keys[s]> + shift[pixel, s]      for each pixel s that ``seen`` has
        value[channels] = sum over s of softmax(score)[s] * values[s]

    Zero where it sees none. Pixels are numbered row by row: y * width + x of the image.

    Attributes:
        channels: of the value, all of them: ``heads`` times those of ``values`` for a head.
        query, keys, values: read at (y, x), and at every pixel seen.
        seen: bool [heads or 1, pixels, pixels]; no pixel that comes later.
        shift: [heads or 1, pixels, pixels] or None.
    """

    name: str
    phase: int
    value: int
    channels: Spans
    query: Read
    keys: Read
    values: Read
    heads: int
    scale: float
    seen: torch.Tensor
    shift: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Cell:
    """The cell of an LSTM, for some of its h units.

    With the blocks i, f, g, o of h channels each in ``gates`` at (y, x), raw sums before their sigmoid or tanh::

        c = sigmoid(f) * memory[y + dy, x + dx] + sigmoid(i) * tanh(g)
        hidden = sigmoid(o) * tanh(c)

    and ``memory[y, x] = c``, ``value[y, x] = state[y, x] = hidden``.

    Attributes:
        value: where hidden goes for other layers.
        state: where it goes for the recurrence, with the initial state outside; may be ``value`` itself.
        gates: a value of 4h channels.
        previous: c of the cell before; its channels are those of ``channels``.
        channels: the units computed here.
    """

    name: str
    phase: int
    value: int
    channels: Spans
    state: int
    gates: int
    previous: Read

    @property
    def memory(self) -> int:
        """The value that holds c."""
        return self.previous.value


@dataclass(frozen=True, eq=False)
class Scan:
    """A part of the row phase that goes along the row, from the last column to the first.

    At each column the instructions of ``body`` are run at (y, x); of the values that they write themselves they read
    row y at dx = 1. The right-to-left direction of the Diagonal LSTM is one; its row y is row y - 1 of the image.
    """

    name: str
    body: tuple[Affine | Cell, ...]
    phase: int = ROW


@dataclass(frozen=True, eq=False)
class Draw:
    """Draws one colour of pixel (y, x) and writes the image, value 0: ``table[level]`` in channel ``colour``.

    It is drawn from the colour's prediction of the program's distribution, at (y, x) of ``value``, which has all
    predictions one after the other. The level is drawn by inverse CDF as
    :meth:`genkernels.distributions.Distribution.draw` does; a known sub-pixel keeps its level.
    """

    colour: int
    value: int
    name: str = "draw"

    @property
    def phase(self) -> int:
        return self.colour


Instruction = Affine | Pointwise | Lookup | Across | Attention | Cell | Scan | Draw


def reads_of(instruction: Instruction) -> list[Read]:
    """Every read of an instruction, the gates and the logits included."""
    if isinstance(instruction, Affine):
        return [*instruction.taps, *instruction.terms]
    if isinstance(instruction, Pointwise):
        return list(instruction.operands)
    if isinstance(instruction, Lookup):
        return [instruction.source]
    if isinstance(instruction, Across):
        return [instruction.operand]
    if isinstance(instruction, Attention):
        return [instruction.query, instruction.keys, instruction.values]
    if isinstance(instruction, Cell):
        units = span_count(instruction.channels)
        return [instruction.previous, Read(instruction.gates, 0, 0, ((0, 4 * units),))]
    if isinstance(instruction, Scan):
        return [read for part in instruction.body for read in reads_of(part)]
    return [Read(instruction.value, 0, 0, ())]


def to_spans(channels: list[int] | torch.Tensor) -> Spans:
    """The shortest spans that mean these channels in this order."""
    spans: list[tuple[int, int]] = []
    for channel in map(int, channels):
        if spans and spans[-1][1] == channel:
            spans[-1] = (spans[-1][0], channel + 1)
        else:
            spans.append((channel, channel + 1))
    return tuple(spans)
