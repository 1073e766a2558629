// Number of threads that are worth waking for a call.
#pragma once

#include "cpu/core/simd.h"

namespace gk::GK_ISA {

// Waking a thread costs more than it brings below this many multiply-adds, or values of a pass that is bound by memory.
constexpr int64_t PRODUCTS_PER_THREAD = 100000, VALUES_PER_THREAD = 32768;

inline int useful_threads(int64_t work, int64_t work_per_thread, int threads) {
  return static_cast<int>(max64(1, min64(threads, work / work_per_thread)));
}

}  // namespace gk::GK_ISA
