"""`import genkernels` works whatever is missing, and says what that is."""

import pytest
from helpers.fresh_process import run_fresh

import genkernels
from genkernels import backends

# Makes `import genkernels._C` fail as it does after an installation without a compiler.
HIDE_NATIVE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "genkernels._C":
            raise ImportError("hidden for a test")

sys.meta_path.insert(0, Hide())
"""


def test_every_backend_is_listed_and_every_missing_one_says_why():
    found = genkernels.available_backends()
    assert list(found) == ["reference", "cpu", "triton", "cuda"]
    assert found["reference"].available
    for name, backend in found.items():
        assert backend.name == name
        assert backend.reason


def test_without_the_native_extension_the_package_imports_and_says_why():
    printed = run_fresh(
        HIDE_NATIVE
        + """
import genkernels
from genkernels import backends
found = genkernels.available_backends()
print(found["reference"].available, found["cpu"].available, found["cuda"].available)
print(found["cpu"].reason)
print(backends.native(), genkernels.build_info()["native"], genkernels.build_info()["native_error"])
try:
    backends.require_native()
except ImportError as error:
    print(error, "|", repr(error.__cause__))
"""
    )
    flags, reason, info, raised = printed.splitlines()
    assert flags == "True False False"
    assert "hidden for a test" in reason
    assert info == f"None None {reason}"
    assert raised == f"{reason} | ImportError('hidden for a test')"


def test_a_damaged_native_extension_is_reported_and_not_raised(tmp_path):
    (tmp_path / "broken.so").write_bytes(b"not a shared library")
    printed = run_fresh(
        f"""
import importlib.machinery, importlib.util, sys

class Damage:
    def find_spec(self, name, path=None, target=None):
        if name == "genkernels._C":
            loader = importlib.machinery.ExtensionFileLoader(name, {str(tmp_path / "broken.so")!r})
            return importlib.util.spec_from_loader(name, loader)

sys.meta_path.insert(0, Damage())
import genkernels
print(genkernels.available_backends()["cpu"])
"""
    )
    assert "available=False" in printed
    assert "broken.so" in printed


def test_importing_touches_neither_triton_nor_a_gpu():
    printed = run_fresh(
        """
        import sys, torch
        loaded_by_torch = "triton" in sys.modules
        import genkernels
        print(loaded_by_torch, "triton" in sys.modules, torch.cuda.is_initialized())
        """
    )
    loaded_by_torch, loaded, initialised = printed.split()
    assert loaded == loaded_by_torch
    assert initialised == "False"


def test_build_info_names_version_compiler_and_cuda():
    info = genkernels.build_info()
    native = info["native"]
    assert info["version"] == native["version"] == genkernels.__version__
    assert native["compiler"]
    assert native["openmp"]
    assert native["cuda"]["compiled"] or native["cuda"]["reason"]
    if native["cuda"]["compiled"]:
        assert native["cuda"]["architectures"]
        assert native["cuda"]["compiler"][0].isdigit()


def test_asking_for_cuda_devices_never_raises():
    native = backends.require_native()
    if not native.build_info()["cuda"]["compiled"]:
        pytest.skip("built without the CUDA part")
    status = native.cuda_device_status()
    assert len(status["compute_capabilities"]) == status["device_count"]
    assert (status["device_count"] == 0) == bool(status["reason"])


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("80-real 90-real 90-virtual", 75, False),
        ("80-real 90-real 90-virtual", 80, True),
        ("80-real 90-real 90-virtual", 89, True),
        ("80-real 90-real 90-virtual", 120, True),
        ("86-real", 80, False),
        ("80-real", 90, False),
        ("90a-real", 90, True),
        ("90a-real 90a-virtual", 100, False),
        ("100f-real", 103, True),
        ("100f-real", 120, False),
    ],
)
def test_a_gpu_runs_its_own_major_version_and_older_ptx(architectures, capability, runs):
    assert backends._runs_on(architectures.split(), capability) is runs
