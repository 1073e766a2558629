"""Fixtures that tests of several folders ask for."""

import os
from pathlib import Path

import pytest
import torch


def pytest_configure() -> None:
    """Processes that share the tests share the cores: one thread each, but where a test asks for more."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture
def one_thread():
    """One thread for tests of tiny things: a second costs more than it does, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def seeded(one_thread):
    """PyTorch's own random numbers are the same each time; one thread."""
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back in the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def fresh_compiler():
    """Nothing that was compiled before is there, nor anything that the test compiles afterwards."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Runs a command line in an empty folder: (exit code, what it printed, what it said on stderr)."""
    from genkernels.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path):
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
