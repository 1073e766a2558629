// Division of the work among threads: groups of sequences, slices of a step, and the barrier behind a shared step.
//
// OpenMP's own barrier spins for milliseconds before it sleeps: where another process holds a core, each of some hundred
// steps would then wait out a time slice (measured: 240 ms instead of 1). StepBarrier spins about as long as a step
// takes, then sleeps for ever longer moments, which frees its core for the thread that it waits for.
#pragma once

#include <omp.h>
#include <time.h>

#include "cpu/core/parallel.h"
#include "cpu/wavefront_lstm/steps.h"

namespace gk::GK_ISA::wavefront_lstm {

class StepBarrier {
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

constexpr int64_t SEQUENCES_MAX = 64;  // of one group

// The part of one thread in work that `count` threads do together.
struct ThreadSlice {
  int64_t index, count;
  StepBarrier* barrier = nullptr;
  int64_t begin(int64_t total) const { return total * index / count; }
  int64_t end(int64_t total) const { return total * (index + 1) / count; }
  void wait() const {
    if (count > 1) barrier->wait(count);
  }
};

inline int useful_threads(const WavefrontLSTM& l, int64_t directions, int threads) {
  const int64_t work = directions * l.batch * l.height * l.width * 4 * l.hidden * reductions_of(l);
  return gk::GK_ISA::useful_threads(work, PRODUCTS_PER_THREAD, threads);
}

// Sequences that a thread sweeps together, so many that their steps fill the rows of a product: only then are the
// weights, which stream from L2 or L3 once per product, used often enough.
inline int64_t sequences_of_group(const WavefrontLSTM& l, int64_t directions, int threads) {
  const int64_t cells_per_step = ceil_div(l.height * l.width, steps_of(l).count());
  const int64_t wanted = min64(SEQUENCES_MAX, ceil_div(32, cells_per_step));
  const int64_t sequences = l.batch * directions, own = sequences / threads;
  const int64_t most = max64(own, sequences - own * threads);
  return ceil_div(most, ceil_div(most, wanted));
}

// Calls sweep(first sequence, sequences, slice) for groups of at most `limit` sequences. Each thread sweeps the
// same number of sequences alone; what is left over (fewer than threads) is swept by all of them together, each step split among them.
// To be called by every thread of the team.
template <class Sweep>
GK_INLINE void for_groups(int64_t sequences, int64_t limit, StepBarrier* barrier, const Sweep& sweep) {
  const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
  const int64_t own = sequences / team, left = sequences - own * team;
  const auto groups = [&](int64_t first, int64_t count, const ThreadSlice& slice) {
    const int64_t pieces = ceil_div(count, limit);
    for (int64_t i = 0; i < pieces; ++i) {
      const ThreadSlice piece{i, pieces};
      slice.wait();  // the scratch of the piece before is free
      sweep(first + piece.begin(count), piece.end(count) - piece.begin(count), slice);
    }
  };
  groups(me * own, own, ThreadSlice{0, 1});
  groups(team * own, left, ThreadSlice{me, team, barrier});
}

}  // namespace gk::GK_ISA::wavefront_lstm
