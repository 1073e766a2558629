"""The path of a wavefront: steps, offsets, and paths that make no sense."""

import itertools

import pytest
from helpers.wavefront_directions import OTHER_TAPS, SIZES, SWEEPS

from genkernels.ops.wavefront_lstm.geometry import Geometry


@pytest.mark.parametrize("sweep", [*SWEEPS, *OTHER_TAPS], ids=str)
def test_the_geometry_names_the_offsets_and_reads_only_the_front_before(sweep):
    geometry = Geometry(sweep.front, sweep.taps, sweep.mirrored)
    assert tuple(geometry.offsets()) == sweep.offsets
    assert geometry.cell_offset() == sweep.cell
    height, width = 5, 7
    for y, x in sweep.order(height, width):
        for dy, dx in (*sweep.offsets, sweep.cell):
            assert geometry.step(y + dy, x + dx, width) == geometry.step(y, x, width) - 1


@pytest.mark.parametrize("size", [*SIZES, (7, 3), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
def test_the_fronts_hold_every_pixel_once(sweep, size):
    geometry = Geometry(sweep.front, sweep.taps, sweep.mirrored)
    steps = [geometry.cells(step, *size) for step in range(geometry.steps(*size))]
    assert all(steps)
    assert sorted(itertools.chain(*steps)) == list(itertools.product(*map(range, size)))
    for step, cells in enumerate(steps):
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
