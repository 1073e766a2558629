"""Fixtures that tests of several folders ask for."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """One thread for tests of tiny things: a second costs more than it does, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back in the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
