"""Backends of this machine, and the reason when one cannot run.

Four backends exist: `reference` (plain PyTorch, always there), `cpu` (the native extension), `triton` and
`cuda` (a GPU). Before somebody asks or uses a GPU, nothing is asked of one and Triton is not imported. A native
extension that is missing or broken is no error here: the import error is kept, `available_backends()` shows it, and
`require_native()` raises it at the first explicit use.
"""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

# Before the native extension: its OpenMP symbols then resolve to the runtime that torch has loaded, so both
# share one thread pool and obey torch.set_num_threads.
import torch

from .version import __version__

_native: ModuleType | None = None
_native_error: Exception | None = None
try:
    from . import _C as _native
except Exception as error:  # of any kind: a broken extension must not fail the import of the package
    _native_error = error


_TRITON_IS_NOT_INSTALLED = "Triton is not installed (pip install genkernels[gpu])"


@dataclass(frozen=True)
class Backend:
    """One way to run the operations.

    Attributes:
        name: `reference`, `cpu`, `triton` or `cuda`.
        available: whether it can run here and now.
        reason: why it cannot, or, when it can, what it runs on.
    """

    name: str
    available: bool
    reason: str


def native() -> ModuleType | None:
    """The native extension `genkernels._C`, or None where it cannot be loaded."""
    return _native


def require_native() -> ModuleType:
    """The native extension `genkernels._C`.

    Raises:
        ImportError: with the reason, where it cannot be loaded.
    """
    if _native is None:
        raise ImportError(_native_reason()) from _native_error
    return _native


def available_backends() -> dict[str, Backend]:
    """Every backend by name, with whether it can run here and why not.

    Asks for GPUs, so it initialises CUDA where torch's own `torch.cuda.is_available()` does.
    """
    probes = {"reference": _probe_reference, "cpu": _probe_cpu, "triton": _probe_triton, "cuda": _probe_cuda}
    return {name: Backend(name, *probe()) for name, probe in probes.items()}


def build_info() -> dict[str, Any]:
    """What this installation was built with: versions, compiler, flags, instruction sets, the CUDA part.

    Returns:
        `version`, `python`, `torch` and `platform` as text; `native` with the extension's own account, or
        None; `native_error` with the reason in the latter case, or None. Needs no GPU and asks none.
    """
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "native": None if _native is None else _native.build_info(),
        "native_error": _native_reason() if _native is None else None,
    }


def _native_reason() -> str:
    error = f"{type(_native_error).__name__}: {_native_error}"
    return f"the native extension genkernels._C cannot be loaded ({error}); install genkernels again"


def _probe_reference() -> tuple[bool, str]:
    return True, f"PyTorch {torch.__version__}"


def _probe_cpu() -> tuple[bool, str]:
    if _native is None:
        return False, _native_reason()
    try:
        return True, f"{_native.active_isa()} (this machine has {_native.detected_isa()})"
    except ValueError as error:  # GENKERNELS_MAX_ISA names no instruction set
        return False, str(error)


def _probe_gpu() -> str | None:
    """Why PyTorch has no CUDA GPU, or None when it has one."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA GPU"
    return None


@lru_cache
def why_no_triton(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on this GPU, or None where they can."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        found = f"{capability[0]}.{capability[1]}"
        return f"this GPU has compute capability {found}, the Triton kernels need 8.0 (bfloat16 and TF32)"
    if importlib.util.find_spec("triton") is None:
        return _TRITON_IS_NOT_INSTALLED
    try:
        importlib.import_module("triton")
    except Exception as error:  # of any kind: the reference runs, and this is what the user is told
        return f"Triton cannot be imported ({type(error).__name__}: {error})"
    return None


def _probe_triton() -> tuple[bool, str]:
    if importlib.util.find_spec("triton") is None:
        return False, _TRITON_IS_NOT_INSTALLED
    missing = _probe_gpu()
    if missing:
        return False, missing
    missing = why_no_triton(torch.device("cuda", torch.cuda.current_device()))
    return missing is None, missing or torch.cuda.get_device_name()


def _probe_cuda() -> tuple[bool, str]:
    if _native is None:
        return False, _native_reason()
    built = _native.build_info()["cuda"]
    if not built["compiled"]:
        return False, f"built without the CUDA kernels ({built['reason']})"
    missing = _probe_gpu()
    if missing:
        return False, missing
    status = _native.cuda_device_status()
    if status["device_count"] == 0:
        return False, f"the CUDA driver says: {status['reason']}"
    capability = status["compute_capabilities"][torch.cuda.current_device()]
    if not _runs_on(built["architectures"].split(), capability):
        return False, (
            f"this GPU has compute capability {capability // 10}.{capability % 10}, the CUDA kernels are "
            f"built for {built['architectures']}; set GENKERNELS_CUDA_ARCHS and install again"
        )
    return True, torch.cuda.get_device_name()


def _runs_on(architectures: list[str], capability: int) -> bool:
    """Whether kernels built for these ("80-real", "90a-real", "90-virtual") run on a GPU of capability 90.

    Machine code runs on its own major version from its own minor version on; PTX on everything newer; code
    with the suffix `a` on exactly its own GPU, and with `f` on its own family.
    """
    for architecture in architectures:
        name, kind = architecture.split("-")
        number = int(name.rstrip("af"))
        same_family = capability // 10 == number // 10 and capability >= number
        if name.endswith("a"):
            runs = capability == number
        elif name.endswith("f") or kind == "real":
            runs = same_family
        else:
            runs = capability >= number
        if runs:
            return True
    return False
