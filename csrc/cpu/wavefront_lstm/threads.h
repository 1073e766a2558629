// The barrier behind a front that threads share. OpenMP's own spins for milliseconds before it sleeps: where another
// process holds a core, each of some hundred fronts would then wait out a time slice (measured: 240 ms instead of 1).
// This one spins about as long as a front takes, then sleeps for ever longer moments, which frees its core for the
// thread that it waits for.
#pragma once

#include <time.h>

#include "cpu/core/simd.h"

namespace gk::GK_ISA {

class FrontBarrier {
 public:
  // To be called by all of `threads` threads.
  void wait(int64_t threads) {
    const int generation = __atomic_load_n(&generation_, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == threads) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&generation_, generation + 1, __ATOMIC_RELEASE);
      return;
    }
    int64_t tries = 0;
    timespec moment{0, 20000};
    while (__atomic_load_n(&generation_, __ATOMIC_ACQUIRE) == generation) {
      if (++tries < SPINS) {
        pause();
      } else {
        nanosleep(&moment, nullptr);
        if (moment.tv_nsec < 1000000) moment.tv_nsec *= 2;
      }
    }
  }

 private:
  static constexpr int64_t SPINS = 2000;  // 20 to 100 microseconds
  static void pause() {
#if GK_X86_64
    __builtin_ia32_pause();
#endif
  }

  int64_t arrived_ = 0;
  int generation_ = 0;
};

}  // namespace gk::GK_ISA
