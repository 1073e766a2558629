// Sums over taps at one pixel: a few images by one weight.
//
// The block first gathers what the taps read into shared memory, row by row of the product. Then a warp multiplies four
// rows of the weight for each 4 to 32 lanes, as many as the reductions occupy with one quad each; the weight is read
// once for up to four images, from shared memory where it is resident, else from L2. The lanes' sums are added up by
// exchanging halves: each exchange leaves a lane with half as many sums, so that in the end the results lie spread over
// the lanes, which finish them: bias, terms, partial sum, activation.
#pragma once

#include "cuda/sampler/block.h"

namespace gk::cuda {

constexpr int LEAST_LANES = 4;
constexpr int LOADS = 4;  // on their way at a time

// Gathers the channels that the taps read, [image][columns], filled up with zeros to whole quads.
__device__ __forceinline__ void gather_pixel(const SamplerBlock& b, const DeviceInstruction& in, int x, int columns) {
  const int first_place = in.places + 1 + in.operands, items = in.segments * b.images;
  for (int base = b.warp; base < items; base += LOADS * b.warps) {
    float values[LOADS];
    int to[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const int item = base + i * b.warps;
      to[i] = -1, values[i] = 0.0f;
      if (item >= items) continue;
      const int segment = item % in.segments, image = item / in.segments;
      const Standing place = b.place(first_place + segment);
      if (b.lane < place.length()) {
        values[i] = b.at(place, image, x)[b.lane];
        to[i] = image * columns + place.first() + b.lane;
      } else if (segment == in.segments - 1 && place.first() + b.lane < columns) {
        to[i] = image * columns + place.first() + b.lane;
      }
    }
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      if (to[i] >= 0) b.operands.put(to[i], values[i]);
    }
  }
}

// Adds up what groups of `lanes` lanes have in sums[0 .. COUNT), by exchanges with lanes that differ in BIT and beyond.
template <int BIT, int COUNT, int SUMS>
__device__ __forceinline__ void add_lanes(float (&sums)[SUMS], int lane, int lanes) {
  if constexpr (BIT < WARP) {
    if (BIT >= lanes) return;
    if constexpr (COUNT == 1) {
      sums[0] += __shfl_xor_sync(ALL_LANES, sums[0], BIT);
    } else {
#pragma unroll
      for (int j = 0; j < COUNT / 2; ++j) {
        const float lower = sums[j], upper = sums[j + COUNT / 2];
        const float given = __shfl_xor_sync(ALL_LANES, lane & BIT ? lower : upper, BIT);
        sums[j] = (lane & BIT ? upper : lower) + given;
      }
    }
    add_lanes<2 * BIT, (COUNT + 1) / 2>(sums, lane, lanes);
  }
}

// Rows first_row and further, as many as a warp takes, for images first_image and further.
template <int IMAGES>
__device__ __forceinline__ void multiply_pixel(const SamplerBlock& b, const DeviceInstruction& in, int x, int columns,
                                               int first_row, int first_image) {
  constexpr int SUMS = IMAGES * QUAD, LEFT = SUMS / LEAST_LANES;  // that a lane has, and ends with at most
  const int lane = b.lane % in.lanes, stride = columns + QUAD;
  const int row = first_row + b.lane / in.lanes * QUAD;

  // The sums that this lane will end with are `own` and further; what they are added to is asked for now.
  int own = 0, left = SUMS;
  bool finishes = true;
#pragma unroll
  for (int bit = 1; bit < WARP; bit *= 2) {
    if (bit >= in.lanes) break;
    if (left > 1) {
      left /= 2;
      own += lane & bit ? left : 0;
    } else {
      finishes = finishes && !(lane & bit);
    }
  }
  const bool resident = in.weight + (first_row + WARP / in.lanes * QUAD) * stride <= b.call.division.resident;
  const Standing target = b.place(in.places);
  int to[LEFT];  // channel, or -1
  float extra[LEFT];
#pragma unroll
  for (int j = 0; j < LEFT; ++j) {
    const int n = row + (own + j) % QUAD, image = first_image + (own + j) / QUAD;
    to[j] = -1, extra[j] = 0.0f;
    if (j >= left || !finishes || n >= in.rows || image >= b.images) continue;
    const auto channels = b.channels(in, n);
    to[j] = channels.value;
    const int bias = in.weight + n * stride + columns;
    extra[j] = resident ? b.weights.get(bias) : b.call.weights[bias];
    extra[j] += b.extra(in, channels, image, x, b.own(target, image, x) + to[j]);
  }

  float sums[SUMS] = {};
  const int weight = in.weight + row * stride;
  const auto multiply = [&](const auto& load) {
#pragma unroll (IMAGES < 4 ? 2 : 1)
    for (int k = lane * QUAD; k < columns; k += in.lanes * QUAD) {
      Quad<float> w[QUAD];
#pragma unroll
      for (int q = 0; q < QUAD; ++q) w[q] = load(weight + q * stride + k);
#pragma unroll
      for (int i = 0; i < IMAGES; ++i) {
        const int image = first_image + i < b.images ? first_image + i : b.images - 1;
        const Quad<float> value = b.operands.template get<Quad<float>>(image * columns + k);
#pragma unroll
        for (int q = 0; q < QUAD; ++q) {
#pragma unroll
          for (int e = 0; e < QUAD; ++e) sums[i * QUAD + q] += w[q].v[e] * value.v[e];
        }
      }
    }
  };
  if (resident) {
    multiply([&](int i) { return b.weights.template get<Quad<float>>(i); });
  } else {
    multiply([&](int i) { return load_streamed<Quad<float>>(b.call.weights + i); });
  }

  add_lanes<1, SUMS>(sums, lane, in.lanes);
#pragma unroll
  for (int j = 0; j < LEFT; ++j) {
    if (to[j] >= 0) b.own(target, first_image + (own + j) / QUAD, x)[to[j]] = unary(b, in, sums[j] + extra[j]);
  }
}

// To be called by the whole block; __syncthreads before what is written is read.
__device__ __forceinline__ void pixel_affine(const SamplerBlock& b, const DeviceInstruction& in, int x) {
  const int columns = round_up(in.reductions, QUAD);
  gather_pixel(b, in, x, columns);
  __syncthreads();
  const int rows = WARP / in.lanes * QUAD, passes = ceil_div(in.rows, rows);
  if (b.images == 1) {
    for (int pass = b.warp; pass < passes; pass += b.warps) multiply_pixel<1>(b, in, x, columns, pass * rows, 0);
  } else if (b.images == 2) {
    for (int pass = b.warp; pass < passes; pass += b.warps) multiply_pixel<2>(b, in, x, columns, pass * rows, 0);
  } else {
    for (int item = b.warp; item < passes * ceil_div(b.images, 4); item += b.warps)
      multiply_pixel<4>(b, in, x, columns, item % passes * rows, item / passes * 4);
  }
}

}  // namespace gk::cuda
