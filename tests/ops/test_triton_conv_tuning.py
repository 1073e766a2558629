"""Tile sizes of the Triton kernels: timed once, remembered per GPU and version, never where unwanted."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers.fresh_process import run_fresh

import genkernels
from genkernels.triton_conv import tuning
from genkernels.triton_conv.tuning import Tile, WinnerFile, choose, tilings

FIRST, SECOND, THIRD = (Tile(m, 32, 32, 4, 2) for m in (32, 64, 128))
KEY = ("convolve", torch.bfloat16, 4096)
GPU = torch.device("cuda", 0)


class OutOfResourcesError(Exception):
    pass


class Machine:
    """A GPU that is not there: its name, whether a graph is being captured, and which problems have been timed."""

    def __init__(self, monkeypatch, home: Path) -> None:
        self.monkeypatch, self.home = monkeypatch, home
        self.timed: list[int] = []
        self.capturing = False
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        monkeypatch.delenv("GENKERNELS_AUTOTUNE", raising=False)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(tuning, "_quickest", lambda candidates, run: self.timed.append(1) or candidates[1])
        self.become("NVIDIA H100 80GB HBM3", "3.9.0")

    def become(self, gpu: str, triton: str) -> None:
        """A new process, on this GPU with this version of Triton."""
        tuning._cache.cache_clear()
        self.monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
        errors = types.SimpleNamespace(OutOfResources=OutOfResourcesError)
        for name, module in (
            ("triton", types.SimpleNamespace(__version__=triton)), ("triton.runtime.errors", errors),
            ("triton.runtime", types.SimpleNamespace(errors=errors)),
        ):  # fmt: skip
            self.monkeypatch.setitem(sys.modules, name, module)

    def choose(self, key: tuple = KEY, candidates: tuple[Tile, ...] = (FIRST, SECOND, THIRD)) -> Tile:
        return choose(key, candidates, lambda tile: None, GPU)

    def files(self) -> list[Path]:
        return sorted(path for path in self.home.rglob("*") if path.is_file())


@pytest.fixture
def machine(monkeypatch, tmp_path):
    yield Machine(monkeypatch, tmp_path)
    tuning._cache.cache_clear()


def test_a_problem_is_timed_once_for_each_gpu_and_version(machine):
    assert [machine.choose(), machine.choose()] == [SECOND, SECOND]
    assert len(machine.timed) == 1
    machine.choose(("weight_gradient", *KEY[1:]))
    assert len(machine.timed) == 2
    (file,) = machine.files()
    assert file.name == f"tiles-nvidia-h100-80gb-hbm3-genkernels-{genkernels.__version__}-triton-3.9.0.json"
    machine.become("NVIDIA A100", "3.9.0")
    machine.choose()
    machine.become("NVIDIA H100 80GB HBM3", "3.6.0")
    machine.choose()
    assert (len(machine.timed), len(machine.files())) == (4, 3)
    machine.become("NVIDIA H100 80GB HBM3", "3.9.0")
    assert machine.choose() == SECOND
    assert len(machine.timed) == 4


def test_another_process_takes_what_this_one_found_and_importing_reads_nothing(machine):
    machine.choose()
    printed = run_fresh(
        """
        import sys, types, torch, genkernels
        from genkernels.triton_conv import tuning
        print(tuning._cache.cache_info().currsize)
        sys.modules["triton"] = types.SimpleNamespace(__version__="3.9.0")
        torch.cuda.get_device_name = lambda device: "NVIDIA H100 80GB HBM3"
        tuning._quickest = None
        tiles = [tuning.Tile(m, 32, 32, 4, 2) for m in (32, 64, 128)]
        print(tuning.choose(("convolve", torch.bfloat16, 4096), tiles, None, torch.device("cuda", 0)) == tiles[1])
        """,
        XDG_CACHE_HOME=str(machine.home),
    )
    assert printed.split() == ["0", "True"]


@pytest.mark.parametrize("damage", ["", "{", "[1, 2]", '{"key": [1, 2]}', '{"key": 3}', "\0"])
def test_a_damaged_file_is_ignored_with_a_warning_and_made_anew(machine, damage):
    machine.choose()
    (file,) = machine.files()
    whole = file.read_text()
    file.write_text(damage)
    machine.become("NVIDIA H100 80GB HBM3", "3.9.0")
    with pytest.warns(UserWarning, match="genkernels ignores .*tiles-nvidia-h100"):
        assert machine.choose() == SECOND
    assert len(machine.timed) == 2
    assert file.read_text() == whole


def test_a_winner_that_is_no_candidate_any_more_is_timed_again(machine):
    machine.choose()
    (file,) = machine.files()
    file.write_text(json.dumps({repr(KEY): ["a", None, 32, 4, 2]}))
    machine.become("NVIDIA H100 80GB HBM3", "3.9.0")
    assert machine.choose() == SECOND
    assert len(machine.timed) == 2


def test_the_file_is_replaced_at_once_and_keeps_what_others_wrote(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "tiles.json"
    mine, theirs = WinnerFile(path), WinnerFile(path)
    theirs.add("theirs", FIRST)
    before = path.read_text()
    seen = []
    replace = os.replace

    def watch(source, target):
        seen.append((path.read_text(), sorted(json.loads(Path(source).read_text())), Path(source).stat().st_dev))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    mine.add("mine", SECOND)
    assert seen == [(before, ["mine", "theirs"], path.parent.stat().st_dev)]
    assert WinnerFile(path).winners == {"theirs": FIRST, "mine": SECOND}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["mkdir", "write_text", "replace"])
def test_where_nothing_can_be_written_a_warning_says_so_and_nothing_is_left_behind(tmp_path, monkeypatch, step):
    def full(*_args, **_options):
        raise OSError("no space left on device")

    monkeypatch.setattr(os if step == "replace" else Path, step, full)
    file = WinnerFile(tmp_path / "tiles.json")
    with pytest.warns(UserWarning, match=r"cannot remember its tile sizes in .*tiles\.json: no space left"):
        file.add("key", FIRST)
    assert file.winners == {"key": FIRST}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reason", ["deterministic", "switched off", "capturing", "one candidate", "no GPU"])
def test_nothing_is_timed_or_written_where_that_is_unwanted(machine, monkeypatch, reason):
    device, candidates = GPU, [FIRST, SECOND]
    if reason == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    elif reason == "switched off":
        monkeypatch.setenv("GENKERNELS_AUTOTUNE", "0")
    elif reason == "capturing":
        machine.capturing = True
    elif reason == "one candidate":
        candidates = [FIRST]
    else:
        device = torch.device("cpu")
    assert choose(KEY, candidates, lambda tile: None, device) == FIRST
    assert not machine.timed
    assert not machine.files()


def test_what_is_known_serves_a_captured_graph_and_not_a_deterministic_run(machine, monkeypatch):
    machine.choose()
    machine.capturing = True
    assert machine.choose() == SECOND
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert machine.choose() == FIRST


def test_the_quickest_by_the_median_wins_and_what_does_not_fit_is_passed_over(machine, monkeypatch):
    monkeypatch.undo()
    machine.become("NVIDIA H100 80GB HBM3", "3.9.0")
    clock = [0.0]
    samples = {SECOND: iter([9.0, 2, 2, 2, 2, 2, 99, 99]), THIRD: iter([9.0, 1, 3, 3, 3, 3, 1, 1])}

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = clock[0]

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return other.time - self.time

    def run(tile):
        if tile == FIRST:
            raise OutOfResourcesError("shared memory")
        clock[0] += next(samples[tile])

    machine.monkeypatch.setattr(torch.cuda, "Event", Event)
    assert tuning._quickest([FIRST, SECOND, THIRD], run) == SECOND
    with pytest.raises(RuntimeError, match="no tiling fits this GPU: shared memory"):
        tuning._quickest([FIRST], run)


@pytest.mark.parametrize("tensor_cores", [True, False])
@pytest.mark.parametrize("shared_bytes", [100_000, 232_448])
@pytest.mark.parametrize("rows, columns, depth", [(65536, 256, 128), (65536, 3, 64), (7, 512, 3), (1, 1, 1)])
def test_few_tilings_are_tried_all_of_which_fit_the_gpu_and_the_problem(
    rows, columns, depth, shared_bytes, tensor_cores
):
    limits = {"element_size": 2 if tensor_cores else 4, "shared_bytes": shared_bytes, "tensor_cores": tensor_cores}
    tried = tilings(rows, columns, depth, processors=132, **limits)
    assert 1 <= len(tried) <= tuning.MOST_TILINGS
    assert len(set(tried)) == len(tried)
    for tile in tried:
        assert tile.shared_bytes(limits["element_size"]) <= shared_bytes
        assert tile.m <= max(16, 2 * rows) and tile.n <= max(16, 2 * columns) and tile.k <= max(16, 2 * depth)
    assert len(tilings(rows, columns, depth, processors=0, **limits)) == 1
