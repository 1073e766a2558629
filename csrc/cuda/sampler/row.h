// Sums over taps for whole rows: rows of the product are the columns of the image row, of all images of the block.
//
// On the tensor cores, in three TF32 products for one of float32: what is drawn should not depend on the device. The
// block gathers 32 rows and 64 reductions at a time into shared memory; a warp multiplies 16 of these rows by 16 rows
// of the weight, which it reads from L2 in the order in which its lanes multiply them.
#pragma once

#include "cuda/sampler/block.h"

namespace gk::cuda {

constexpr int ROW_TILES = ROW_TILE / 16;
constexpr int ROW_STEP = STEP_BYTES / static_cast<int>(sizeof(float));

// Reductions [k0, k0 + ROW_CHUNK) of rows `first` and further, filled up with zeros to whole steps; `segment` is the
// first that lies there. Returns the first one behind them.
__device__ __forceinline__ int gather_rows(const SamplerBlock& b, const DeviceInstruction& in, int first, int k0,
                                           int segment) {
  const int first_place = in.places + 1 + in.operands, columns = in.last_column - in.first_column;
  const int rows = columns * b.images, filled = round_up(in.reductions, ROW_STEP);
  int end = segment;
  while (end < in.segments && b.place(first_place + end).first() < k0 + ROW_CHUNK) ++end;
  constexpr int LOADS = 4;
  const int items = (end - segment) * ROW_TILE;
  for (int base = b.warp; base < items; base += LOADS * b.warps) {
    float values[LOADS];
    int to[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const int item = base + i * b.warps, number = segment + item / ROW_TILE, row = first + item % ROW_TILE;
      to[i] = -1;
      if (item >= items) continue;
      const Standing place = b.place(first_place + number);
      const bool inside = b.lane < place.length();
      const bool behind = number == in.segments - 1 && place.first() + b.lane < filled;
      values[i] = 0.0f;
      if (inside && row < rows) values[i] = b.at(place, row / columns, in.first_column + row % columns)[b.lane];
      if (inside || behind) to[i] = item % ROW_TILE * ROW_STRIDE + place.first() - k0 + b.lane;
    }
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      if (to[i] >= 0) b.operands.put(to[i], values[i]);
    }
  }
  return end;
}

// sums[pair] += rows of a tile times rows 8 * pair of a group of the weight, reductions [k0, k0 + ROW_CHUNK).
__device__ __forceinline__ void multiply_rows(const SamplerBlock& b, const DeviceInstruction& in, int tile, int group,
                                              int k0, float (&sums)[2][4]) {
  const int steps = ceil_div(in.reductions, ROW_STEP), first = k0 / ROW_STEP;
  const int count = steps - first < ROW_CHUNK / ROW_STEP ? steps - first : ROW_CHUNK / ROW_STEP;
  const auto* const packed = reinterpret_cast<const Quad<float>*>(b.call.floats + in.weight) +
                             (static_cast<int64_t>(group) * steps + first) * WARP + b.lane;
  const int half_row = (tile * 16 + b.lane % 16) * ROW_STRIDE + b.lane / 16 * QUAD;
#pragma unroll 4
  for (int k = 0; k < count; ++k) {
    uint32_t rows[4];
    load_rows(rows, b.operands, half_row + k * ROW_STEP);
    const Quad<float> w = packed[k * WARP];
    const uint32_t columns[2][2] = {{float_as_word(w.v[0]), float_as_word(w.v[1])},
                                    {float_as_word(w.v[2]), float_as_word(w.v[3])}};
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) multiply<MathFloat32>(sums[pair], rows, columns[pair]);
  }
}

__device__ __forceinline__ void finish_rows(const SamplerBlock& b, const DeviceInstruction& in, int first, int group,
                                            const float (&sums)[2][4]) {
  const int columns = in.last_column - in.first_column;
  const Standing target = b.place(in.places);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + b.lane / 4 + 8 * half;
    if (row >= columns * b.images) continue;
    const int image = row / columns, x = in.first_column + row % columns;
    float* const to = b.own(target, image, x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = group * 16 + i / 2 * 8 + b.lane % 4 * 2 + i % 2;
      if (n >= in.rows) continue;
      const auto channels = b.channels(in, n);
      const float extra = b.extra(in, channels, image, x, to + channels.value) + b.call.floats[in.bias + n];
      to[channels.value] = unary(b, in, sums[i / 2][2 * half + i % 2] + extra);
    }
  }
}

// To be called by the whole block; __syncthreads before what is written is read.
__device__ __forceinline__ void row_affine(const SamplerBlock& b, const DeviceInstruction& in) {
  const int rows = (in.last_column - in.first_column) * b.images;
  const int groups = ceil_div(in.rows, 16), at_once = b.warps / ROW_TILES;
  const int tile = b.warp % ROW_TILES;
#pragma unroll 1
  for (int first = 0; first < rows; first += ROW_TILE) {
#pragma unroll 1
    for (int group = b.warp / ROW_TILES; group - b.warp / ROW_TILES < groups; group += at_once) {
      const bool active = group < groups && first + tile * 16 < rows;
      float sums[2][4] = {};
      int segment = 0;
#pragma unroll 1
      for (int k0 = 0; k0 < in.reductions; k0 += ROW_CHUNK) {
        segment = gather_rows(b, in, first, k0, segment);
        __syncthreads();
        if (active) multiply_rows(b, in, tile, group, k0, sums);
        __syncthreads();
      }
      if (active) finish_rows(b, in, first + tile * 16, group, sums);
    }
  }
}

}  // namespace gk::cuda
