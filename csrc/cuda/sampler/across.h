// Functions across the channels of a pixel: softmax, layer norm's standardisation, sums, maxima.
//
// Tiling: a warp takes one group of channels of one image and column, its lanes every 32nd number. Memory: up to three
// passes read the group, first from L2 and then from L1: a maximum or a mean, a sum, the results. It is bound by the
// latency of these reads and of five exchanges between lanes for each sum, not by their number up to some hundred
// channels.
#pragma once

#include "cuda/sampler/block.h"

namespace gk::cuda {

// The sum of all lanes, the same in each.
__device__ __forceinline__ float sum_of_lanes(float x) {
#pragma unroll
  for (int bit = 1; bit < WARP; bit *= 2) x += __shfl_xor_sync(ALL_LANES, x, bit);
  return x;
}

template <class Term>
__device__ __forceinline__ float sum_of_group(int count, int lane, const Term& term) {
  float sum = 0.0f;
#pragma unroll 1
  for (int c = lane; c < count; c += WARP) sum += term(c);
  return sum_of_lanes(sum);
}

// NaN where there is one.
__device__ __forceinline__ float max_of_group(const float* from, int count, int lane) {
  float most = -INFINITY;
  for (int c = lane; c < count; c += WARP) most = from[c] > most || from[c] != from[c] ? from[c] : most;
#pragma unroll
  for (int bit = 1; bit < WARP; bit *= 2) {
    const float other = __shfl_xor_sync(ALL_LANES, most, bit);
    most = other > most || other != other ? other : most;
  }
  return most;
}

// One group, by a whole warp. A function of its own: its registers would be too many beside the interpreter's.
GK_NOINLINE inline __device__ void across_group(SamplerFunction function, const float* from, float* to, int count,
                                                int lane, float parameter) {
  float result;
  if (function == SamplerFunction::softmax || function == SamplerFunction::log_softmax ||
      function == SamplerFunction::max || function == SamplerFunction::logsumexp) {
    const float most = max_of_group(from, count, lane);
    result = most;
    if (function != SamplerFunction::max) {
      const float sum = sum_of_group(count, lane, [&](int c) { return expf(from[c] - most); });
      if (function == SamplerFunction::softmax) {
        for (int c = lane; c < count; c += WARP) to[c] = expf(from[c] - most) / sum;
        return;
      }
      const float rest = logf(sum);
      if (function == SamplerFunction::log_softmax) {
        for (int c = lane; c < count; c += WARP) to[c] = from[c] - most - rest;
        return;
      }
      if (fabsf(most) != INFINITY) result = most + rest;
    }
  } else {
    result = sum_of_group(count, lane, [&](int c) { return from[c]; });
    if (function != SamplerFunction::sum) result /= static_cast<float>(count);
    if (function == SamplerFunction::standardise || function == SamplerFunction::variance) {
      const float mean = result;
      const float squares = sum_of_group(count, lane, [&](int c) { return (from[c] - mean) * (from[c] - mean); });
      if (function == SamplerFunction::standardise) {
        const float scale = 1.0f / sqrtf(squares / static_cast<float>(count) + parameter);
        for (int c = lane; c < count; c += WARP) to[c] = (from[c] - mean) * scale;
        return;
      }
      result = squares / (static_cast<float>(count) - parameter);
    }
  }
  if (lane == 0) *to = result;
}

// Columns [x0, x1) of all images. To be called by the whole block; __syncthreads before what is written is read.
__device__ __forceinline__ void across(const SamplerBlock& b, const DeviceInstruction& in, int x0, int x1) {
  const Standing target = b.place(in.places), source = b.place(in.places + 1);
  const int columns = x1 - x0, count = in.span_count * columns * b.images;
#pragma unroll 1
  for (int i = b.warp; i < count; i += b.warps) {
    const int x = x0 + i / in.span_count % columns, image = i / in.span_count / columns;
    const auto group = b.group(in, i % in.span_count);
    across_group(static_cast<SamplerFunction>(in.function), b.at(source, image, x) + group.operand,
                 b.own(target, image, x) + group.value, group.length, b.lane, b.call.floats[in.parameters]);
  }
}

}  // namespace gk::cuda
