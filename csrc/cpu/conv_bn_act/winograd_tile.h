// Register tiles of the Winograd products: as in core/gemm_tile.h, but their operands come from L3, where the
// transformed images stand, in pieces too short for the hardware to foresee. So each tile prefetches what the next one
// reads, a line at a time between its multiply-adds.
#pragma once

#include "cpu/core/gemm_tile.h"

namespace gk::GK_ISA::conv_bn_act {

constexpr int LINE = 16;  // floats of a cache line

// out[i][j] (+)= sum over k < length of a[i * a_step + k] * panel[k][j], in blocks of `block` products, a multiple of
// LINE, that are added up in `out`. `ahead` is the `a` of a tile that is to come.
using RowsTile = void (*)(const float* a, int64_t a_step, int64_t length, int64_t block, const float* panel,
                          const float* ahead, TileMode mode, float* out, int64_t out_step);
RowsTile rows_tile_of(int64_t mr, int64_t nr);

// out[i][j] (+)= sum over k < count of a[k * a_step + i] * b[k * b_step + j]. `ahead_a` and `ahead_b` are the operands
// of a tile that is to come.
using OuterTile = void (*)(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t count,
                           const float* ahead_a, const float* ahead_b, TileMode mode, float* out, int64_t out_step);
OuterTile outer_tile_of(int64_t mr, int64_t nr);

}  // namespace gk::GK_ISA::conv_bn_act
