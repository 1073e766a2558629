// Drawing a level from a mixture of discretized logistics, one warp for an image, as
// genkernels/distributions/logistic_mixture.py defines it, in float64. A lane has up to four components; the level is
// found by bisection, with a sum over the lanes at every step: bound by the latency of float64 functions and shuffles.
#pragma once

#include "cuda/sampler/block.h"
#include "sampler_logistic_mixture.h"

namespace gk::cuda {

constexpr int LANE_COMPONENTS = SAMPLER_MAX_COMPONENTS / WARP;

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int bit = 1; bit < WARP; bit *= 2) x += __shfl_xor_sync(ALL_LANES, x, bit);
  return x;
}
__device__ __forceinline__ double warp_max(double x) {
#pragma unroll
  for (int bit = 1; bit < WARP; bit *= 2) {
    const double other = __shfl_xor_sync(ALL_LANES, x, bit);
    x = other > x ? other : x;
  }
  return x;
}

// Functions of their own, as their registers would be too many beside the interpreter's.
GK_NOINLINE inline __device__ double component_log_weight(const LogisticMixture& m, int colour, int k, double highest) {
  return m.log_weight(colour, k, highest);
}
GK_NOINLINE inline __device__ double component_cdf(const LogisticMixture& m, const LogisticMixture::Logistic& l,
                                                   int level) {
  return m.cdf(l, level);
}

// The level of a warp, or NO_LEVEL, the same in every lane.
GK_NOINLINE inline __device__ int draw_from_mixture(const LogisticMixture& m, int channels, int colour, int lane,
                                                    double u) {
  bool sound = true;
  for (int k = lane; k < channels; k += WARP) sound = sound && fabsf(m.parameters[k]) < INFINITY;
  if (__ballot_sync(ALL_LANES, !sound)) return NO_LEVEL;

  double highest = -INFINITY, most = -INFINITY, sum = 0.0;
  for (int k = lane; k < m.components; k += WARP) highest = fmax(highest, m.at(0, k));
  highest = warp_max(highest);
  double weights[LANE_COMPONENTS];
  LogisticMixture::Logistic logistics[LANE_COMPONENTS];
#pragma unroll 1
  for (int j = 0; j < LANE_COMPONENTS; ++j) {
    const int k = lane + j * WARP;
    if (k >= m.components) break;
    weights[j] = component_log_weight(m, colour, k, highest);
    logistics[j] = m.logistic(colour, k);
    most = fmax(most, weights[j]);
  }
  most = warp_max(most);
#pragma unroll 1
  for (int j = 0; j < LANE_COMPONENTS; ++j) {
    if (lane + j * WARP >= m.components) break;
    weights[j] = exp(weights[j] - most);
    sum += weights[j];
  }
  const double wanted = u * warp_sum(sum);
  int first = 0, last = m.levels - 1;
  while (first < last) {
    const int middle = (first + last) / 2;
    double cdf = 0.0;
#pragma unroll 1
    for (int j = 0; j < LANE_COMPONENTS; ++j) {
      if (lane + j * WARP >= m.components) break;
      cdf += weights[j] * component_cdf(m, logistics[j], middle);
    }
    if (warp_sum(cdf) <= wanted)
      first = middle + 1;
    else
      last = middle;
  }
  return first;
}

}  // namespace gk::cuda
