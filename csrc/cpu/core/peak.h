// Peak rates of this machine: the denominators of every roofline share that the benchmarks print.
#pragma once

#include <cstddef>

#include "cpu/core/isa.h"

// float32 multiply-adds of the active instruction set on `threads` threads, in 1e9 operations per second
// (a multiply-add counts as two). The best burst of about 20 ms within `seconds`.
GK_DECLARE_PER_ISA(double, fma_peak_gflops, (int threads, double seconds))

// Copying `bytes` of memory on `threads` threads, in 1e9 bytes read plus written per second. The best pass
// within `seconds`. Take `bytes` several times the last-level cache. Returns 0 when there is no memory for it.
GK_DECLARE_PER_ISA(double, copy_bandwidth_gbs, (int threads, double seconds, std::size_t bytes))

// The number of threads that a parallel region asked for `threads` really gets.
GK_DECLARE_PER_ISA(int, openmp_team_size, (int threads))
