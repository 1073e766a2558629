"""Builds genkernels._C with CMake and Ninja.

Everything that can go wrong for reasons of the machine (no compiler, a wrong environment variable) is found
here and told in one sentence, before CMake has a chance to tell it in fifty lines.

Environment variables: GENKERNELS_CUDA (0, 1 or auto), GENKERNELS_CUDA_ARCHS (else TORCH_CUDA_ARCH_LIST),
MAX_JOBS, and the usual CXX, CUDACXX, CUDA_HOME.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Runs on every GPU since 2020: machine code for 8.x and 9.0, and PTX that the driver compiles for newer ones.
# A short list on purpose, because each entry compiles every kernel again.
DEFAULT_CUDA_ARCHS = "8.0;9.0"
BYTES_PER_JOB = 3 * 2**29  # 1.5 GiB: what nvcc and pybind11 sources take at most


class BuildError(SystemExit):
    """Ends the build with a sentence instead of a traceback."""


def fail(message: str) -> NoReturn:
    raise BuildError(f"genkernels: {message}")


# ---- parallel jobs ----


def available_memory() -> int | None:
    """Bytes that can be used without swapping, also inside a container; None where nobody says."""
    limits = []
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        limits += [int(match.group(1)) * 1024] if match else []
        group = Path("/sys/fs/cgroup")
        limits += [int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())]
    except (OSError, ValueError):  # no /proc, no control group, or a group whose limit is "max"
        pass
    return min(limits, default=None)


def parallel_jobs(environ: dict[str, str], cores: int, memory: int | None) -> int:
    """How many compilers may run at once: MAX_JOBS, else the cores as far as memory carries them."""
    wanted = environ.get("MAX_JOBS", "").strip()
    if wanted:
        if not wanted.isdecimal() or int(wanted) < 1:
            fail(f"environment variable MAX_JOBS: expected a whole number of at least 1, got {wanted!r}")
        return int(wanted)
    return max(1, cores if memory is None else min(cores, memory // BYTES_PER_JOB))


# ---- C++ ----


def check_cxx(environ: dict[str, str]) -> None:
    """Ends the build where the compiler that CMake is going to take, CXX or else from PATH, is missing or broken."""
    remedy = "install one, g++ or clang++ say, or let the environment variable CXX name it."
    candidates = [environ["CXX"]] if environ.get("CXX") else ["c++", "g++", "clang++"]
    commands = [shlex.split(candidate) for candidate in candidates]  # CXX may be "ccache g++"
    path = environ.get("PATH", os.defpath)
    command = next((words for words in commands if words and shutil.which(words[0], path=path)), None)
    if command is None:
        fail(f"no C++ compiler was found ({', '.join(candidates)}); {remedy}")
    try:
        probe = [*command, "-x", "c++", "-fsyntax-only", "-"]
        subprocess.run(probe, input="#include <vector>\n", capture_output=True, text=True, check=True, env=environ)
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f"the C++ compiler {shlex.join(command)} does not compile ({error}); {remedy}")


# ---- CUDA ----


def find_nvcc(environ: dict[str, str]) -> str | None:
    """The CUDA compiler, from CUDACXX, CUDA_HOME, CUDA_PATH, the search path or the usual place."""
    if environ.get("CUDACXX"):  # names the compiler itself, so no other one may take its place
        candidates = [environ["CUDACXX"]]
    else:
        candidates = [f"{environ[name]}/bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
        candidates += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        found = shutil.which(candidate, path=environ.get("PATH", os.defpath))
        if found:
            return found
    return None


def cuda_choice(environ: dict[str, str], nvcc: str | None) -> tuple[bool, str]:
    """Whether the CUDA part is built, and the reason when it is not."""
    wanted = environ.get("GENKERNELS_CUDA", "").strip().lower() or "auto"
    if wanted not in ("0", "1", "auto"):
        fail(f"environment variable GENKERNELS_CUDA: expected 0, 1 or auto, got {wanted!r}")
    if wanted == "0":
        return False, "GENKERNELS_CUDA=0 was set"
    if nvcc is None:
        if wanted == "1":
            fail(
                "GENKERNELS_CUDA=1 asks for the CUDA kernels, but no nvcc was found in CUDACXX, CUDA_HOME, "
                "PATH or /usr/local/cuda; install the CUDA toolkit or point CUDA_HOME at it."
            )
        return False, "no nvcc was found"
    return True, ""


def cuda_archs(environ: dict[str, str], supported: set[int] | None = None) -> list[str]:
    """CMake's architecture list: machine code for each entry and PTX for the newest.

    Accepts "8.0;9.0", "80 90", "9.0a" and "9.0+PTX", from GENKERNELS_CUDA_ARCHS, else TORCH_CUDA_ARCH_LIST.
    `supported` holds what the compiler can do, as 90 for 9.0.
    """
    names = ("GENKERNELS_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST")
    variable = next((name for name in names if environ.get(name, "").strip()), None)
    text = environ[variable] if variable else DEFAULT_CUDA_ARCHS
    source = f"environment variable {variable}" if variable else "the default list of CUDA architectures"
    real: dict[str, int] = {}  # "90a" -> 90
    ptx: set[str] = set()
    for entry in [entry for entry in re.split(r"[;,\s]+", text) if entry] or [text]:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?|(\d{1,2})(\d)([af]?)(\+PTX)?", entry, re.IGNORECASE)
        if not match:
            fail(f"{source}: expected entries such as 8.0, 80, 9.0a or 9.0+PTX, got {entry!r} in {text!r}")
        major, minor, letter, with_ptx = match.groups()[:4] if match.group(1) else match.groups()[4:]
        number = 10 * int(major) + int(minor)
        if supported is not None and number not in supported:
            known = ", ".join(f"{n // 10}.{n % 10}" for n in sorted(supported))
            fail(f"{source}: expected architectures that this nvcc compiles for ({known}), got {entry!r}")
        name = f"{number}{letter.lower()}"
        real[name] = number
        if with_ptx:
            ptx.add(name)
    portable = [name for name in real if name.isdecimal()]  # PTX of 9.0a runs on 9.0 alone: no fallback
    if not ptx and portable:
        ptx.add(max(portable, key=int))
    ordered = sorted(real, key=lambda name: (real[name], name))
    return [f"{name}-real" for name in ordered] + [f"{name}-virtual" for name in ordered if name in ptx]


def nvcc_archs(nvcc: str) -> set[int]:
    """What this nvcc compiles for, as {80, 90, ...}."""
    try:
        listing = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f"{nvcc} was found but does not run ({error}); GENKERNELS_CUDA=0 builds without CUDA kernels.")
    return {int(number) for number in re.findall(r"compute_(\d+)", listing)}


# ---- tools ----


def find_tool(name: str, package_dir: str) -> str:
    """A build tool from the Python package of that name (need not be on the search path), else from PATH."""
    try:
        package = __import__(name)
        found = shutil.which(name, path=getattr(package, package_dir))
    except (ImportError, AttributeError):
        found = None
    found = found or shutil.which(name)
    if found is None:
        fail(f"{name} was not found; `pip install {name}`, or build without --no-build-isolation.")
    return found


def compiler_stamp(environ: dict[str, str], nvcc: str | None) -> str:
    """The choice of compilers, which CMake cannot change in a build folder it has: a change starts anew."""
    return "\n".join([environ.get("CXX", ""), environ.get("CUDAHOSTCXX", ""), nvcc or ""])


class CMakeBuild(build_ext):
    """Configures and builds csrc/ in build/cmake-<python>, then copies the module where setuptools wants it.

    The folder outlives the call, whatever temporary folders pip uses: a second build compiles changes alone.
    """

    def build_extension(self, ext: Extension) -> None:
        environ = dict(os.environ)
        check_cxx(environ)
        nvcc = find_nvcc(environ)
        with_cuda, reason = cuda_choice(environ, nvcc)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = parallel_jobs(environ, cores, available_memory())
        arguments = [
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja', 'BIN_DIR')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={self.pybind11_dir()}",
            f"-DGENKERNELS_VERSION={self.distribution.get_version()}",
            f"-DGENKERNELS_WITH_CUDA={'ON' if with_cuda else 'OFF'}",
            f"-DGENKERNELS_CUDA_REASON={reason}",
            "-DCMAKE_CUDA_ARCHITECTURES=",
        ]
        if with_cuda and nvcc:
            archs = cuda_archs(environ, nvcc_archs(nvcc))
            arguments[-1] += ";".join(archs)
            arguments.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
            print(f"genkernels: with CUDA kernels for {' '.join(archs)} ({nvcc}), {jobs} jobs", flush=True)
        else:
            print(f"genkernels: without CUDA kernels ({reason}), {jobs} jobs", flush=True)

        folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        stamp, text = folder / "compilers.txt", compiler_stamp(environ, nvcc if with_cuda else None)
        if not stamp.exists() or stamp.read_text() != text:
            arguments.append("--fresh")
        cmake = find_tool("cmake", "CMAKE_BIN_DIR")
        self.cmake([cmake, "-S", str(ROOT / "csrc"), "-B", str(folder), *arguments], with_cuda)
        stamp.write_text(text)
        self.cmake([cmake, "--build", str(folder), "--parallel", str(jobs)], with_cuda)

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new file, not the old one overwritten: a running Python may have the old one mapped.
        target.unlink(missing_ok=True)
        shutil.copy2(folder / "_C.so", target)
        shutil.copy2(folder / "compile_commands.json", ROOT / "build")  # for editors

    @staticmethod
    def pybind11_dir() -> str:
        try:
            import pybind11
        except ImportError:
            fail("pybind11 was not found; `pip install pybind11`, or build without --no-build-isolation.")
        return pybind11.get_cmake_dir()

    @staticmethod
    def cmake(command: list[str], with_cuda: bool) -> None:
        if subprocess.run(command).returncode:
            hint = " GENKERNELS_CUDA=0 builds without the CUDA kernels." if with_cuda else ""
            fail(f"the native build failed; the compiler's messages are above.{hint}")


if __name__ == "__main__":
    setup(ext_modules=[Extension("genkernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
