"""The emulator of the CUDA execution model runs what is right, and catches what hardware would not forgive."""

import math

import numpy as np
import pytest
import torch
from helpers import cuda_emulated


@pytest.fixture(scope="module")
def emulated():
    return cuda_emulated.module()


# --- what is right ---


def test_a_barrier_lets_threads_exchange_numbers(emulated):
    assert emulated.run_kernel("rotate") == [(i + 1) % 64 for i in range(64)]


def test_warp_operations_see_all_lanes_and_an_atomic_all_threads(emulated):
    *sums, counted = emulated.run_kernel("warp_operations")
    assert sums == [sum(range(32)) + 16] * 32 + [sum(range(32, 64)) + 16] * 32
    assert counted == 64


def test_blocks_of_a_cluster_write_to_each_other(emulated):
    assert emulated.run_kernel("exchange") == [100 + i for i in range(64)] + list(range(64))


def test_every_class_is_local_to_its_module(emulated):
    # A genkernels._C with CUDA registers the same classes: the second of the two to be loaded would be refused.
    classes = [value for value in vars(emulated).values() if isinstance(value, type)]
    assert len(classes) >= 5
    for each in classes:
        assert any(name.startswith("__pybind11_module_local") for name in vars(each)), each


# --- planted faults ---

FAULTS = {
    "race": r"race at byte \d+ of shared memory: (written while .* read|read while .* wrote) it, with no barrier",
    "write_over_a_read": r"race at byte \d+ of shared memory: (written while .* read|read while .* wrote) it",
    "unsynchronised_warp": r"race at byte \d+ of shared memory",
    "exchange_with_the_block_s_barrier": r"race at byte \d+ .* thread \d+ of block 1 wrote it",
    "out_of_bounds": r"thread 63 of block 0: shared memory out of bounds: bytes 256 to 260 of a region of 256",
    "larger_than_the_launch": r"out of bounds: the launch has 256 bytes, not 260",
    "misaligned": r"misaligned access of 8 bytes at byte 4",
    "uninitialised": r"thread 4 of block 0: uninitialised: byte 20 of shared memory is read",
    "missed_barrier": r"not reached by all threads: .* waits at __syncthreads .*thread 40 of block 0 has returned",
    "two_barriers": r"__syncthreads in line \d+ while others wait in line \d+",
    "missed_cluster_barrier": r"not reached by all threads: .* waits at cluster_sync .* of block 1 has returned",
    "divergent_shuffle": r"divergent warp: __shfl_xor_sync in line \d+ while other lanes are at __shfl_xor_sync",
    "missing_lane": r"not reached by all threads: .* waits at __shfl_sync .*thread 3 of block 0 has returned",
    "partial_mask": r"full warps alone",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_and_named(emulated, name):
    with pytest.raises(RuntimeError, match=FAULTS[name]):
        emulated.run_kernel(name)


def test_a_fault_leaves_nothing_behind(emulated):
    with pytest.raises(RuntimeError):
        emulated.run_kernel("missed_barrier")
    test_a_barrier_lets_threads_exchange_numbers(emulated)


# --- numbers ---

VALUES = [0.0, 1.0, -1.5, 1 / 3, 1e-3, 65504.0, 65519.9, 65520.0, 1e5, 1e38, math.inf, -math.inf]
VALUES += [6e-8, 2e-8, 3e-5, -6.1e-5]  # subnormal in float16, or nearly


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_are_rounded_to_16_bits_as_pytorch_does(emulated, dtype):
    values = torch.cat([torch.tensor(VALUES), torch.randn(500, generator=torch.Generator().manual_seed(0)) * 100])
    for value in values.tolist():
        rounded = torch.tensor(value).to(dtype).float().item()
        assert emulated.round_trip(str(dtype).removeprefix("torch."), value) == rounded, value
    assert math.isnan(emulated.round_trip(str(dtype).removeprefix("torch."), math.nan))


def test_tf32_keeps_eleven_bits(emulated):
    assert emulated.round_trip("tf32", 1 + 2**-10) == 1 + 2**-10
    assert emulated.round_trip("tf32", 1 + 2**-11) == 1 + 2**-10
    assert emulated.round_trip("tf32", 1 + 2**-12) == 1


@pytest.mark.parametrize(
    ("math_name", "numbers", "tolerance"),
    [("bfloat16", 16, 2**-8), ("float16", 16, 2**-11), ("tf32", 8, 2**-11), ("float32", 8, 2**-21)],
)
def test_the_matrix_instruction_multiplies_what_its_lanes_hold(emulated, math_name, numbers, tolerance):
    generator = np.random.default_rng(0)
    whole = generator.integers(-8, 9, (24, numbers)).astype(float)
    got = np.reshape(emulated.run_product(math_name, whole[:16].ravel().tolist(), whole[16:].ravel().tolist()), (16, 8))
    np.testing.assert_array_equal(got, whole[:16] @ whole[16:].T)
    some = generator.standard_normal((24, numbers)).astype(np.float32)
    got = np.reshape(emulated.run_product(math_name, some[:16].ravel().tolist(), some[16:].ravel().tolist()), (16, 8))
    a, b = some[:16].astype(float), some[16:].astype(float)
    assert (np.abs(got - a @ b.T) <= 2 * tolerance * (np.abs(a) @ np.abs(b).T)).all()
