// The register-tiled product that every CPU kernel is built on.
//
//   out[i][j] (+)= sum over segments s, k < s.length of  rows[i][s.offset + k] * panel[k'][j]
//
// Rows are read through one pointer each, a scalar at a time (broadcast); the panel holds PANEL = NR * VL columns
// packed one reduction step after the other, k' counting through all segments. Pointers and segments are the
// indirection (as in XNNPACK's igemm) by which one call reads the taps of a convolution (rows = pixels, a segment = the
// channels at one tap) or the lines of an image (rows = channel planes, a segment = one line) without any copy.
//
// Tile: MR x NR vectors stay in registers for the whole reduction; 6 x 2 fills the 16 registers of SSE and AVX2,
// 6 x 4 the 32 of AVX-512. A reduction step loads NR panel vectors and MR scalars for MR * NR multiply-adds, so the
// multiply-add units are the bound as long as the panel streams from L1 or L2 and the rows stay in L1.
#pragma once

#include "cpu/core/simd.h"

namespace gk::GK_ISA {

constexpr int MR_MAX = 6;
constexpr int NR_MAX = GK_ISA_LEVEL == 2 ? 4 : 2;
constexpr int PANEL_MAX = NR_MAX * VL;

// A panel is read once a tile and is often pushed out of L1 in between; prefetching 24 steps (a cache line on AVX2)
// ahead is worth 1-3 %.
constexpr int PREFETCH_STEPS = 24;

struct Segment {
  int64_t offset;  // added to every row pointer, in floats
  int64_t length;  // reduction steps, at most SEGMENT_MAX
};

constexpr int64_t SEGMENT_MAX = 512;

enum class TileMode { write, add };  // over what is there, or to it

// Epilogue of a tile, before it is written.
struct Finish {
  const float* bias;  // one value per column of the panel, or nullptr
  bool relu;
};

using TileFunction = void (*)(const float* const* rows, const Segment* segments, int64_t segment_count,
                              const float* panel, float* out, int64_t out_stride);
using FinishFunction = void (*)(const float* const* rows, const Segment* segments, int64_t segment_count,
                                const float* panel, float* out, int64_t out_stride, const Finish& finish);

// The tiles of every size, [nr - 1][mr - 1], compiled once in core/gemm_tile.cpp.
extern const TileFunction gemm_tiles[2][NR_MAX][MR_MAX];  // [TileMode]
extern const FinishFunction finish_tiles[NR_MAX][MR_MAX];

GK_INLINE TileFunction tile_function(TileMode mode, int mr, int nr) {
  return gemm_tiles[static_cast<int>(mode)][nr - 1][mr - 1];
}
GK_INLINE FinishFunction finish_function(int mr, int nr) { return finish_tiles[nr - 1][mr - 1]; }

// GK_TILE(mr, nr) of every tile size, as [NR_MAX][MR_MAX]; GK_TILE is defined anew for each table.
#define GK_TILE_ROWS(nr) \
  {GK_TILE(1, nr), GK_TILE(2, nr), GK_TILE(3, nr), GK_TILE(4, nr), GK_TILE(5, nr), GK_TILE(6, nr)}
#if GK_ISA_LEVEL == 2
#define GK_TILE_TABLE {GK_TILE_ROWS(1), GK_TILE_ROWS(2), GK_TILE_ROWS(3), GK_TILE_ROWS(4)}
#else
#define GK_TILE_TABLE {GK_TILE_ROWS(1), GK_TILE_ROWS(2)}
#endif

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
