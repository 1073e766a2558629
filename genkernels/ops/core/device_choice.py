"""Which kernels compute what a tensor takes part in: the native CPU kernels, Triton's, or the reference in PyTorch."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from torch import Tensor

from ... import backends
from ...triton_conv import availability
from .dtypes import STORAGE
from .implementations import last


def why_no_cpu_kernel(x: Tensor) -> str | None:
    """The reason why the native CPU kernels cannot take x, or None where they can."""
    if backends.native() is None:
        return "the native extension is not loaded"
    return None if x.dtype in STORAGE else f"no native kernel for {x.dtype}"


def why_no_kernel(x: Tensor) -> str | None:
    """The reason why neither the CPU's kernels nor Triton's take x, or None."""
    if not (x.is_cpu or x.is_cuda):
        return f"no kernel for {x.device.type}"
    return why_no_cpu_kernel(x) if x.is_cpu else availability.why_not(x)


def kernels_for(x: Tensor, cpu: ModuleType, reference: ModuleType) -> ModuleType:
    """Of an operation's cpu.py, gpu.py and reference.py the one that takes x."""
    if why_no_kernel(x) is not None:
        return reference
    return cpu if x.is_cpu else import_module(".gpu", cpu.__package__)  # here, since it imports Triton


def description(x: Tensor, why_kernel: str) -> tuple[str, str]:
    """What has taken x, and why, for ``GENKERNELS_VERBOSE``; ``why_kernel`` is the reason where it is a kernel."""
    reason = why_no_kernel(x)
    if reason is not None:
        return "the reference in plain PyTorch", reason
    if not x.is_cpu:
        return "the Triton kernel", why_kernel
    return f"the CPU kernel {last()}" if x.numel() else "the CPU kernel", why_kernel
