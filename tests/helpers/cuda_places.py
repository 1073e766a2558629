"""Places where the CUDA kernels are tested: emulated on this machine's processor, and a GPU where there is one."""

import dataclasses
from types import ModuleType

import pytest
import torch

from genkernels import backends
from genkernels.ops.core.cuda_device import Device, device_of
from helpers import cuda_emulated

_GPU = backends.available_backends()["cuda"]
_GPU_MARKS = [pytest.mark.gpu, pytest.mark.skipif(not _GPU.available, reason=f"needs a CUDA GPU: {_GPU.reason}")]

PLACES = ["emulated", pytest.param("gpu", marks=_GPU_MARKS)]  # parameters of a fixture that makes a Place


def on_gpu(test):
    """Marks a test of what a GPU alone does."""
    for mark in _GPU_MARKS:
        test = mark(test)
    return test


@dataclasses.dataclass(frozen=True)
class Place:
    """Where kernels run, and how large the device is said to be.

    Attributes:
        name: "emulated" or "gpu".
        patch: undone when the test ends.
        launcher: the module that launches the kernels, on what its ``device_of`` gives.
    """

    name: str
    patch: pytest.MonkeyPatch
    launcher: ModuleType

    @property
    def tensors(self) -> str:
        return "cpu" if self.name == "emulated" else "cuda"

    def pretend(self, limits: tuple[int, int, int]) -> Device:
        """The device of these :attr:`Device.limits`, or of a GPU's own where they are smaller."""
        if self.name == "emulated":
            device: Device = cuda_emulated.device(*limits)
        else:
            real = device_of(torch.empty(0, device="cuda"))
            device = Device(real.native, real.index, tuple(map(min, limits, real.limits)))
        self.patch.setattr(self.launcher, "device_of", lambda t: device)
        return device
