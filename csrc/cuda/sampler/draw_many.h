// Drawing a level from more logits than the lanes of a warp have registers for, by inverse CDF in float64.
//
// A lane has a run of levels, read from L2 each time: for the largest logit, the sum, and the level. That is 3 reads
// and 2 exponentials of float64 for each level, spread over 32 lanes; with `top_k` 32 more reads decide the bits of the
// k-th largest logit.
#pragma once

#include "cuda/sampler/block.h"

namespace gk::cuda {

// Numbers as whole numbers of the same order; NaN is the largest.
inline __device__ uint32_t ordered(float x) {
  const uint32_t bits = float_as_word(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
inline __device__ float from_ordered(uint32_t x) { return word_as_float(x >> 31 ? x & 0x7fffffffu : ~x); }

// A function of its own: its registers would be too many beside the interpreter's.
GK_NOINLINE inline __device__ double exact_exponential(double x) { return exp(x); }

__device__ __forceinline__ int sum_over_warp(int own) {
#pragma unroll
  for (int bit = 1; bit < WARP; bit *= 2) own += __shfl_xor_sync(ALL_LANES, own, bit);
  return own;
}

// The level of a warp, or NO_LEVEL, the same in every lane.
GK_NOINLINE inline __device__ int draw_level_of_many(const float* logits, int levels, int lane, double u,
                                                     double temperature, int top_k) {
  float highest = -INFINITY;
  bool sound = true;
  for (int i = lane; i < levels; i += WARP) {
    highest = fmaxf(highest, logits[i]);
    sound = sound && logits[i] < INFINITY;
  }
#pragma unroll
  for (int bit = 1; bit < WARP; bit *= 2) highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, bit));
  if (__ballot_sync(ALL_LANES, !sound || highest == -INFINITY)) return NO_LEVEL;

  uint32_t least = 0;
  if (top_k > 0 && top_k < levels) {
#pragma unroll 1
    for (int bit = 31; bit >= 0; --bit) {
      const uint32_t candidate = least | 1u << bit;
      int count = 0;
      for (int i = lane; i < levels; i += WARP) count += ordered(logits[i]) >= candidate;
      if (sum_over_warp(count) >= top_k) least = candidate;
    }
  }
  const float smallest = least ? from_ordered(least) : -INFINITY;

  const int each = ceil_div(levels, WARP), first = lane * each;
  const int last = first + each < levels ? first + each : levels;
  const auto weight = [&](int i) {
    if (logits[i] < smallest) return 0.0;
    return exact_exponential((static_cast<double>(logits[i]) - highest) / temperature);
  };
  double sum = 0.0;
  for (int i = first; i < last; ++i) sum += weight(i);
  double up_to = sum;  // of all lanes up to this one
#pragma unroll
  for (int distance = 1; distance < WARP; distance *= 2) {
    const double before = __shfl_sync(ALL_LANES, up_to, lane - distance);
    if (lane >= distance) up_to += before;
  }
  const double wanted = u * __shfl_sync(ALL_LANES, up_to, WARP - 1);
  double cdf = __shfl_sync(ALL_LANES, up_to, lane - 1);
  if (lane == 0) cdf = 0.0;
  int below = 0;
  for (int i = first; i < last; ++i) {
    cdf += weight(i);
    below += cdf <= wanted;
  }
  below = sum_over_warp(below);
  return below < levels ? below : levels - 1;
}

}  // namespace gk::cuda
