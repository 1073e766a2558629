// The tiles of core/gemm_tile.h, in every size and mode.
#include "cpu/core/gemm_tile.h"

namespace gk::GK_ISA {
namespace {

// Long sums are taken in blocks, as a matrix library does: a register that has seen this many products is added to
// `out` at the next end of a segment and starts again. Rounding errors then grow with the square root of the block and
// not of the whole sum; it costs 1 % at most.
constexpr int64_t SUM_BLOCK = 256;

template <int MR, int NR, TileMode MODE, bool FINISH>
GK_INLINE void sum_tile(const float* const* rows, const Segment* segments, int64_t segment_count, const float* panel,
                        float* out, int64_t out_stride, const Finish& finish) {
  Vec acc[MR][NR];
  GK_UNROLL for (int j = 0; j < NR; ++j) {
    const Vec start = FINISH && finish.bias ? load(finish.bias + j * VL) : Vec{};
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
    GK_TWICE for (int64_t k = 0; k < length; ++k) {
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
      if (FINISH && finish.relu) v = v < Vec{} ? Vec{} : v;  // NaN stays NaN, as in torch
      store(to, v);
    }
}

template <int MR, int NR, TileMode MODE>
void gemm_tile(const float* const* rows, const Segment* segments, int64_t segment_count, const float* panel,
               float* out, int64_t out_stride) {
  sum_tile<MR, NR, MODE, false>(rows, segments, segment_count, panel, out, out_stride, {});
}

template <int MR, int NR>
void gemm_tile_finish(const float* const* rows, const Segment* segments, int64_t segment_count, const float* panel,
                      float* out, int64_t out_stride, const Finish& finish) {
  sum_tile<MR, NR, TileMode::write, true>(rows, segments, segment_count, panel, out, out_stride, finish);
}

}  // namespace

const TileFunction gemm_tiles[2][NR_MAX][MR_MAX] = {
#define GK_TILE(mr, nr) gemm_tile<mr, nr, TileMode::write>
    GK_TILE_TABLE,
#undef GK_TILE
#define GK_TILE(mr, nr) gemm_tile<mr, nr, TileMode::add>
    GK_TILE_TABLE,
#undef GK_TILE
};
#define GK_TILE(mr, nr) gemm_tile_finish<mr, nr>
const FinishFunction finish_tiles[NR_MAX][MR_MAX] = GK_TILE_TABLE;
#undef GK_TILE

}  // namespace gk::GK_ISA
