// Steps, rows and the product of a block, for forward and backward of the wavefront LSTM on a GPU.
//
// A row of a product is an image's position on the step, at the same place for the whole sweep: c then never moves, and
// tap t of a row reads the row t further of the step before. A tile (16 rows) without a live row is skipped.
#pragma once

#include "cuda/core/common.h"
#include "cuda/wavefront_lstm/wavefront_lstm.h"

namespace gk::cuda {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;
constexpr int TILE = 16;
constexpr int MAX_TILES = 64;  // bits of a mask
constexpr int NO_POSITION = 0xffff;

struct Span {
  int lo, hi;
  __device__ bool has(int r) const { return r >= lo && r < hi; }
};

__host__ __device__ inline int step_count(const WavefrontShape& l) {
  return l.diagonal ? l.height + l.width - 1 : l.height;
}
__host__ __device__ inline int position_count(const WavefrontShape& l) { return l.diagonal ? l.height : l.width; }

// The positions of step s; none before the first step and behind the last.
__device__ inline Span span_of(const WavefrontShape& l, int s) {
  if (s < 0 || s >= step_count(l)) return {0, 0};
  if (!l.diagonal) return {0, l.width};
  return {s - l.width + 1 > 0 ? s - l.width + 1 : 0, s + 1 < l.height ? s + 1 : l.height};
}

struct Place {
  int y, x;
};
__device__ inline Place place_of(const WavefrontShape& l, bool mirrored, int s, int r) {
  if (!l.diagonal) return {s, r};
  return {r, mirrored ? l.width - 1 - (s - r) : s - r};
}

// Rows of h, or of gradients, in shared memory: elements from one to the next. The 16 bytes more than they hold let
// eight rows at a time be read from all banks.
template <class T>
__host__ __device__ constexpr int row_stride(int steps) {
  return (steps * STEP_BYTES + 16) / static_cast<int>(sizeof(T));
}
template <class T>
constexpr int STEP = STEP_BYTES / static_cast<int>(sizeof(T));  // numbers of a row that one step of a product takes

// float32 of a block's units, row by row, likewise.
__host__ __device__ constexpr int unit_stride(int groups) { return 8 * groups + 8; }

// --- rows ---

struct Row {
  int image, position;
};

class RowTable {
 public:
  __device__ explicit RowTable(Region region) : packed_(region) {}
  // To be called by the whole block; __syncthreads before the first use.
  __device__ void fill(int rows, int positions, int images) const {
    for (int row = threadIdx.x; row < rows; row += THREADS) {
      const int image = row / positions;
      packed_.put(row, static_cast<uint32_t>(image << 16 | (image < images ? row % positions : NO_POSITION)));
    }
  }
  __device__ Row get(int row) const {
    if (row < 0) return {0, NO_POSITION};
    const uint32_t packed = packed_.get(row);
    return {static_cast<int>(packed >> 16), static_cast<int>(packed & 0xffff)};
  }

 private:
  Shared<uint32_t> packed_;
};

// A bit for each tile with a row whose position is in the span. To be called by a whole warp.
__device__ inline uint64_t live_tiles(int rows, int positions, int images, Span span) {
  const int lane = threadIdx.x % WARP;
  uint64_t mask = 0;
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    const int first = (lane + half * WARP) * TILE;
    bool live = false;
    for (int image = first / positions; first < rows && image < images && image * positions < first + TILE; ++image)
      live |= image * positions + span.hi > first && image * positions + span.lo < first + TILE;
    mask |= static_cast<uint64_t>(__ballot_sync(ALL_LANES, live)) << (half * WARP);
  }
  return mask;
}

// The tiles of a step divided among the warps: items of one, two or `WIDEST` = 4 tiles and one group of columns, as
// many tiles as leave no warp idle, for they share the weights that a warp reads. Calls item(tiles, group).
template <int WIDEST, class Item>
__device__ __forceinline__ void for_items(uint64_t live, int groups, const Item& item) {
  int count = 0;
  for (uint64_t rest = live; rest; rest &= rest - 1) ++count;
  if (count == 0 || groups <= 0) return;
  const int wanted = count * groups / WARPS;  // tiles, if every warp had one item
  const int width = wanted >= 3 && count >= 3 && WIDEST >= 4 ? 4 : wanted >= 2 && count >= 2 ? 2 : 1;
  const int items = ceil_div(count, width) * groups;
#pragma unroll 1
  for (int index = threadIdx.x / WARP; index < items; index += WARPS) {
    uint64_t rest = live;
    for (int skip = index / groups * width; skip > 0; --skip) rest &= rest - 1;
    int tiles[WIDEST];
#pragma unroll
    for (int i = 0; i < WIDEST; ++i) {
      const int low = __ffs(static_cast<int>(rest)), high = __ffs(static_cast<int>(rest >> 32));
      tiles[i] = low ? low - 1 : high ? high + 31 : -1;  // -1: no tile
      rest &= rest - 1;
    }
    const int group = index % groups;
    if constexpr (WIDEST >= 4) {
      if (width == 4) {
        item(tiles, group);
        continue;
      }
    }
    if (width == 2) {
      const int some[2] = {tiles[0], tiles[1]};
      item(some, group);
    } else {
      const int some[1] = {tiles[0]};
      item(some, group);
    }
  }
}

// --- the product ---

// A block's weights, packed so that a lane reads the 32 bytes that it needs for one step and 32 columns as two
// words of 16: [group][step][2][lane]. The first `resident` steps of each group lie in shared memory.
class Weights {
 public:
  __device__ Weights(Region region, const void* packed, int steps, int resident)
      : shared_(region), packed_(static_cast<const uint4*>(packed)), steps_(steps), resident_(resident) {}

  // To be called by the whole block; __syncthreads before the first use.
  __device__ void load(int groups) const {
    const int each = resident_ * 2 * WARP;
    for (int i = threadIdx.x; i < groups * each; i += THREADS)
      shared_.put(i, packed_[static_cast<int64_t>(i / each) * steps_ * 2 * WARP + i % each]);
  }

  // sums[m][n] += rows of tile m times columns 8n to 8n + 7 of the group, over steps first to first + count; the lane's
  // half row (see load_rows) of tile m starts at element at[m] of `rows`.
  template <class Math, int M>
  __device__ __forceinline__ void multiply_rows(float (&sums)[M][4][4], const Shared<typename Math::T>& rows,
                                                const int (&at)[M], int group, int first, int count) const {
    const int lane = threadIdx.x % WARP;
    const int split = resident_ - first < 0 ? 0 : resident_ - first < count ? resident_ - first : count;
    const int shared = (group * resident_ + first) * 2 * WARP + lane;
#pragma unroll 2
    for (int k = 0; k < split; ++k) {
      const int i = shared + k * 2 * WARP;
      step<Math>(sums, rows, at, k, shared_.get(i), shared_.get(i + WARP));
    }
    const uint4* const packed = packed_ + (static_cast<int64_t>(group) * steps_ + first) * 2 * WARP + lane;
#pragma unroll 4
    for (int k = split; k < count; ++k)
      step<Math>(sums, rows, at, k, packed[k * 2 * WARP], packed[k * 2 * WARP + WARP]);
  }

 private:
  template <class Math, int M>
  static __device__ __forceinline__ void step(float (&sums)[M][4][4], const Shared<typename Math::T>& rows,
                                              const int (&at)[M], int k, const uint4& one, const uint4& two) {
    const uint32_t columns[4][2] = {{one.x, one.y}, {one.z, one.w}, {two.x, two.y}, {two.z, two.w}};
#pragma unroll
    for (int m = 0; m < M; ++m) {
      uint32_t block[4];
      load_rows(block, rows, at[m] + k * STEP<typename Math::T>);
#pragma unroll
      for (int n = 0; n < 4; ++n) multiply<Math>(sums[m][n], block, columns[n]);
    }
  }

  Shared<uint4> shared_;
  const uint4* packed_;
  int steps_, resident_;
};

// Packs the weights of one direction: word(group, step, word of the step's row, column of the group) for each word. One
// thread for each 16 bytes, over a grid of any size.
template <class Word>
__device__ __forceinline__ void pack_words(void* packed, int64_t bytes, int steps, const Word& word) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < bytes / 16; i += stride) {
    const int lane = static_cast<int>(i % WARP), half = static_cast<int>(i / WARP % 2);
    const int step = static_cast<int>(i / (2 * WARP) % steps), group = static_cast<int>(i / (2 * WARP) / steps);
    const int column = half * 16 + lane / 4, w = lane % 4;
    static_cast<uint4*>(packed)[i] = {word(group, step, w, column), word(group, step, w + 4, column),
                                      word(group, step, w, column + 8), word(group, step, w + 4, column + 8)};
  }
}

// The word of a row that holds the numbers get(k), k = first of word w of step.
template <class Math, class Get>
__device__ __forceinline__ uint32_t word_of(int step, int w, const Get& get) {
  using T = typename Math::T;
  if constexpr (sizeof(T) == 4) {
    return float_as_word(Math::operand(get(step * STEP<T> + w)));
  } else {
    const int k = step * STEP<T> + 2 * w;
    return static_cast<uint32_t>(Math::operand(get(k)).bits) | static_cast<uint32_t>(Math::operand(get(k + 1)).bits) << 16;
  }
}

// --- numbers in global memory ---

template <class T>
__device__ __forceinline__ float state_at(const void* state, int unit, int hidden) {
  return state && unit < hidden ? to_float(static_cast<const T*>(state)[unit]) : 0.0f;
}

// Units u and u + 1 of what starts at p, where they are there; `even`: h and all that p is made of are.
template <class T>
__device__ __forceinline__ Pair<T> load_pair(const T* p, int u, int hidden, bool even) {
  if (even && u < hidden) return *reinterpret_cast<const Pair<T>*>(p + u);
  return {u < hidden ? p[u] : from_float<T>(0.0f), u + 1 < hidden ? p[u + 1] : from_float<T>(0.0f)};
}
template <class T>
__device__ __forceinline__ void store_pair(T* p, int u, int hidden, bool even, Pair<T> value) {
  if (even) {
    if (u < hidden) *reinterpret_cast<Pair<T>*>(p + u) = value;
    return;
  }
  if (u < hidden) p[u] = value.x;
  if (u + 1 < hidden) p[u + 1] = value.y;
}

// Calls body(Math{}) with the way in which numbers of this kind are computed.
template <class Body>
auto by_math(const WavefrontShape& shape, const Body& body) {
  if (shape.storage == Storage::bfloat16) return body(MathBFloat16{});
  if (shape.storage == Storage::float16) return body(MathFloat16{});
  return shape.exact ? body(MathFloat32{}) : body(MathTF32{});
}

}  // namespace gk::cuda
