// What a block of the backward walk is given, and how it divides its shared memory.
#pragma once

#include "cuda/wavefront_lstm/block.h"

namespace gk::cuda {

struct BackwardArguments {
  WavefrontShape shape;
  WavefrontPlan plan;
  WavefrontBackward walks[MAX_DIRECTIONS];
  const void* activations;
  const float* cells;
  bool even;  // units can be read and written in pairs
};

struct BackwardRegions {
  Region weights, gates, parts, carry, rows;
  int64_t bytes;
};

template <class T>
__host__ __device__ int tap_steps(const WavefrontPlan& plan) {
  return 32 * plan.groups / STEP<T>;  // four gates of eight units
}

template <class T>
__host__ __device__ BackwardRegions regions_of(const WavefrontPlan& plan) {
  const int64_t rows = plan.rows;
  SharedLayout layout;
  BackwardRegions r;
  r.weights = layout.take<uint4>(static_cast<int64_t>(plan.columns) * plan.resident * 2 * WARP);
  r.gates = layout.take<T>((rows + 1) * row_stride<T>(tap_steps<T>(plan)));
  r.parts = layout.take<float>(2 * plan.cluster * rows * unit_stride(plan.groups));
  r.carry = layout.take<float>(rows * unit_stride(plan.groups));
  r.rows = layout.take<uint32_t>(rows);
  r.bytes = layout.bytes();
  return r;
}

}  // namespace gk::cuda
