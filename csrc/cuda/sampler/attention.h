// Attention of a pixel over those that it sees, one warp for a head of an image.
//
// A lane has every 32nd channel of the query and of the sum; keys and values of the pixels drawn so far come from L2,
// one pixel after the other, and the softmax is carried along with its largest score. It is bound by the latency of a
// pixel: a read, five exchanges between lanes and an exponential, some 300 clocks that nothing overlaps but other warps
// (a count, not a measurement).
#pragma once

#include "cuda/sampler/across.h"
#include "cuda/sampler/block.h"

namespace gk::cuda {

constexpr int LANE_CHANNELS = SAMPLER_MAX_HEAD / WARP;

// One head: where its query, the keys and values of pixel (0, 0), and its result stand.
struct AttentionHead {
  const float *query, *keys, *values, *table;  // table: what is added to the scores, or nullptr
  float* out;
  int key_row, key_column, value_row, value_column;
  int depth, wide, width, count;  // count: of pixels
  float scale;
};

GK_NOINLINE inline __device__ void attend(const AttentionHead& a, int lane) {
  float query[LANE_CHANNELS], sum[LANE_CHANNELS] = {};
#pragma unroll
  for (int i = 0; i < LANE_CHANNELS; ++i) {
    const int c = lane + i * WARP;
    query[i] = c < a.depth ? a.query[c] : 0.0f;
  }
  float most = -INFINITY, total = 0.0f;
  for (int s = 0; s < a.count; ++s) {
    const int y = s / a.width, x = s % a.width;
    const float* const key = a.keys + static_cast<int64_t>(y) * a.key_row + x * a.key_column;
    float product = 0.0f;
#pragma unroll
    for (int i = 0; i < LANE_CHANNELS; ++i) {
      const int c = lane + i * WARP;
      if (c < a.depth) product += query[i] * key[c];
    }
    float score = sum_of_lanes(product) * a.scale;
    if (a.table) score += a.table[s];
    if (score == -INFINITY) continue;
    const float now = score > most || score != score ? score : most;
    const float kept = expf(most - now), weight = expf(score - now);
    most = now;
    total = total * kept + weight;
    const float* const value = a.values + static_cast<int64_t>(y) * a.value_row + x * a.value_column;
#pragma unroll
    for (int i = 0; i < LANE_CHANNELS; ++i) {
      const int c = lane + i * WARP;
      if (c < a.wide) sum[i] = sum[i] * kept + weight * value[c];
    }
  }
#pragma unroll
  for (int i = 0; i < LANE_CHANNELS; ++i) {
    const int c = lane + i * WARP;
    if (c < a.wide) a.out[c] = most == -INFINITY ? 0.0f : sum[i] / total;
  }
}

// Columns [x0, x1) of row y of all images. To be called by the whole block; __syncthreads before what is written is
// read.
__device__ __forceinline__ void attention(const SamplerBlock& b, const DeviceInstruction& in, int y, int x0, int x1) {
  const int heads = in.number, columns = x1 - x0, pixels = b.shape.height * b.shape.width;
  const DevicePlace keys = b.static_place(in.places + 2), values = b.static_place(in.places + 3);
  for (int i = b.warp; i < heads * columns * b.images; i += b.warps) {
    const int head = i % heads, x = x0 + i / heads % columns, image = i / heads / columns;
    const int pixel = y * b.shape.width + x;
    AttentionHead a;
    a.depth = in.rows / heads, a.wide = in.reductions / heads, a.width = b.shape.width;
    a.query = b.at(b.place(in.places + 1), image, x) + head * a.depth;
    a.keys = b.memory_of(image) + keys.base + head * a.depth;
    a.values = b.memory_of(image) + values.base + head * a.wide;
    a.key_row = keys.row_stride, a.key_column = keys.column_stride;
    a.value_row = values.row_stride, a.value_column = values.column_stride;
    a.table = nullptr;
    if (in.count > 0)
      a.table = b.call.floats + in.weight + (static_cast<int64_t>(in.count > 1 ? head : 0) * pixels + pixel) * pixels;
    a.count = pixel + (static_cast<SamplerFunction>(in.function) == SamplerFunction::less ? 0 : 1);
    a.scale = b.call.floats[in.parameters];
    a.out = b.own(b.place(in.places), image, x) + head * a.wide;
    attend(a, b.lane);
  }
}

}  // namespace gk::cuda
