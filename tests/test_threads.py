"""Native code shares torch's OpenMP runtime and thread pool, and obeys torch.set_num_threads.

Two runtimes in one process would mean two pools fighting for the cores, and a setting that only one hears.
"""

import sys

import pytest
from helpers.fresh_process import run_fresh

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")


def test_one_openmp_runtime_is_loaded():
    printed = run_fresh(
        """
        import re
        import genkernels
        from genkernels import _C
        _C.openmp_team_size(2)
        maps = open("/proc/self/maps").read()
        print(*sorted(set(re.findall(r"/\\S*lib(?:gomp|omp|iomp5)[^/\\s]*", maps))), sep="\\n")
        """
    )
    assert len(printed.splitlines()) == 1, printed


def test_native_code_obeys_torch_set_num_threads():
    printed = run_fresh(
        """
        import torch
        from genkernels import _C
        for threads in (1, 3, 2, 1):
            torch.set_num_threads(threads)
            print(_C.openmp_max_threads(), _C.openmp_team_size(torch.get_num_threads()))
        """
    )
    assert printed.splitlines() == ["1 1", "3 3", "2 2", "1 1"]


def test_one_thread_starts_no_other():
    printed = run_fresh(
        """
        import os, torch
        from genkernels import _C
        torch.set_num_threads(1)
        before = len(os.listdir("/proc/self/task"))
        _C.fma_peak_gflops(torch.get_num_threads(), 0.05)
        print(len(os.listdir("/proc/self/task")) - before)
        """
    )
    assert printed == "0"


def test_native_code_runs_on_the_threads_torch_has_started():
    printed = run_fresh(
        """
        import os, torch
        from genkernels import _C
        torch.set_num_threads(3)
        alone = len(os.listdir("/proc/self/task"))
        torch.rand(1 << 22).exp_()  # large enough for every thread to take part
        warm = len(os.listdir("/proc/self/task"))
        _C.fma_peak_gflops(torch.get_num_threads(), 0.05)
        _C.copy_bandwidth_gbs(torch.get_num_threads(), 0.05, 1 << 24)
        print(warm - alone, len(os.listdir("/proc/self/task")) - warm)
        """
    )
    started_by_torch, started_by_native_code = map(int, printed.split())
    assert started_by_torch >= 2
    assert started_by_native_code == 0


def test_the_gil_is_released_while_native_code_runs():
    printed = run_fresh(
        """
        import threading, time
        from genkernels import _C
        ticks, done = [], threading.Event()
        def tick():
            while not done.is_set():
                ticks.append(time.perf_counter())
                time.sleep(0.005)
        thread = threading.Thread(target=tick)
        thread.start()
        start = time.perf_counter()
        _C.fma_peak_gflops(1, 0.5)
        end = time.perf_counter()
        done.set()
        thread.join()
        print(sum(start < t < end for t in ticks))
        """
    )
    assert int(printed) >= 5
