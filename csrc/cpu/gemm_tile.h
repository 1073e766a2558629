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
  int64_t length;  // reduction steps
};

// What becomes of a tile: written over, or added to, what is there.
enum class TileMode { write, add };

template <int MR, int NR, TileMode MODE>
void gemm_tile(const float* const* rows, const Segment* segments, int64_t segment_count, const float* panel,
               float* out, int64_t out_stride) {
  Vec acc[MR][NR];
  GK_UNROLL for (int i = 0; i < MR; ++i)
    GK_UNROLL for (int j = 0; j < NR; ++j) acc[i][j] = Vec{};
  for (int64_t s = 0; s < segment_count; ++s) {
    const float* row[MR];
    for (int i = 0; i < MR; ++i) row[i] = rows[i] + segments[s].offset;
    const int64_t length = segments[s].length;
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
      store(to, MODE == TileMode::add ? load(to) + acc[i][j] : acc[i][j]);
    }
}

using TileFunction = void (*)(const float* const*, const Segment*, int64_t, const float*, float*, int64_t);

// gemm_tile<mr, nr, MODE>, by number.
template <TileMode MODE>
inline TileFunction tile_function(int mr, int nr) {
#define GK_TILE_ROWS(nr_)                                                                   \
  {gemm_tile<1, nr_, MODE>, gemm_tile<2, nr_, MODE>, gemm_tile<3, nr_, MODE>,               \
   gemm_tile<4, nr_, MODE>, gemm_tile<5, nr_, MODE>, gemm_tile<6, nr_, MODE>}
  static constexpr TileFunction table[NR_MAX][MR_MAX] = {GK_TILE_ROWS(1), GK_TILE_ROWS(2),
#if GK_ISA_LEVEL == 2
                                                         GK_TILE_ROWS(3), GK_TILE_ROWS(4)
#endif
  };
#undef GK_TILE_ROWS
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
