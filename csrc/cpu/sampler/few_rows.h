// Products with very few rows, for the pixels of one to three images; few_rows.cpp says how.
#pragma once

#include "cpu/core/gemm_tile.h"

namespace gk::GK_ISA::sampler {

constexpr int64_t FEW_ROWS = 3;
// Whole panels that are taken at once.
constexpr int64_t few_rows_panels(int64_t rows) { return NR_MAX > 2 ? 2 : rows == 1 ? 4 : 2; }

// out[i][p * panel + j] (+)= sum over segments and k of rows[i][offset + k] * panel[p][k'][j], for `panels` whole panels,
// at most few_rows_panels(count), or one narrower panel of `nr` vectors; `panel_floats` from one panel to the next.
void multiply_few_rows(int64_t count, int64_t panels, int nr, const float* const* rows, const Segment* segments,
                       int64_t segment_count, const float* panel, int64_t panel_floats, float* out, int64_t out_stride,
                       bool add);

}  // namespace gk::GK_ISA::sampler
