// Measurement of the machine's float32 peak and its memory bandwidth.
//
// Multiply-add peak: each thread keeps kChains independent accumulators in registers and touches no memory.
// A multiply-add takes 4 cycles and a core starts two per cycle, so 8 chains hide the latency and 12 leave a
// margin; 12 + the 2 constants still fit the 16 registers of SSE2 and AVX2. Without a fused instruction
// (baseline on x86-64) a link of a chain is a multiply and an add, and the chains must hide both.
// Bandwidth: each thread copies its own slice; the C library streams slices larger than the cache past it.
#include "cpu/core/peak.h"

#include <omp.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace gk::GK_ISA {

namespace {

constexpr int kLanes = GK_ISA_LEVEL == 2 ? 16 : GK_ISA_LEVEL == 1 ? 8 : 4;
constexpr int kChains = 12;

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));

// `x <- x * scale + shift` converges to 1, so no value overflows or becomes denormal and slow. No chain may
// start at 1: the compiler would see that it never changes and drop it, and the peak would come out too high.
float multiply_add_burst(std::int64_t links) {
  Vector chain[kChains];
  Vector scale, shift;
  for (int lane = 0; lane < kLanes; ++lane) {
    scale[lane] = 0.75f;
    shift[lane] = 0.25f;
    for (int i = 0; i < kChains; ++i) chain[i][lane] = static_cast<float>(i + 2);
  }
  for (std::int64_t n = 0; n < links; ++n) {
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * scale + shift;
  }
  float sum = 0;  // used, so that the compiler keeps every chain
  for (int i = 0; i < kChains; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) sum += chain[i][lane];
  }
  return sum;
}

}  // namespace

double fma_peak_gflops(int threads, double seconds) {
  const std::int64_t links = 4000000;  // 10 to 25 ms at 2 to 5 GHz
  const double end = omp_get_wtime() + seconds;
  double best = 0;
  float sum = 0;
  do {
    int team = 1;
    const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
      sum += multiply_add_burst(links);
#pragma omp single nowait
      team = omp_get_num_threads();
    }
    const double elapsed = omp_get_wtime() - start;
    const double gflops = 2e-9 * kLanes * kChains * static_cast<double>(links) * team / elapsed;
    if (gflops > best) best = gflops;
  } while (omp_get_wtime() < end);
  return sum > 0 ? best : 0;  // the chains converge to 1: the sum is always positive
}

double copy_bandwidth_gbs(int threads, double seconds, std::size_t bytes) {
  char* from = static_cast<char*>(std::malloc(bytes));
  char* to = static_cast<char*>(std::malloc(bytes));
  double best = 0;
  if (from && to) {
    // The first, untimed pass also places each page near the thread that will use it.
    double end = 0;
    for (int pass = 0; pass < 2 || omp_get_wtime() < end; ++pass) {
      const double start = omp_get_wtime();
      if (pass == 1) end = start + seconds;
#pragma omp parallel num_threads(threads)
      {
        const std::size_t team = omp_get_num_threads(), me = omp_get_thread_num();
        const std::size_t begin = bytes / team * me;
        const std::size_t size = me + 1 == team ? bytes - begin : bytes / team;
        if (pass == 0) std::memset(from + begin, 1, size);
        std::memcpy(to + begin, from + begin, size);
      }
      const double gbs = 2e-9 * static_cast<double>(bytes) / (omp_get_wtime() - start);
      if (pass > 0 && gbs > best) best = gbs;
    }
  }
  std::free(from);
  std::free(to);
  return best;
}

int openmp_team_size(int threads) {
  int team = 1;
#pragma omp parallel num_threads(threads)
  {
#pragma omp single nowait
    team = omp_get_num_threads();
  }
  return team;
}

}  // namespace gk::GK_ISA
