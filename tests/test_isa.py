"""The instruction set is chosen at run time, and GENKERNELS_MAX_ISA forces a lower one."""

import math
import platform

import pytest
from helpers.fresh_process import run_fresh

from genkernels import _C

LEVELS = ["baseline", "avx2", "avx512"]


def test_an_x86_build_holds_every_instruction_set_and_others_hold_the_baseline():
    expected = LEVELS if platform.machine() in ("x86_64", "AMD64") else ["baseline"]
    assert _C.compiled_isas() == expected
    assert _C.build_info()["isas"] == expected


def test_the_best_instruction_set_of_the_machine_is_used_by_default():
    assert run_fresh("from genkernels import _C; print(_C.active_isa())") == _C.detected_isa()


@pytest.mark.parametrize("cap", LEVELS)
def test_max_isa_lowers_the_choice_and_never_raises_it(cap):
    printed = run_fresh(
        """
        from genkernels import _C
        print(_C.active_isa())
        print(_C.fma_peak_gflops(threads=1, seconds=0.01), _C.copy_bandwidth_gbs(1, 0.01, 1 << 20))
        """,
        GENKERNELS_MAX_ISA=cap,
    )
    active, gflops, bandwidth = printed.split()
    assert active == min(cap, _C.detected_isa(), key=LEVELS.index)
    assert float(gflops) > 0
    assert float(bandwidth) > 0


def test_an_unknown_max_isa_is_refused_by_name_and_leaves_the_rest_working():
    printed = run_fresh(
        """
        import genkernels
        from genkernels import _C
        for attempt in range(2):  # the second call must not slip through
            try:
                _C.active_isa()
            except ValueError as error:
                print(error)
        try:
            _C.fma_peak_gflops(1, 0.01)
        except ValueError as error:
            print(error)
        cpu = genkernels.available_backends()["cpu"]
        print(cpu.available, cpu.reason)
        print(genkernels.build_info()["native"]["isas"] == _C.compiled_isas(), _C.detected_isa())
        """,
        GENKERNELS_MAX_ISA="sse9",
    )
    message = "environment variable GENKERNELS_MAX_ISA: expected baseline, avx2 or avx512, got 'sse9'"
    assert printed.splitlines() == [message] * 3 + [f"False {message}", f"True {_C.detected_isa()}"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _C.fma_peak_gflops(0, 0.01), "threads: expected an integer from 1 to 1024, got 0"),
        (lambda: _C.openmp_team_size(1_000_000), "threads: expected an integer from 1 to 1024, got 1000000"),
        (lambda: _C.fma_peak_gflops(1, 0.0), "seconds: expected more than 0 and at most 60, got 0"),
        (lambda: _C.fma_peak_gflops(1, math.nan), "seconds: expected more than 0 and at most 60, got nan"),
        (lambda: _C.copy_bandwidth_gbs(1, 0.01, 0), "bytes: expected an integer of at least 1, got 0"),
        (lambda: _C.openmp_team_size(-1), "threads: expected an integer from 1 to 1024, got -1"),
    ],
)
def test_bad_arguments_are_refused_with_name_expectation_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_bandwidth_buffer_that_does_not_fit_is_a_memory_error():
    with pytest.raises(MemoryError):
        _C.copy_bandwidth_gbs(1, 0.01, 1 << 60)
