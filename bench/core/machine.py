"""Machine and software of a result, without anything that tells whose machine it is."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import genkernels

_ROOT = Path(__file__).resolve().parents[2]

# (vendor, family) -> [(first model, last model, name)]: told even where a hypervisor hides the model name.
_MICROARCHITECTURES = {
    ("AuthenticAMD", 23): [(0x00, 0x2F, "zen1"), (0x30, 0xFF, "zen2")],
    ("AuthenticAMD", 25): [
        (0x00, 0x0F, "zen3"), (0x10, 0x1F, "zen4"), (0x20, 0x5F, "zen3"), (0x60, 0xAF, "zen4"),
    ],
    ("AuthenticAMD", 26): [(0x00, 0x4F, "zen5"), (0x60, 0x7F, "zen5")],
    ("GenuineIntel", 6): [
        (0x55, 0x55, "skylake"), (0x6A, 0x6A, "icelake"), (0x6C, 0x6C, "icelake"),
        (0x8F, 0x8F, "sapphirerapids"), (0xAD, 0xAE, "graniterapids"), (0xCF, 0xCF, "emeraldrapids"),
    ],
}  # fmt: skip
_NOISE = re.compile(r"\(r\)|\(tm\)|\bcpu\b|\bprocessor\b|\b\w+-core\b|@.*|\bwith\b.*", re.IGNORECASE)


def machine(cpuinfo: str | None = None) -> dict[str, Any]:
    """The machine that runs this: model, microarchitecture, CPUs, torch's threads, and a slug made of them.

    Args:
        cpuinfo: the text of /proc/cpuinfo; None reads it where there is one.
    """
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        cpuinfo = path.read_text() if path.exists() else ""
    first: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            first.setdefault(key.strip(), value.strip())
    model = first.get("model name") or platform.processor() or platform.machine()
    name = _microarchitecture(first)
    threads = torch.get_num_threads()
    words = [re.sub(r"[^a-z0-9]+", "-", _NOISE.sub(" ", model).lower()).strip("-")]
    words += [name] if name else []
    return {
        "slug": "-".join([*words, f"{threads}t"]),
        "cpu": model,
        "microarchitecture": name,
        "logical_cpus": os.cpu_count(),
        "threads": threads,
    }


def _microarchitecture(cpu: dict[str, str]) -> str | None:
    family, model = cpu.get("cpu family", ""), cpu.get("model", "")
    if not (family.isdigit() and model.isdigit()):
        return None
    known = _MICROARCHITECTURES.get((cpu.get("vendor_id", ""), int(family)), [])
    return next((name for low, high, name in known if low <= int(model) <= high), None)


def gpu_machine() -> dict[str, Any]:
    """The GPU, and a slug made of its name."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "slug": re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-"),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def software() -> dict[str, Any]:
    """Versions, compiler, the commit and whether tracked files differed from it, and the day (UTC)."""
    native = genkernels.build_info()["native"] or {}
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return {
        "genkernels": genkernels.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "compiler": native.get("compiler"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # an installed copy, or no git
        return None
    return done.stdout.strip()
