// The wavefront LSTM on a GPU: arguments of the launchers, and the plan of how a direction is divided. The arithmetic is
// in cpu/wavefront_lstm/steps.h, the way it is done here in forward.cu and backward.cu.
#pragma once

#include <cstdint>

#include "cpu/core/tensor_view.h"

namespace gk::cuda {

constexpr int MAX_TAPS = 32;
constexpr int MAX_DIRECTIONS = 2;

// `exact`: float32 products of float32 numbers, not of numbers rounded to TF32.
struct WavefrontShape {
  Storage storage;
  bool exact;
  int batch, hidden, height, width, directions;
  bool diagonal;
  int tap_count;
  int taps[MAX_TAPS];
};

struct WavefrontLimits {
  int multiprocessors;
  int64_t shared_bytes;  // that one block can have
  int max_cluster;       // 1 before compute capability 9.0
};

// A cluster of `cluster` blocks sweeps `images` images of one direction from the first step to the last. A row is an
// image's position on a step (its row, on a diagonal; its column, on a row); 16 rows are a tile of the product.
struct WavefrontPlan {
  int cluster;
  int images;
  int slices;           // clusters for one direction: ceil(batch / images)
  int rows;             // images * positions, rounded up to whole tiles
  int groups;           // of 8 units each, that a block owns
  int columns;          // groups of 32 result columns, of which each warp takes one at a time
  int steps;            // of 32 bytes, that a product takes
  int resident;         // of these, whose weights stay in shared memory; those of the others come from L2
  int64_t shared_bytes;  // of a block
  int64_t packed_bytes;  // of one direction's weights, in the order in which a warp reads them
};

struct WavefrontPlans {
  bool fits;
  int64_t needed_bytes;  // of shared memory, at least, where it does not fit; 0 where more would not help
  WavefrontPlan forward, backward;
};

// The quickest division by a model of the clocks of a step. Pure arithmetic, without a device.
WavefrontPlans plan_wavefront(const WavefrontShape& shape, const WavefrontLimits& limits);

struct Pixels {
  void* data;
  int64_t stride_n, stride_h, stride_w;  // in elements; channels are next to each other
};

struct WavefrontForward {
  bool mirrored;
  Pixels gates, hidden;
  const void *weight, *h0, *c0;  // [taps, 4h, h]; [h] or nullptr: zero
  void* packed;                  // plan.packed_bytes of scratch
};

// saved: for all directions together [directions][N][H * W][h][4] activated gates in the storage type, then, at float
// directions * N * H * W * 4h, [directions][N][H * W][h] cells in float32; or nullptr. Both return nullptr or what went wrong.
const char* wavefront_lstm_forward(const WavefrontShape& shape, const WavefrontPlan& plan,
                                   const WavefrontForward* directions, float* saved, void* stream);

struct WavefrontBackward {
  bool mirrored;
  Pixels grad_hidden;
  const void *weight, *h0, *c0;
  void* packed;
  void* grad_gates;  // [N][H][W][4h]
  void* gathered;    // [N][H][W][taps][h]: the h that each tap of a pixel reads; or nullptr
  float* grad_c0;    // [slices][h], to be added up; or nullptr
};

const char* wavefront_lstm_backward(const WavefrontShape& shape, const WavefrontPlan& plan,
                                    const WavefrontBackward* directions, const float* saved, void* stream);

}  // namespace gk::cuda
