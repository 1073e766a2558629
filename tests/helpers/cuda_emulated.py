"""The CUDA kernels on this machine's processor: the same sources, compiled against a host emulator, as a module.

Compiling takes some fifteen seconds; the module is kept in build/emulated under a name that tells its sources.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest

from genkernels.ops.core.cuda_device import Device

ROOT = Path(__file__).resolve().parents[2]
NAME = "genkernels_emulated"
FLAGS = [
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-DGK_EMULATED",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
]


def sources() -> list[Path]:
    """What is compiled: every kernel, its bindings and the emulator."""
    folder = ROOT / "csrc/cuda"
    kernels = [path for path in sorted(folder.rglob("*.cu")) if path.name != "build_info.cu"]
    return [
        *kernels,
        *sorted((ROOT / "csrc/bindings").glob("cuda_*.cpp")),
        *sorted((folder / "emulator").glob("*.cpp")),
    ]


def _compiler() -> str:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("the CUDA emulator needs a C++ compiler, and there is none")
    return compiler


@lru_cache
def module() -> ModuleType:
    """The emulated module, compiled if need be."""
    pybind11 = pytest.importorskip("pybind11")
    headers = [
        ROOT / "csrc/cpu/core/tensor_view.h",
        ROOT / "csrc/sampler_records.h",
        ROOT / "csrc/bindings/sampler_plan.h",
    ]
    headers += [ROOT / "csrc/bindings/cuda.h", *sorted((ROOT / "csrc/cuda").rglob("*.h"))]
    compiler = _compiler()
    digest = hashlib.sha256(f"{compiler} {FLAGS} {pybind11.__version__} {sysconfig.get_platform()}".encode())
    for path in [*sources(), *headers]:
        digest.update(path.read_bytes())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    target = ROOT / "build/emulated" / digest.hexdigest()[:16] / f"{NAME}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes: one compiles, the others wait for it
        if not target.exists():
            _compile(compiler, pybind11.get_include(), target)
    spec = importlib.util.spec_from_file_location(NAME, target)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _compile(compiler: str, pybind11: str, target: Path) -> None:
    includes = [f"-I{path}" for path in (ROOT / "csrc", pybind11, sysconfig.get_paths()["include"])]

    def compiled(source: Path) -> str:
        result = target.with_name(f"{source.parent.name}_{source.name}.o")
        # Bindings need no speed, and compile in half the time without it.
        level = "-O2" if source.suffix == ".cu" or source.name == "emulator.cpp" else "-O0"
        _run([compiler, *FLAGS, level, *includes, "-x", "c++", "-c", str(source), "-o", str(result)])
        return str(result)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources()))
    unfinished = target.with_suffix(".unfinished")
    _run([compiler, "-shared", "-o", str(unfinished), *objects])
    unfinished.rename(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


class EmulatedDevice(Device):
    """A CUDA device that is not there: tensors are the CPU's, and there is one stream."""

    def current(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def stream(self) -> int:
        return 0


def device(multiprocessors: int = 8, shared_bytes: int = 100_000, cluster: int = 4) -> EmulatedDevice:
    return EmulatedDevice(module(), -1, (multiprocessors, shared_bytes, cluster))
