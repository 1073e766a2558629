"""The program of a model: which instructions, when, and what they read."""

import pytest
import torch
from helpers.sampler_cases import CASES, program_of

from genkernels.models import PixelCNN
from genkernels.sampling.program.instructions import ROW, Affine, Cell, Draw, Scan, reads_of, to_spans

pytestmark = pytest.mark.usefixtures("one_thread")

LEVELS = 4


@pytest.mark.parametrize("name", CASES)
def test_instructions_read_what_their_phase_may_read(name):
    case = CASES[name]
    program = program_of(case.model(), 2, case.size, case.condition(2))
    assert [[i for i in step if isinstance(i, Draw)] for step in program.steps] == [
        [step[-1]] for step in program.steps[:-1]
    ] + [[]]
    for phase, instructions in [(ROW, program.row), *enumerate(program.steps)]:
        for instruction in instructions:
            assert instruction.phase == phase
            for part in instruction.body if isinstance(instruction, Scan) else (instruction,):
                own = {part.value, getattr(part, "state", None), getattr(part, "gates", None)}
                own |= {part.memory} if isinstance(part, Cell) else set()
                for read in reads_of(part):
                    labels = program.values[read.value].labels
                    seen = {labels[c] for start, stop in read.channels for c in range(start, stop)}
                    assert read.dy <= 0
                    if read.dy == 0 and read.dx > 0 and not (isinstance(instruction, Scan) and read.dx == 1):
                        assert seen <= {ROW}
                    if read.dy == 0 and phase == ROW and not isinstance(instruction, Scan):
                        assert seen <= {ROW}, (instruction.name, read)
                    if read.dy == 0 and read.dx == 0 and phase > ROW and read.value not in own:
                        assert max(seen, default=ROW) <= phase


def test_every_live_tap_costs_one_multiplication_and_a_masked_one_none():
    model = CASES["pixelcnn colours"].model()
    live = sum(int(layer.live_taps().sum()) for layer in model.layers)
    program = program_of(model, 2, (3, 6, 4))
    assert program.multiplications() == live * 6 * 4


def test_weights_that_are_zero_cost_nothing_and_free_what_they_kept_waiting():
    model = PixelCNN(1, 4, 1, LEVELS).double().eval()
    torch.nn.init.zeros_(model.layers[1].weight.data[:, :, 1:])  # the second layer sees the row above alone
    program = program_of(model, 2, (1, 5, 4))
    second = next(v for v in program.values if v.name == "layers.1")
    assert set(second.labels) == {ROW}


def test_row_work_is_done_before_the_row_and_the_pixel_keeps_the_least():
    program = program_of(CASES["gated"].model(), 2, (1, 5, 6))
    vertical = [i for i in program.instructions() if "vertical" in i.name and "horizontal" not in i.name]
    assert vertical and all(i.phase == ROW for i in vertical)
    steps = [i for i in program.steps[0] if isinstance(i, Affine) and "horizontal" in i.name]
    assert all({(tap.dy, tap.dx) for tap in i.taps} <= {(0, -3), (0, -2), (0, -1), (0, 0)} for i in steps)


def test_a_condition_is_added_before_the_row_wherever_there_is_work_before_the_row():
    program = program_of(CASES["gated colours classes"].model(), 2, (3, 5, 4), torch.tensor([0, 1]))
    constants = {v.index for v in program.values if v.constant is not None}
    phases = [i.phase for i in program.instructions() for read in reads_of(i) if read.value in constants]
    # Two stacks of three layers; the vertical gate of the last one is needed by nobody.
    assert len(constants) == len(phases) == 5 and set(phases) == {ROW}


def test_a_direction_from_the_right_goes_along_the_row_above_before_the_row():
    program = program_of(CASES["diagonal lstm"].model(), 2, (1, 5, 6))
    scans = [i for i in program.row if isinstance(i, Scan)]
    assert len(scans) == 2
    assert program.grid_width == 7  # the column that knows the last pixel of its row
    for scan in scans:
        assert program.values[scan.body[-1].value].first_row == 1
        assert program.values[scan.body[-1].state].outside is not None


def test_values_say_how_far_they_are_read():
    program = program_of(CASES["pixelcnn"].model(), 2, (1, 5, 6))
    image, first = program.values[0], program.values[1]
    assert (image.rows_back, image.columns_left, image.columns_right) == (3, 3, 3)
    assert (first.rows_back, first.columns_left, first.columns_right) == (1, 1, 1)


def test_a_program_prints_one_line_for_each_instruction():
    program = program_of(CASES["diagonal lstm colours"].model(), 2, (3, 4, 5))
    lines = str(program).splitlines()
    assert "images 4 x 5 x 3, 4 levels, 6 columns" in lines[0]
    assert len(lines) == 1 + 1 + len(program.row) + sum(1 + len(step) for step in program.steps)
    assert any(
        "layers.0" in line and "[3 x 11] of v0 at (0,-3) (0,-2) (0,-1), v0[0:2] at (0,0)" in line for line in lines
    )
    assert any("along the row" in line for line in lines) and "colour 2 from v" in str(program)


def test_spans_keep_the_order_of_channels():
    assert to_spans([0, 1, 2, 5, 6, 3]) == ((0, 3), (5, 7), (3, 4))
