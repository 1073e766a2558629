"""Runs a piece of Python in a process of its own, for what can be set or seen only once per process."""

import os
import subprocess
import sys
import textwrap


def run_fresh(code: str, *, timeout: float = 120, **environ: str) -> str:
    """What `code` prints, in a new Python with these environment variables added; fails when it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GENKERNELS_")}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment | environ,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()
