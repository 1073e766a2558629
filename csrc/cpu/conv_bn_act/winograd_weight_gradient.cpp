// Weight gradient by Winograd's F(4x4, 2x2), see winograd.h: for each of 4 phases and 25 components, the sum over the
// tiles of low outputs times high inputs.
//
// A task of work is a panel of high channels and a block of low channels; its 100 matrices of sums stay in L2. It goes
// component by component and takes the tiles in chunks, whose rows stay in L1 while the four phases meet them. Both
// factors are read where the transformed images stand. No sum crosses threads, so the result does not depend on their
// number. Bound: the multiply-add units, at 25/64 of the direct multiplications.
#include "cpu/conv_bn_act/winograd_weight_gradient.h"

#include "cpu/conv_bn_act/weight_gradient.h"
#include "cpu/conv_bn_act/winograd_points.h"
#include "cpu/conv_bn_act/winograd_tile.h"

namespace gk::GK_ISA::conv_bn_act {
namespace {

constexpr int64_t CHUNK = 128;  // tiles

}  // namespace

WinogradWeightGradient::WinogradWeightGradient(const ConvShape& s, const ConvWeight& out, int64_t rounds, int threads)
    : s_(s), out_(out), rounds_(rounds) {
  panels_ = column_panels(s.high_channels);
  const int64_t wanted = ceil_div(4 * threads, panels_);
  const int64_t rows = min64(36, max64(4 * MR_MAX, ceil_div(s.low_channels, wanted)));
  row_blocks_ = ceil_div(s.low_channels, rows);
  rows_ = ceil_div(ceil_div(s.low_channels, row_blocks_), MR_MAX) * MR_MAX;  // full tiles but for the last block's
  row_blocks_ = ceil_div(s.low_channels, rows_);
  taps_ = layout_.take<float>(16 * component_floats());
  sums_ = layout_.take<float>(rounds > 1 ? 0 : sums_floats());
}

void WinogradWeightGradient::run_task(int64_t task, const Transformed& low, const Transformed& high, int64_t tiles,
                                      int64_t round, float* shared, float* scratch) const {
  float* const sums = rounds_ > 1 ? shared + task * sums_floats() : part_of(scratch, sums_);
  const ColumnPanel panel = column_panel(s_.high_channels, task / row_blocks_);
  const int64_t row0 = task % row_blocks_ * rows_, rows = min64(rows_, s_.low_channels - row0);
  for (int64_t k = 0; k < COMPONENTS; ++k)
    for (int64_t tile = 0; tile < tiles; tile += CHUNK)
      for (int64_t f = 0; f < PHASES; ++f) {
        const float* const a = low.data + k * low.component + tile * low.pitch + row0;
        const float* const b = high.data + f * high.phase + k * high.component + tile * high.pitch + panel.first;
        float* const to = sums + (f * COMPONENTS + k) * component_floats();
        // The operands of the first tile of the next phase or component.
        const bool same = f + 1 < PHASES;
        const float* const next_a = same ? a : a + low.component;
        const float* const next_b = b + (same ? high.phase : high.component - f * high.phase);
        const TileMode mode = round + tile > 0 ? TileMode::add : TileMode::write;
        for_row_tiles(rows, [&](int64_t first, int64_t count) {
          const bool last = first + count == rows;
          outer_tile_of(count, panel.nr)(a + first, low.pitch, b, high.pitch, min64(CHUNK, tiles - tile),
                                         last ? next_a : a + first + count, last ? next_b : b, mode,
                                         to + first * PANEL_MAX, PANEL_MAX);
        });
      }
  if (round + 1 == rounds_) write(sums, part_of(scratch, taps_), panel, row0, rows);
}

void WinogradWeightGradient::write(float* sums, float* taps, const ColumnPanel& panel, int64_t row0,
                                   int64_t rows) const {
  for (int64_t f = 0; f < PHASES; ++f) {
    float* to[4];
    for (int64_t t = 0; t < 4; ++t) {
      const int64_t row = TileAxis::tap(ConvKind::strided, f / 2, t / 2);
      to[t] = taps + (row * 4 + TileAxis::tap(ConvKind::strided, f % 2, t % 2)) * component_floats();
    }
    transform_back<STRIDED_TILE + 1, 2>(sums + f * COMPONENTS * component_floats(), component_floats(),
                                        component_floats(), to, Points<STRIDED_TILE>::taps_from<Vec>);
  }
  write_taps(out_, 4, 4, {taps, rows_, panel, row0, rows});
}

}  // namespace gk::GK_ISA::conv_bn_act
