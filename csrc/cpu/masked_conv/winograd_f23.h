// Winograd F(2,3) and F(2,2) of the masked convolution: what forward and backward pass share. The method is explained
// in masked_conv/winograd_f23.cpp.
#pragma once

#include "cpu/core/evenness.h"
#include "cpu/masked_conv/indirection.h"

namespace gk::GK_ISA::masked_conv {

// The transformed input: x[j], x[j+1] - x[j], x[j+1] + x[j] and x[j+2] - x[j].
enum class Input { plain, difference, sum, reach };
constexpr int INPUTS = 4;
constexpr int PRODUCTS = 4;         // m0 .. m3
constexpr int64_t TAPS_MOST = 64;  // live taps that it is written for

// One piece's part in one of the products: a transformed input at a place, times a sum of weights.
struct WinogradTerm {
  Input input;
  int64_t row, column;  // from the first pixel of the tile
  int64_t tap, taps;    // the weights that are added up
  float first, second;  // times these: the first and the last of three, and the one in between
};

// All pieces of a mask, the centre seen by every output or by none. `gemm`: which way the taps are read.
class WinogradTerms {
 public:
  WinogradTerms(const MaskedConv& c, const MaskedGemm& gemm);
  int64_t count(int product) const { return counts_[product]; }
  int64_t count() const { return counts_[0] + counts_[1] + counts_[2] + counts_[3]; }
  const WinogradTerm& term(int product, int64_t index) const { return terms_[product][index]; }

 private:
  void add(int product, const WinogradTerm& term) { terms_[product][counts_[product]++] = term; }
  void add_piece(int64_t row, int64_t column, int64_t tap, int64_t taps, bool mirrored);

  WinogradTerm terms_[PRODUCTS][TAPS_MOST];
  int64_t counts_[PRODUCTS] = {};
};

// Tiles, pairs of pixels, of a line.
inline int64_t tiles_of(int64_t columns) { return ceil_div(columns, 2); }
// A region with whole tiles.
inline Region in_tiles(const Region& r) { return {r.y0, r.y1, r.x0, r.x0 + 2 * tiles_of(r.columns())}; }

// Panel `index` of the transformed weights: [product][term][channel][column of the panel]. Looks at their evenness.
void transform_weights(const WeightView& w, const MaskedConv& c, const WinogradTerms& terms, const MaskedGemm& gemm,
                       int64_t index, Evenness& evenness, float* packed);

// The products of a task, and the scratch that they take. A task's pixels and their border stand in scratch in INPUTS
// transformed copies, lines of `pitch` pixels of gemm.channels floats.
class WinogradProducts {
 public:
  // `origin`: the pixel of the scratch that the terms of a task's first pixel count from, as row and column.
  WinogradProducts(const MaskedConv& c, const MaskedGemm& gemm, const Tasks& tasks, int64_t origin_row,
                   int64_t origin_column);

  const MaskedGemm& gemm() const { return gemm_; }
  const WinogradTerms& terms() const { return terms_; }
  int64_t input_floats() const { return INPUTS * copy_floats_; }
  int64_t packed_floats() const { return panel_count(gemm_.columns) * PANEL_MAX * terms_.count() * gemm_.channels; }
  void take_scratch(ScratchLayout& own);

  // The other copies of `pixels` pixels of the plain one. Pixels at the end of a line get sums with the next line,
  // which nobody reads.
  void transform_input(float* input, int64_t pixels) const;

  // One task times all panels of weights; `target` gets its channels here.
  void multiply(const Region& region, int64_t pitch, const float* input, const float* weights, Target target,
                const Scratch& scratch) const;

  // Where a term's pixels begin for the first tile of a task.
  int64_t term_offset(const WinogradTerm& t, int64_t pitch) const {
    return static_cast<int>(t.input) * copy_floats_ +
           ((origin_row_ + t.row) * pitch + origin_column_ + t.column) * gemm_.channels;
  }

 private:
  void multiply_panel(const Panel& panel, int64_t tiles, const Indirection* taps, const float* const* rows,
                      const float* weights, const Scratch& scratch) const;

  MaskedGemm gemm_;
  WinogradTerms terms_;
  int64_t origin_row_, origin_column_;
  int64_t copy_floats_, group_lines_, group_tiles_, segments_most_;
  ScratchArray<float> pixels_, shared_;  // [tile][m0 | m3][PANEL_MAX] and [tile][m1 | m2][PANEL_MAX]
  ScratchArray<const float*> rows_;
  ScratchArray<Segment> segments_;
};

}  // namespace gk::GK_ISA::masked_conv
