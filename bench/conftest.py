"""Lets ``pytest bench`` collect the benchmarks in this folder, which a plain ``pytest`` leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect the modules of this folder; a file that is named on the command line pytest collects by itself."""
    named = parent.session.isinitpath(file_path)
    if file_path.parent == HERE and file_path.suffix == ".py" and file_path.name != "conftest.py" and not named:
        return pytest.Module.from_parent(parent, path=file_path)
    return None
