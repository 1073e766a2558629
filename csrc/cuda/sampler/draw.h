// Drawing a level from logits by inverse CDF, one warp for an image, as genkernels/distributions/categorical.py defines
// it in float64.
//
// A lane has up to eight levels that follow each other (draw_many.h has more). Exponentials are taken in float32, their
// sums in float64, which decides unless u lies within a few parts in a million of an end of the level's interval; there
// everything is done again in float64. So a level differs from the definition's only where u is within float64 rounding
// of a boundary.
#pragma once

#include "cuda/sampler/block.h"
#include "cuda/sampler/draw_logistic_mixture.h"
#include "cuda/sampler/draw_many.h"

namespace gk::cuda {

constexpr int LANE_LEVELS = SAMPLER_FEW_LEVELS / WARP;

// A lane's levels: those from lane * each on, as many as there are.
struct LaneLogits {
  float v[LANE_LEVELS];
  unsigned there;  // a bit for each
};

// The k-th largest of a warp's logits, by deciding its bits one after the other.
__device__ __forceinline__ float kth_largest(const LaneLogits& own, int each, int k) {
  uint32_t found = 0;
#pragma unroll 1
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = found | 1u << bit;
    int count = 0;
#pragma unroll
    for (int j = 0; j < LANE_LEVELS; ++j) {
      if (j < each) count += __popc(__ballot_sync(ALL_LANES, (own.there >> j & 1) && ordered(own.v[j]) >= candidate));
    }
    if (count >= k) found = candidate;
  }
  return from_ordered(found);
}

// The level of a warp, or NO_LEVEL, the same in every lane. A function of its own, as is the exponential: their
// registers would be too many beside the interpreter's.
GK_NOINLINE inline __device__ int draw_level(const float* logits, int levels, int lane, double u, double temperature,
                                             int top_k) {
  constexpr double UNSURE = 4e-6;  // of the total; float32 rounding of exponent and exponential stays below 1e-6
  const int each = ceil_div(levels, WARP);
  LaneLogits own = {};
  float least = -INFINITY, highest = -INFINITY;
  bool sound = true;
#pragma unroll
  for (int j = 0; j < LANE_LEVELS; ++j) {
    if (j >= each || lane * each + j >= levels) continue;
    own.v[j] = logits[lane * each + j];
    own.there |= 1u << j;
    highest = fmaxf(highest, own.v[j]);
    sound = sound && own.v[j] < INFINITY;
  }
  if (top_k > 0 && top_k < levels) least = kth_largest(own, each, top_k);
#pragma unroll
  for (int bit = 1; bit < WARP; bit *= 2) highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, bit));
  if (__ballot_sync(ALL_LANES, !sound || highest == -INFINITY)) return NO_LEVEL;

  const float scale = static_cast<float>(1.0 / temperature);
  int below = 0;
#pragma unroll 1
  for (int exactly = 0; exactly < 2; ++exactly) {
    double weights[LANE_LEVELS], sum = 0.0;
#pragma unroll
    for (int j = 0; j < LANE_LEVELS; ++j) {
      weights[j] = 0.0;
      if (!(own.there >> j & 1) || own.v[j] < least) continue;
      weights[j] = exactly ? exact_exponential((static_cast<double>(own.v[j]) - highest) / temperature)
                           : static_cast<double>(expf((own.v[j] - highest) * scale));
      sum += weights[j];
    }
    double up_to = sum;  // of all lanes up to this one
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
      const double before = __shfl_sync(ALL_LANES, up_to, lane - distance);
      if (lane >= distance) up_to += before;
    }
    const double total = __shfl_sync(ALL_LANES, up_to, WARP - 1), wanted = u * total;
    double cdf = __shfl_sync(ALL_LANES, up_to, lane - 1);
    if (lane == 0) cdf = 0.0;
    below = 0;
    bool unsure = false;
#pragma unroll
    for (int j = 0; j < LANE_LEVELS; ++j) {
      if (!(own.there >> j & 1)) continue;
      cdf += weights[j];
      below += cdf <= wanted;
      unsure = unsure || !(fabs(cdf - wanted) > UNSURE * total);  // NaN is unsure
    }
    if (!__ballot_sync(ALL_LANES, unsure)) break;
  }
#pragma unroll
  for (int bit = 1; bit < WARP; bit *= 2) below += __shfl_xor_sync(ALL_LANES, below, bit);
  return below < levels ? below : levels - 1;
}

// The level of a sub-pixel, or NO_LEVEL, by a warp. RICH: mixtures and many levels too.
template <bool RICH>
__device__ __forceinline__ int drawn_level(const SamplerBlock& b, const float* logits, int64_t sub_pixel, int colour,
                                           int64_t area) {
  const SamplerLaunch& call = b.call;
  const double u = call.uniforms[sub_pixel];
  if constexpr (RICH) {
    if (b.shape.components > 0) {
      const LogisticMixture mixture = {logits,         call.levels + sub_pixel - colour * area, area,
                                       b.shape.levels, b.shape.colours,                         b.shape.components,
                                       call.temperature};
      return draw_from_mixture(mixture, b.shape.channels, colour, b.lane, u);
    }
    if (b.shape.levels > SAMPLER_FEW_LEVELS)
      return draw_level_of_many(logits, b.shape.levels, b.lane, u, call.temperature, call.top_k);
  }
  return draw_level(logits, b.shape.levels, b.lane, u, call.temperature, call.top_k);
}

// To be called by the whole block; __syncthreads before what is written is read.
template <bool RICH>
__device__ __forceinline__ void draw(const SamplerBlock& b, const DeviceInstruction& in, int y, int x) {
  const SamplerLaunch& call = b.call;
  const int64_t area = static_cast<int64_t>(b.shape.height) * b.shape.width;
  const int64_t pixel = static_cast<int64_t>(y) * b.shape.width + x;
  const int prediction = b.shape.predictions > 1 ? in.number : 0;
  for (int i = b.warp; i < b.images; i += b.warps) {
    const int64_t image = b.first_image + i, sub_pixel = (image * b.shape.colours + in.number) * area + pixel;
    const float* const logits = b.own(b.place(in.places + 1), i, x);
    for (int c = b.lane; call.logits && c < b.shape.channels; c += WARP)
      call.logits[((image * b.shape.channels + c) * b.shape.predictions + prediction) * area + pixel] = logits[c];
    int level = call.levels[sub_pixel];
    if (call.free[sub_pixel]) {
      level = drawn_level<RICH>(b, logits, sub_pixel, in.number, area);
      if (level == NO_LEVEL) {
        if (b.lane == 0 && *call.undrawable < 0) *call.undrawable = sub_pixel;  // an image's first one
        level = 0;
      }
      if (b.lane == 0) call.levels[sub_pixel] = level;
    }
    if (b.lane == 0) *b.own(b.place(in.places), i, x) = call.floats[b.shape.table + level];
  }
}

}  // namespace gk::cuda
