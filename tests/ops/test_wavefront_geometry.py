"""The path of a wavefront: fronts, offsets, and paths that make no sense."""

import itertools

import pytest
from helpers.wavefront_directions import OTHER_TAPS, SIZES, WALKS

from genkernels.ops.wavefront_lstm.geometry import Geometry


@pytest.mark.parametrize("walk", [*WALKS, *OTHER_TAPS], ids=str)
def test_the_geometry_names_the_offsets_and_reads_only_the_front_before(walk):
    geometry = Geometry(walk.front, walk.taps, walk.mirrored)
    assert tuple(geometry.offsets()) == walk.offsets
    assert geometry.cell_offset() == walk.cell
    height, width = 5, 7
    for y, x in walk.order(height, width):
        for dy, dx in (*walk.offsets, walk.cell):
            assert geometry.step(y + dy, x + dx, width) == geometry.step(y, x, width) - 1


@pytest.mark.parametrize("size", [*SIZES, (7, 3), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("walk", WALKS, ids=str)
def test_the_fronts_hold_every_pixel_once(walk, size):
    geometry = Geometry(walk.front, walk.taps, walk.mirrored)
    fronts = [geometry.cells(step, *size) for step in range(geometry.steps(*size))]
    assert all(fronts)
    assert sorted(itertools.chain(*fronts)) == list(itertools.product(*map(range, size)))
    for step, cells in enumerate(fronts):
        assert all(geometry.step(*cell, size[1]) == step for cell in cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("column", (0,)), "front: expected 'row' or 'diagonal'; got 'column'"),
        (("row", ()), "taps: expected one or more whole numbers, each once; got []"),
        (("row", (0, 0)), "taps: expected one or more whole numbers, each once; got [0, 0]"),
        (("row", (0.5,)), "taps: expected one or more whole numbers, each once; got [0.5]"),
        (
            ("diagonal", (0, 1)),
            "taps: a diagonal front reads rows at most 0, those below hold future pixels; got [0, 1]",
        ),
        (("row", (0,), True), "mirrored: only a diagonal front has a mirror image; got front 'row'"),
    ],
)
def test_a_geometry_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError) as caught:
        Geometry(*arguments)
    assert str(caught.value) == message
