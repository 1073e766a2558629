"""The Triton kernels' tests in Triton's interpreter, and their compilation, for machines without a GPU."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = [
    "test_masked_conv_triton.py",
    "test_masked_conv_gated_triton.py",
    "test_conv_bn_act_triton.py",
    "test_instance_norm_triton.py",
    "test_softmax_nll_triton.py",
]

PROBE = """
import torch, triton, triton.language as tl

@triton.jit
def product(a, N: tl.constexpr):
    at = a + tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(at, tl.dot(tl.load(at), tl.load(at)))

a = torch.eye(16)
product[(1,)](a, N=16)
assert a.equal(torch.eye(16))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    # Plugins of pytest take seconds to import, and these tests use none.
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    probe = tmp_path_factory.mktemp("probe") / "probe.py"  # Triton reads a kernel's source from its file
    probe.write_text(PROBE)
    done = subprocess.run([sys.executable, probe], env=environment, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this Triton's interpreter fails on a plain tl.dot: {done.stderr.strip().splitlines()[-1]}")
    return environment


def test_the_tests_of_the_triton_kernels_pass_in_the_interpreter(environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / "ops" / f) for f in FILES)]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 90, done.stdout


def test_the_kernels_compile_for_a_gpu_that_is_not_here():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, HERE / "helpers/compile_for_gpu.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(("conv_kernel", "weight_gradient_kernel"))]
    assert len(lines) == 6
    assert done.stdout.count("atomics=0") == len(done.stdout.splitlines()), "sums depend on the order of programs"
    for line in lines:
        assert "wgmma=0" not in line, "the tensor cores of an H100 are not used"
        assert "cp.async=0" not in line, "loads do not overlap with products"
