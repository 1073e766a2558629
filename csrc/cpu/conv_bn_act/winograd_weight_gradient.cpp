// The weight gradient in Winograd's form, see conv_bn_act/winograd.h: for each of 4 phases and 25 components, the sum
// over the tiles of small outputs times large inputs.
//
// A unit of work is a panel of large channels and a block of small channels; its 100 matrices of sums stay in L2. It
// goes component by component and takes the tiles in chunks, whose rows stay in L1 while the four phases meet them.
// Both factors are read where the transformed images stand. No sum crosses threads, so the result does not depend on
// their number. Bound: the multiply-add units, at 25/64 of the direct multiplications.
#pragma once

#include "cpu/conv_bn_act/weight_gradient.cpp"
#include "cpu/conv_bn_act/winograd.h"
#include "cpu/conv_bn_act/winograd_tile.h"

namespace gk::GK_ISA {

class WinogradWeightGradient {
 public:
  static constexpr int64_t CHUNK = 128;  // tiles
  static constexpr int64_t COMPONENTS = components_of(DOWN_TILE);

  // `rounds`: how many times run_unit is called for each unit.
  WinogradWeightGradient(const ConvShape& s, const ConvWeight& out, int64_t rounds, int threads)
      : s_(s), out_(out), rounds_(rounds) {
    panels_ = column_panels(s.large_channels);
    const int64_t wanted = ceil_div(4 * threads, panels_);
    const int64_t rows = min64(36, max64(4 * MR_MAX, ceil_div(s.small_channels, wanted)));
    row_blocks_ = ceil_div(s.small_channels, rows);
    rows_ = ceil_div(ceil_div(s.small_channels, row_blocks_), MR_MAX) * MR_MAX;  // full tiles but for the last block's
    row_blocks_ = ceil_div(s.small_channels, rows_);
  }

  int64_t units() const { return panels_ * row_blocks_; }
  // Sums that wait for the next round belong to their unit.
  int64_t shared_floats() const { return rounds_ > 1 ? units() * sums_floats() : 0; }
  int64_t thread_floats() const { return (rounds_ > 1 ? 0 : sums_floats()) + taps_floats(); }

  void run_unit(int64_t unit, const Transformed& small, const Transformed& large, int64_t tiles, int64_t round,
                float* shared, float* scratch) const {
    float* const taps = scratch;
    float* const sums = rounds_ > 1 ? shared + unit * sums_floats() : taps + taps_floats();
    const ColumnPanel panel = column_panel(s_.large_channels, unit / row_blocks_);
    const int64_t row0 = unit % row_blocks_ * rows_, rows = min64(rows_, s_.small_channels - row0);
    for (int64_t k = 0; k < COMPONENTS; ++k)
      for (int64_t tile = 0; tile < tiles; tile += CHUNK)
        for (int64_t f = 0; f < PHASES; ++f) {
          const float* const a = small.data + k * small.component + tile * small.pitch + row0;
          const float* const b = large.data + f * large.phase + k * large.component + tile * large.pitch + panel.first;
          float* const to = sums + (f * COMPONENTS + k) * component_floats();
          // What the first tile of the next phase or component reads.
          const bool same = f + 1 < PHASES;
          const float* const next_a = same ? a : a + small.component;
          const float* const next_b = b + (same ? large.phase : large.component - f * large.phase);
          for_row_tiles(rows, [&](int64_t first, int64_t count) {
            const bool last = first + count == rows;
            outer_tile_of(count, panel.nr)(a + first, small.pitch, b, large.pitch, min64(CHUNK, tiles - tile),
                                           last ? next_a : a + first + count, last ? next_b : b, round + tile > 0,
                                           to + first * PANEL_MAX, PANEL_MAX);
          });
        }
    if (round + 1 < rounds_) return;
    for (int64_t f = 0; f < PHASES; ++f) {
      float* to[4];
      for (int64_t t = 0; t < 4; ++t) {
        const int64_t place = TileAxis::tap(false, f / 2, t / 2) * 4 + TileAxis::tap(false, f % 2, t % 2);
        to[t] = taps + place * component_floats();
      }
      transform_back<DOWN_TILE + 1, 2>(sums + f * COMPONENTS * component_floats(), component_floats(),
                                       component_floats(), to, Points<DOWN_TILE>::taps_from<Vec>);
    }
    GK_BY_STORAGE(out_.storage, write_taps, out_, 4, 4, taps, rows_, panel, row0, rows);
  }

 private:
  int64_t component_floats() const { return rows_ * PANEL_MAX; }
  int64_t sums_floats() const { return PHASES * COMPONENTS * component_floats(); }
  int64_t taps_floats() const { return 16 * component_floats(); }

  ConvShape s_;
  ConvWeight out_;
  int64_t rounds_, panels_, row_blocks_, rows_;
};

}  // namespace gk::GK_ISA
