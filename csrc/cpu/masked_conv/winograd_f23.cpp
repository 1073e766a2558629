// Two pixels of a line at a time, with fewer multiplications: Winograd's F(2, 3) and F(2, 2). The forward pass, and the
// products that masked_conv/winograd_f23_backward.cpp is made of.
//
// Two neighbouring outputs of n taps in a line take n + 1 products of sums instead of 2 n (d: the pixels from the first
// tap of the first output on, g: the weights):
//   3 taps   y0 = m0 + m1 + m2          m0 = (d2 - d0) (-g0)             m1 = (d1 + d2) (g0 + g1 + g2) / 2
//            y1 = m1 - m2 + m3          m2 = (d2 - d1) (g0 - g1 + g2)/2  m3 = (d3 - d1) g2
//   2 taps   y0 = m0 + m1, y1 = m1 + m3     m0 = (d1 - d0) (-g0),  m1 = d1 (g0 + g1),  m3 = (d2 - d1) g1
//   1 tap    y0 = m0, y1 = m3               m0 = d0 g0,  m3 = d1 g0
// A line of live taps is cut into pieces of three and two. An output is made of products of its own live pixels alone,
// so that the mask holds to the last bit. Numbers that are not finite, or so large that their sums might not be, take
// the direct product (core/evenness.h), and so does everything with GENKERNELS_WINOGRAD=0.
//
// Tiling: a unit is some rows of one image, brought into scratch as [row][column][channel] and from there to four forms
// of it, which serve all pieces: x, and x[j+1] - x[j], x[j+1] + x[j], x[j+2] - x[j]. Each of m0 .. m3 is then a
// gemm_tile with pairs as rows and pieces as segments of the forms; the four are staged in L1, added up and stored.
// Traffic: as the direct product's, and the forms in L2: 4 C floats a pixel written once, read once per panel.
// Bound: the multiply-adds, 7 instead of 10 for two outputs of a 3x3 B, 36 instead of 50 of a 7x7 B
// (measured 1.2 to 1.3 times as fast as the direct product; errors 0.3 to 1.1 times PyTorch's). Tried without gain:
// units of half as much scratch again.
//
// Source: Winograd 1980, Arithmetic Complexity of Computations; Lavin, Gray 2016, section 4.
#pragma once

#include "cpu/core/evenness.h"
#include "cpu/masked_conv/packing.h"

namespace gk::GK_ISA {

enum Form { PLAIN, DIFFERENCE, SUM, REACH, FORMS };
constexpr int PRODUCTS = 4;
constexpr int64_t PAIR_TAPS = 64;  // live taps that it is written for, at most

// One piece's part in one of the products: a form of the pixels at a place, times a sum of weights.
struct PairTerm {
  Form form;
  int64_t row, column;      // from the first pixel of the pair
  int64_t tap, taps;        // the weights that are added up
  float first, second;      // times these: the first and the last of three, and the one in between
};

// All pieces of a mask, the centre seen by every output or by none. `mirrored`: as the input gradient walks them.
class PairTerms {
 public:
  PairTerms(const MaskedConv& c, bool centre, bool mirrored = false) : mirrored_(mirrored) {
    for (int64_t row = 0; row <= c.kernel_h / 2; ++row) {
      int64_t tap = row * c.kernel_w, left = row < c.kernel_h / 2 ? c.kernel_w : c.kernel_w / 2 + centre;
      for (int64_t taps; left > 0; tap += taps, left -= taps) {
        taps = left >= 3 && left != 4 ? 3 : min64(left, 2);
        add_piece((row - c.kernel_h / 2) * c.dilation_h, tap % c.kernel_w - c.kernel_w / 2, tap, taps);
      }
    }
  }
  int64_t count(int product) const { return counts_[product]; }
  int64_t count() const { return counts_[0] + counts_[1] + counts_[2] + counts_[3]; }
  const PairTerm& term(int product, int64_t index) const { return terms_[product][index]; }

 private:
  void add_piece(int64_t row, int64_t column, int64_t tap, int64_t taps) {
    const auto add = [&](int product, PairTerm term) { terms_[product][counts_[product]++] = term; };
    int64_t first = tap, last = tap + taps - 1;  // the weights of the piece's first pixel and of its last
    if (mirrored_) {
      row = -row;
      column = 1 - column - taps;
      first = last;
      last = tap;
    }
    if (taps == 1) {
      add(0, {PLAIN, row, column, tap, 1, 1, 0});
      add(3, {PLAIN, row, column + 1, tap, 1, 1, 0});
      return;
    }
    const Form outer = taps == 3 ? REACH : DIFFERENCE;
    add(0, {outer, row, column, first, 1, -1, 0});
    add(1, {taps == 3 ? SUM : PLAIN, row, column + 1, tap, taps, taps == 3 ? 0.5f : 1, taps == 3 ? 0.5f : 1});
    if (taps == 3) add(2, {DIFFERENCE, row, column + 1, tap, 3, 0.5f, -0.5f});
    add(3, {outer, row, column + 1, last, 1, 1, 0});
  }

  bool mirrored_;
  PairTerm terms_[PRODUCTS][PAIR_TAPS];
  int64_t counts_[PRODUCTS] = {};
};

inline bool sees_centre(const MaskedConv& c) { return c.centre_end[0] == c.in_channels; }

// Where there is something to save, and enough channels for that to outweigh the sums.
inline bool pairs_pay(const MaskedConv& c) {
  if (!allows_winograd()) return false;
  const int64_t live = c.full_taps() + sees_centre(c);
  if (c.in_channels < 32 || c.out_channels < 32 || c.width < 2 || c.dilation_w != 1 || live > PAIR_TAPS) return false;
  for (int64_t o = 0; o < c.out_channels; ++o)
    if (c.centre_end[o] != (sees_centre(c) ? c.in_channels : 0)) return false;
  return PairTerms(c, sees_centre(c)).count() * 8 <= live * 2 * 7;
}

// Panel `index` of the weights: [product][term][channel][column of the panel].
template <class T>
void pack_pair_panel(const WeightView& w, const MaskedConv& c, const PairTerms& terms, const MaskedGemm& p, int64_t index,
                     float* packed) {
  const Panel panel = make_panel(p, index);
  const int64_t C = p.reductions, width = panel.width(), live = c.full_taps() + sees_centre(c);
  float* const out = packed + index * PANEL_MAX * terms.count() * C;
  const auto from = [&](int64_t k, int64_t lane) {
    const int64_t j = panel.first + lane;
    return static_cast<const T*>(w.data) + (p.column_order ? p.column_order[j] : j) * p.column_stride +
           (p.reduction_order ? p.reduction_order[k] : k) * p.reduction_stride;
  };
  const bool by_taps = w.stride_tap == 1 && ceil_div(live, IO) * IO <= c.kernel_h * c.kernel_w;  // blocks stay inside
  for (int64_t k = 0; k < C; k += IO)
    for (int64_t lane = 0; lane < width; lane += IO) {
      const int64_t channels = min64(IO, C - k);
      Block g[IO][PAIR_TAPS + IO];  // of IO channels, all live taps of IO columns
      if (by_taps && lane + IO <= panel.columns) {
        for (int64_t i = 0; i < channels; ++i)
          for (int64_t t = 0; t < live; t += IO) {
            Block v[IO];
            GK_UNROLL for (int j = 0; j < IO; ++j) v[j] = load_block(from(k + i, lane + j) + t);
            transpose(v);
            GK_UNROLL for (int j = 0; j < IO; ++j) g[i][t + j] = v[j];
          }
      } else if (p.column_stride == 1 && !p.column_order && lane + IO <= panel.columns) {
        for (int64_t i = 0; i < channels; ++i)
          for (int64_t t = 0; t < live; ++t) g[i][t] = load_block(from(k + i, lane) + t * w.stride_tap);
      } else if (p.reduction_stride == 1 && !p.reduction_order && channels == IO && lane + IO <= panel.columns) {
        for (int64_t t = 0; t < live; ++t) {
          Block v[IO];
          GK_UNROLL for (int j = 0; j < IO; ++j) v[j] = load_block(from(k, lane + j) + t * w.stride_tap);
          transpose(v);
          GK_UNROLL for (int j = 0; j < IO; ++j) g[j][t] = v[j];
        }
      } else {
        for (int64_t i = 0; i < channels; ++i)
          for (int64_t t = 0; t < live; ++t)
            for (int64_t j = 0; j < IO; ++j)
              g[i][t][j] = lane + j < panel.columns ? load_one(from(k + i, lane + j) + t * w.stride_tap) : 0.0f;
      }
      float* to = out + k * width + lane;
      for (int product = 0; product < PRODUCTS; ++product)
        for (int64_t n = 0; n < terms.count(product); ++n, to += C * width) {
          const PairTerm& term = terms.term(product, n);
          for (int64_t i = 0; i < channels; ++i) {
            const Block* const taps = g[i] + term.tap;
            Block v = taps[0] * term.first;
            if (term.taps == 2) v = v + taps[1] * term.second;
            if (term.taps == 3) v = (taps[0] + taps[2]) * term.first + taps[1] * term.second;
            store_block(to + i * width, v);
          }
        }
    }
}

// The other forms of `count` floats, `channels` a pixel. Pixels at the end of a line get sums with the next line, which
// nobody reads.
inline void make_forms(float* forms, int64_t form_floats, int64_t count, int64_t channels) {
  for (int64_t i = 0; i < count; i += VL) {
    const Vec here = load(forms + i), next = load(forms + i + channels), after = load(forms + i + 2 * channels);
    store(forms + DIFFERENCE * form_floats + i, next - here);
    store(forms + SUM * form_floats + i, next + here);
    store(forms + REACH * form_floats + i, after - here);
  }
}

// [pair][m0 | m3][column] and [pair][m1 | m2][column] to the pixels, in the place of the former.
inline void add_up(int64_t pairs, int64_t width, float* pixels, const float* shared) {
  for (int64_t i = 0; i < pairs; ++i, pixels += 2 * width, shared += 2 * width)
    for (int64_t j = 0; j < width; j += VL) {
      const Vec m1 = load(shared + j), m2 = load(shared + width + j);
      store(pixels + j, load(pixels + j) + (m1 + m2));
      store(pixels + width + j, load(pixels + width + j) + (m1 - m2));
    }
}

// The units of one direction, and what it takes to multiply one of them. A unit's pixels and their border stand in four
// forms, lines of `pitch` pixels of `channels` floats.
class PairUnits {
 public:
  // `origin`: the pixel of the scratch that the terms of a unit's first pixel count from, as row and column.
  PairUnits(const MaskedConv& c, const PairTerms& terms, const Tiling& tiling, int64_t channels, int64_t origin_row,
            int64_t origin_column)
      : terms_(terms), channels_(channels), origin_row_(origin_row), origin_column_(origin_column) {
    pitch_max_ = 2 * pairs_of(tiling.columns) + c.reach_left() + c.reach_right();
    form_floats_ = Scratch::round((tiling.rows + c.reach_up()) * pitch_max_ * channels + 2 * channels + VL);
    group_lines_ = max64(1, STAGED_PIXELS / tiling.columns);
    group_pairs_ = min64(group_lines_, tiling.rows) * pairs_of(tiling.columns);
    segments_max_ = PAIR_TAPS * most_segments(channels);
  }

  static int64_t pairs_of(int64_t columns) { return ceil_div(columns, 2); }
  int64_t form_floats() const { return form_floats_; }
  int64_t thread_floats() const { return 2 * staging_floats() + place_floats() + segment_floats(); }
  int64_t packed_floats(const MaskedGemm& p) const {
    return panel_count(p.columns) * PANEL_MAX * terms_.count() * channels_;
  }

  // One unit times all panels of weights; `target` gets its channels here.
  void multiply(const Region& region, int64_t pitch, const float* forms, const MaskedGemm& product, const float* weights,
                Target target, float* scratch) const {
    float* const pixels = scratch;
    float* const shared = pixels + staging_floats();
    const float** const places = reinterpret_cast<const float**>(shared + staging_floats());
    Segment* const segments = reinterpret_cast<Segment*>(shared + staging_floats() + place_floats());
    const int64_t C = channels_, pairs = pairs_of(region.columns());
    int64_t segment_counts[PRODUCTS];
    for (int m = 0; m < PRODUCTS; ++m) {
      segment_counts[m] = 0;
      for (int64_t n = 0; n < terms_.count(m); ++n)
        segment_counts[m] += cut_segment({term_offset(terms_.term(m, n), pitch), C},
                                         segments + m * segments_max_ + segment_counts[m]);
    }
    for (int64_t p = 0; p < panel_count(product.columns); ++p) {
      const Panel panel = make_panel(product, p);
      const int64_t width = panel.width();
      target.first_channel = panel.first;
      target.channels = panel.columns;
      for (int64_t y = region.y0; y < region.y1; y += group_lines_) {
        const Region lines{y, min64(y + group_lines_, region.y1), region.x0, region.x1};
        const int64_t count = lines.rows() * pairs;
        for (int64_t i = 0; i < count; ++i)
          places[i] = forms + ((y - region.y0 + i / pairs) * pitch + i % pairs * 2) * C;
        const float* packed = weights + p * PANEL_MAX * terms_.count() * C;
        for (int m = 0; m < PRODUCTS; ++m) {
          float* const out = m == 0 ? pixels : m == 1 ? shared : m == 2 ? shared + width : pixels + width;
          for_row_tiles(count, [&](int64_t first, int64_t rows) {
            tile_function(TileMode::write, static_cast<int>(rows), panel.nr)(
                places + first, segments + m * segments_max_, segment_counts[m], packed, out + first * 2 * width,
                2 * width);
          });
          packed += terms_.count(m) * C * width;
        }
        add_up(count, width, pixels, shared);
        if (region.columns() % 2 == 0) {
          store_panel(target, lines, pixels, width);
        } else {
          for (int64_t line = 0; line < lines.rows(); ++line)
            store_panel(target, {y + line, y + line + 1, lines.x0, lines.x1}, pixels + line * pairs * 2 * width, width);
        }
      }
    }
  }

  // Where a term's pixels begin for the first pair of a unit.
  int64_t term_offset(const PairTerm& t, int64_t pitch) const {
    return t.form * form_floats_ + ((origin_row_ + t.row) * pitch + origin_column_ + t.column) * channels_;
  }

 private:
  int64_t staging_floats() const { return group_pairs_ * 2 * PANEL_MAX; }
  int64_t place_floats() const { return Scratch::round(group_pairs_ * sizeof(float*) / sizeof(float)); }
  int64_t segment_floats() const {
    return Scratch::round(PRODUCTS * segments_max_ * (sizeof(Segment) / sizeof(float)));
  }

  const PairTerms& terms_;
  int64_t channels_, origin_row_, origin_column_;
  int64_t pitch_max_, form_floats_, group_lines_, group_pairs_, segments_max_;
};

// Panel `index` of the weights, looked at.
inline void pack_pairs(const WeightView& w, const MaskedConv& c, const PairTerms& terms, const MaskedGemm& p, int64_t index,
                       Evenness& evenness, float* packed) {
  GK_BY_STORAGE(w.storage, pack_pair_panel, w, c, terms, p, index, packed);
  const Panel panel = make_panel(p, index);
  const int64_t floats = terms.count() * p.reductions;
  // Results at the image's edge read some of the taps alone.
  evenness.look_at(packed + index * PANEL_MAX * floats, floats * panel.width(), floats * panel.columns);
}

inline Outcome masked_conv_forward_pairs(const MaskedConvForward& args, int threads) {
  const MaskedConv& c = args.conv;
  const int64_t C = c.in_channels;
  const PairTerms terms(c, sees_centre(c));
  const MaskedGemm product{c.out_channels, C, args.weight.stride_out, args.weight.stride_in, c.out_order, c.in_order,
                        nullptr, c.centre_end, /*centre_first=*/false};
  const Tiling tiling = make_tiling(c, FORMS * C, threads);
  const PairUnits units(c, terms, tiling, C, c.reach_up(), c.reach_left());
  const int64_t forms_floats = FORMS * units.form_floats();
  const ForwardScratch scratch(args, units.packed_floats(product), forms_floats + units.thread_floats(), threads);
  if (!scratch) return Outcome::no_memory;
  Evenness evenness;
  float* const weights = scratch.weights();

#pragma omp parallel num_threads(threads)
  {
    float* const forms = scratch.own();
#pragma omp for
    for (int64_t p = 0; p < panel_count(c.out_channels); ++p)
      pack_pairs(args.weight, c, terms, product, p, evenness, weights);

#pragma omp for schedule(dynamic) nowait
    for (int64_t unit = 0; unit < tiling.units; ++unit) {
      if (evenness.refused()) continue;
      int64_t image;
      const Region region = tiling.region(c, unit, &image);
      const Region bordered{region.y0 - c.reach_up(), region.y1, region.x0 - c.reach_left(),
                            region.x0 + 2 * PairUnits::pairs_of(region.columns()) + c.reach_right()};
      load_pixels({args.x, image, C, c.height, c.width, c.in_order, nullptr}, bordered, forms);
      evenness.look_for_large(forms, bordered.pixels() * C);
      make_forms(forms, units.form_floats(), bordered.pixels() * C, C);
      units.multiply(region, bordered.columns(), forms, product, weights,
                     {args.y, image, 0, 0, c.out_order, scratch.bias(), args.relu}, forms + forms_floats);
    }
  }
  return evenness.refused() ? Outcome::uneven : Outcome::done;
}

}  // namespace gk::GK_ISA
