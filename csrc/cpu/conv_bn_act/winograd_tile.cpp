// The register tiles of winograd_tile.h in every size.
#include "cpu/conv_bn_act/winograd_tile.h"

namespace gk::GK_ISA::conv_bn_act {
namespace {

template <int MR, int NR>
GK_INLINE void store_tile(const Vec (&acc)[MR][NR], TileMode mode, float* out, int64_t out_step) {
  GK_UNROLL for (int i = 0; i < MR; ++i)
    GK_UNROLL for (int j = 0; j < NR; ++j) {
      float* const to = out + i * out_step + j * VL;
      store(to, mode == TileMode::add ? load(to) + acc[i][j] : acc[i][j]);
    }
}

template <int MR>
GK_INLINE void prefetch_tile(TileMode mode, const float* out, int64_t out_step) {
  if (mode == TileMode::add) GK_UNROLL for (int i = 0; i < MR; ++i) __builtin_prefetch(out + i * out_step);
}

template <int MR, int NR>
void rows_tile(const float* a, int64_t a_step, int64_t length, int64_t block, const float* panel, const float* ahead,
               TileMode mode, float* out, int64_t out_step) {
  prefetch_tile<MR>(mode, out, out_step);
  const float* row[MR];
  for (int i = 0; i < MR; ++i) row[i] = a + i * a_step;
  for (int64_t begin = 0; begin < length; begin += block) {
    Vec acc[MR][NR] = {};
    const int64_t end = min64(length, begin + block);
    for (int64_t first = begin; first < end; first += LINE) {
      GK_UNROLL for (int i = 0; i < MR; ++i) __builtin_prefetch(ahead + i * a_step + first);
      const int64_t last = min64(end, first + LINE);
      GK_TWICE for (int64_t k = first; k < last; ++k) {
        Vec b[NR];
        GK_UNROLL for (int j = 0; j < NR; ++j) b[j] = load(panel + j * VL);
        GK_UNROLL for (int j = 0; j < NR * VL; j += LINE) __builtin_prefetch(panel + PREFETCH_STEPS * NR * VL + j);
        panel += NR * VL;
        GK_UNROLL for (int i = 0; i < MR; ++i) {
          const Vec x = broadcast(row[i][k]);
          GK_UNROLL for (int j = 0; j < NR; ++j) acc[i][j] += x * b[j];
        }
      }
    }
    store_tile<MR, NR>(acc, begin > 0 ? TileMode::add : mode, out, out_step);
  }
}

template <int MR, int NR>
void outer_tile(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t count,
                const float* ahead_a, const float* ahead_b, TileMode mode, float* out, int64_t out_step) {
  Vec acc[MR][NR] = {};
  prefetch_tile<MR>(mode, out, out_step);
  GK_TWICE for (int64_t k = 0; k < count; ++k, a += a_step, b += b_step, ahead_a += a_step, ahead_b += b_step) {
    Vec column[NR];
    GK_UNROLL for (int j = 0; j < NR; ++j) column[j] = load(b + j * VL);
    __builtin_prefetch(ahead_a);
    GK_UNROLL for (int j = 0; j < NR * VL; j += LINE) __builtin_prefetch(ahead_b + j);
    GK_UNROLL for (int i = 0; i < MR; ++i) {
      const Vec x = broadcast(a[i]);
      GK_UNROLL for (int j = 0; j < NR; ++j) acc[i][j] += x * column[j];
    }
  }
  store_tile<MR, NR>(acc, mode, out, out_step);
}

}  // namespace

RowsTile rows_tile_of(int64_t mr, int64_t nr) {
#define GK_TILE(mr_, nr_) rows_tile<mr_, nr_>
  static constexpr RowsTile table[NR_MAX][MR_MAX] = GK_TILE_TABLE;
#undef GK_TILE
  return table[nr - 1][mr - 1];
}
OuterTile outer_tile_of(int64_t mr, int64_t nr) {
#define GK_TILE(mr_, nr_) outer_tile<mr_, nr_>
  static constexpr OuterTile table[NR_MAX][MR_MAX] = GK_TILE_TABLE;
#undef GK_TILE
  return table[nr - 1][mr - 1];
}

}  // namespace gk::GK_ISA::conv_bn_act
