// The register-tiled product that every CPU kernel is built on.
//
//   out[i][j] (+)= sum over segments s, k < s.length of  rows[i][s.offset + k] * panel[k'][j]
//
// Rows are read through one pointer each, a scalar at a time (broadcast); the panel holds PANEL = NR * VL columns
// packed one reduction step after the other, k' counting through all segments. The segments let one call walk the
// taps of a convolution (rows = pixels, a segment = the channels at one tap) or the lines of an image (rows =
// channel planes, a segment = one line) without any copy of the rows.
//
// Tile: MR x NR vectors stay in registers for the whole reduction; 6 x 2 fills the 16 registers of SSE and AVX2,
// 6 x 4 the 32 of AVX-512. A reduction step loads NR panel vectors and MR scalars for MR * NR multiply-adds, so the
// multiply-add units are the bound as long as the panel streams from L1 or L2 and the rows stay in L1.
#pragma once

#include "cpu/simd.h"

namespace gk::GK_ISA {

constexpr int MR_MAX = 6;
constexpr int NR_MAX = GK_ISA_LEVEL == 2 ? 4 : 2;
constexpr int PANEL_MAX = NR_MAX * VL;

// A panel is read once a tile and is often pushed out of L1 in between; asking 24 steps (one cache line each on AVX2)
// ahead is worth 1-3 %.
constexpr int PREFETCH_STEPS = 24;

struct Segment {
  int64_t offset;  // added to every row pointer, in floats
  int64_t length;  // reduction steps, at most SEGMENT_MAX
};

constexpr int64_t SEGMENT_MAX = 512;

// What becomes of a tile: written over what is there, added to it, or written with `finish` applied.
enum class TileMode { write, add, finish };

struct Finish {
  const float* bias;  // one value per column of the panel, or nullptr
  bool relu;
};

// Long sums are taken in blocks, as a matrix library does: a register that has seen this many products is added to
// `out` at the next end of a segment and starts again. Rounding errors then grow with the square root of the block and
// not of the whole sum; it costs 1 % at most.
constexpr int64_t SUM_BLOCK = 256;

template <int MR, int NR, TileMode MODE>
GK_INLINE void sum_tile(const float* const* rows, const Segment* segments, int64_t segment_count, const float* panel,
                        float* out, int64_t out_stride, const Finish& finish) {
  Vec acc[MR][NR];
  GK_UNROLL for (int j = 0; j < NR; ++j) {
    const Vec start = MODE == TileMode::finish && finish.bias ? load(finish.bias + j * VL) : Vec{};
    GK_UNROLL for (int i = 0; i < MR; ++i) acc[i][j] = start;
  }
  bool partial = MODE == TileMode::add;  // whether `out` holds a part of the sum
  int64_t summed = 0;
  for (int64_t s = 0; s < segment_count; ++s) {
    if (summed >= SUM_BLOCK) {
      GK_UNROLL for (int i = 0; i < MR; ++i)
        GK_UNROLL for (int j = 0; j < NR; ++j) {
          float* to = out + i * out_stride + j * VL;
          store(to, partial ? load(to) + acc[i][j] : acc[i][j]);
          acc[i][j] = Vec{};
        }
      partial = true;
      summed = 0;
    }
    const float* row[MR];
    for (int i = 0; i < MR; ++i) row[i] = rows[i] + segments[s].offset;
    const int64_t length = segments[s].length;
    summed += length;
    for (int64_t k = 0; k < length; ++k) {
      Vec b[NR];
      GK_UNROLL for (int j = 0; j < NR; ++j) b[j] = load(panel + j * VL);
      GK_UNROLL for (int j = 0; j < NR * VL; j += 16) __builtin_prefetch(panel + PREFETCH_STEPS * NR * VL + j);
      panel += NR * VL;
      for (int i = 0; i < MR; ++i) {
        const Vec a = broadcast(row[i][k]);
        GK_UNROLL for (int j = 0; j < NR; ++j) acc[i][j] += a * b[j];
      }
    }
  }
  GK_UNROLL for (int i = 0; i < MR; ++i)
    GK_UNROLL for (int j = 0; j < NR; ++j) {
      float* to = out + i * out_stride + j * VL;
      Vec v = partial ? load(to) + acc[i][j] : acc[i][j];
      if (MODE == TileMode::finish && finish.relu) v = v < Vec{} ? Vec{} : v;  // NaN stays NaN, as in torch
      store(to, v);
    }
}

template <int MR, int NR, TileMode MODE>
void gemm_tile(const float* const* rows, const Segment* segments, int64_t segment_count, const float* panel,
               float* out, int64_t out_stride) {
  sum_tile<MR, NR, MODE>(rows, segments, segment_count, panel, out, out_stride, {});
}

template <int MR, int NR>
void gemm_tile_finish(const float* const* rows, const Segment* segments, int64_t segment_count, const float* panel,
                      float* out, int64_t out_stride, const Finish& finish) {
  sum_tile<MR, NR, TileMode::finish>(rows, segments, segment_count, panel, out, out_stride, finish);
}

using TileFunction = void (*)(const float* const*, const Segment*, int64_t, const float*, float*, int64_t);

using FinishFunction = void (*)(const float* const*, const Segment*, int64_t, const float*, float*, int64_t,
                                const Finish&);

// What GK_TILE(mr, nr) makes of every tile there is, as [NR_MAX][MR_MAX]; defined anew for each table.
#define GK_TILE_ROWS(nr) \
  {GK_TILE(1, nr), GK_TILE(2, nr), GK_TILE(3, nr), GK_TILE(4, nr), GK_TILE(5, nr), GK_TILE(6, nr)}
#if GK_ISA_LEVEL == 2
#define GK_TILE_TABLE {GK_TILE_ROWS(1), GK_TILE_ROWS(2), GK_TILE_ROWS(3), GK_TILE_ROWS(4)}
#else
#define GK_TILE_TABLE {GK_TILE_ROWS(1), GK_TILE_ROWS(2)}
#endif

// gemm_tile<mr, nr, MODE>, by number.
template <TileMode MODE>
inline TileFunction tile_function(int mr, int nr) {
#define GK_TILE(mr_, nr_) gemm_tile<mr_, nr_, MODE>
  static constexpr TileFunction table[NR_MAX][MR_MAX] = GK_TILE_TABLE;
#undef GK_TILE
  return table[nr - 1][mr - 1];
}

// gemm_tile_finish<mr, nr>, by number.
inline FinishFunction finish_function(int mr, int nr) {
#define GK_TILE(mr_, nr_) gemm_tile_finish<mr_, nr_>
  static constexpr FinishFunction table[NR_MAX][MR_MAX] = GK_TILE_TABLE;
#undef GK_TILE
  return table[nr - 1][mr - 1];
}

// Splits `count` rows into tiles of at most MR_MAX, as even as can be, and calls tile(first, rows) for each.
template <class Tile>
GK_INLINE void for_row_tiles(int64_t count, const Tile& tile) {
  const int64_t tiles = ceil_div(count, MR_MAX), small = tiles ? count / tiles : 0, larger = count - small * tiles;
  int64_t first = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t rows = small + (i < larger);
    tile(first, rows);
    first += rows;
  }
}

}  // namespace gk::GK_ISA
