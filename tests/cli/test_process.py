"""The command line as a process of its own: exit codes, Ctrl-C, and what is said where a package is missing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.command_lines import SMALL, is_one_sentence

from genkernels.backends import native

pytest.importorskip("typer", reason="the command line needs the extra 'cli'")


def start(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "genkernels", *arguments],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_module_runs_as_a_command_and_its_exit_code_is_the_processs(tmp_path):
    process = start(tmp_path, "info")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and "genkernels" in out
    process = start(tmp_path, "evaluate", "nowhere.pt")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "") and is_one_sentence(err)


@pytest.mark.skipif(native() is None, reason="the native extension is not built")
def test_an_instruction_set_that_does_not_exist_is_one_sentence_and_info_shows_it(tmp_path):
    said = "environment variable GENKERNELS_MAX_ISA: expected baseline, avx2 or avx512, got 'avx3'"
    process = start(tmp_path, "train", "pixelcnn", "--out", "run", *SMALL, GENKERNELS_MAX_ISA="avx3")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (1, "", f"genkernels: {said}\n")
    assert not (tmp_path / "run").exists()
    process = start(tmp_path, "info", GENKERNELS_MAX_ISA="avx3", COLUMNS="200")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "") and said in out


def test_ctrl_c_saves_says_how_to_go_on_and_exits_with_130(tmp_path):
    process = start(tmp_path, "train", "pixelcnn", "--out", "run", "--epochs", "100000", *SMALL)
    assert process.stdout is not None
    assert "parameters" in process.stdout.readline()  # then training begins
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "model.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "go on with: genkernels train pixelcnn --out run --resume" in " ".join(out.split())
    assert torch.load(tmp_path / "run" / "model.pt", weights_only=True)["progress"]["step"] > 0


def test_without_typer_the_command_says_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'typer' else find(name, *rest)\n"
    )
    process = start(tmp_path, "info", PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and is_one_sentence(err)
    assert "needs typer: pip install 'genkernels[cli]'" in err
