// The gradients two pixels of a line at a time, with as few multiplications as the forward pass of masked_conv/winograd_f23.cpp.
//
//   grad_x       the forward pass over grad_y, with the taps mirrored.
//   grad_weight  the products of the forward pass the other way round: y0 = m0 + m1 + m2 and y1 = m1 - m2 + m3, so that
//                their gradients are dm0 = dy0, dm1 = dy0 + dy1, dm2 = dy0 - dy1, dm3 = dy1, and each weight sum of a
//                term has as gradient the sum over all pairs of the term's form times dm. The weights' gradients are
//                put together from these at the end, by the factors that packed them.
//
// Tiling: a unit is some rows of one image. Its grad_y comes into scratch as [row][column][channel], in four forms for
// grad_x, and as the four dm, packed per panel of output channels; then x in its four forms takes that place. A tile of
// grad_weight has six input channels of one term as rows, which stand side by side at each pixel, and walks all pairs
// of the unit; the sums stand in each thread's own buffer, [term][in][out], and are added in thread order at the end.
// Traffic: grad_y (and y), x and grad_x once; forms and packed panels in L2, a panel of dm (unit pixels / 2 * PANEL
// floats) in L1. Bound: the multiply-adds, 7 instead of 10 for a 3x3 B
// (measured 1.2 to 1.5 times as fast as the direct products of masked_conv/direct_backward.cpp).
#pragma once

#include "cpu/masked_conv/gradient.h"
#include "cpu/masked_conv/winograd_f23.cpp"

namespace gk::GK_ISA {

// sums[i][j] += sum over lines and pairs of a[line * a_line + pair * a_step + i] * panel[line * pairs + pair][j].
template <int MR, int NR>
void pairs_outer_tile(const float* a, int64_t a_step, int64_t a_line, const float* panel, int64_t lines, int64_t pairs,
                      float* sums, int64_t sums_stride) {
  Vec acc[MR][NR];
  GK_UNROLL for (int i = 0; i < MR; ++i)
    GK_UNROLL for (int j = 0; j < NR; ++j) acc[i][j] = load(sums + i * sums_stride + j * VL);
  for (int64_t line = 0; line < lines; ++line, a += a_line) {
    const float* at = a;
    GK_TWICE for (int64_t k = 0; k < pairs; ++k, at += a_step, panel += NR * VL) {
      Vec b[NR];
      GK_UNROLL for (int j = 0; j < NR; ++j) b[j] = load(panel + j * VL);
      GK_UNROLL for (int i = 0; i < MR; ++i) {
        const Vec x = broadcast(at[i]);
        GK_UNROLL for (int j = 0; j < NR; ++j) acc[i][j] += x * b[j];
      }
    }
  }
  GK_UNROLL for (int i = 0; i < MR; ++i)
    GK_UNROLL for (int j = 0; j < NR; ++j) store(sums + i * sums_stride + j * VL, acc[i][j]);
}

using PairsOuterTile = void (*)(const float*, int64_t, int64_t, const float*, int64_t, int64_t, float*, int64_t);

inline PairsOuterTile pairs_outer_tile_of(int64_t mr, int64_t nr) {
#define GK_TILE(mr_, nr_) pairs_outer_tile<mr_, nr_>
  static constexpr PairsOuterTile table[NR_MAX][MR_MAX] = GK_TILE_TABLE;
#undef GK_TILE
  return table[nr - 1][mr - 1];
}

// The gradients of m0 .. m3 for one panel: packed[m][pair][panel.width()], and their sum over the pixels to `bias`.
// `gradient` stands at the unit's first pixel; a line of an odd number of pixels has a zero behind it.
inline void pack_pair_gradients(const Region& region, const float* gradient, int64_t pitch, int64_t channels,
                                const Panel& panel, float* packed, float* bias) {
  const int64_t pairs = PairUnits::pairs_of(region.columns()), width = panel.width();
  const int64_t product = region.rows() * pairs * width;
  const auto read = [&](const float* from, int64_t j) {
    if (j + VL <= panel.columns) return load(from + j);
    Vec v{};
    memcpy(&v, from + j, (panel.columns - j) * sizeof(float));
    return v;
  };
  Vec sum[NR_MAX] = {};
  for (int64_t y = 0; y < region.rows(); ++y)
    for (int64_t x = 0; x < pairs; ++x, packed += width) {
      const float* const from = gradient + (y * pitch + 2 * x) * channels + panel.first;
      for (int j = 0; j < panel.nr; ++j) {
        const Vec first = read(from, j * VL), second = read(from + channels, j * VL), both = first + second;
        float* const to = packed + j * VL;
        store(to, first);
        store(to + product, both);
        store(to + 2 * product, first - second);
        store(to + 3 * product, second);
        sum[j] += both;
      }
    }
  for (int j = 0; j < panel.nr; ++j) store(bias + j * VL, load(bias + j * VL) + sum[j]);
}

// Adds the unit's share of one panel's sums: [term][in][out], the terms of m0 first.
inline void accumulate_pairs(const Region& region, const PairUnits& units, const PairTerms& terms, const float* forms,
                             int64_t pitch, int64_t channels, const Panel& panel, const float* packed, float* sums,
                             int64_t sums_stride) {
  const int64_t pairs = PairUnits::pairs_of(region.columns()), lines = region.rows();
  for (int m = 0; m < PRODUCTS; ++m, packed += lines * pairs * panel.width())
    for (int64_t n = 0; n < terms.count(m); ++n, sums += channels * sums_stride) {
      const float* const a = forms + units.term_offset(terms.term(m, n), pitch);
      for_row_tiles(channels, [&](int64_t first, int64_t rows) {
        pairs_outer_tile_of(rows, panel.nr)(a + first, 2 * channels, pitch * channels, packed, lines, pairs,
                                            sums + first * sums_stride, sums_stride);
      });
    }
}

// Puts the taps of input channel k together: buffer[tap][PANEL_MAX] += what each term says of them.
inline void sum_pair_taps(const PairTerms& terms, int64_t k, int64_t channels, const Panel& panel, const float* sums,
                          int64_t sums_stride, int64_t thread_stride, int threads, float* buffer) {
  const float* from = sums + k * sums_stride;
  for (int m = 0; m < PRODUCTS; ++m)
    for (int64_t n = 0; n < terms.count(m); ++n, from += channels * sums_stride) {
      const PairTerm& term = terms.term(m, n);
      for (int j = 0; j < panel.nr; ++j) {
        const Vec total = sum_threads(from + j * VL, thread_stride, threads);
        for (int64_t t = 0; t < term.taps; ++t) {
          float* const to = buffer + (term.tap + t) * PANEL_MAX + j * VL;
          store(to, load(to) + total * (t == 1 ? term.second : term.first));
        }
      }
    }
}

// As make_tiling, with an even number of columns where lines are cut: a pair belongs to one unit.
inline Tiling make_pair_tiling(const MaskedConv& c, int64_t floats_per_pixel, int threads) {
  Tiling t = make_tiling(c, floats_per_pixel, threads);
  if (t.column_blocks > 1) t.columns += t.columns % 2;
  t.column_blocks = ceil_div(c.width, t.columns);
  t.units = c.batch * t.row_blocks * t.column_blocks;
  return t;
}

inline Outcome masked_conv_backward_pairs(const MaskedConvBackward& args, int threads) {
  const MaskedConv& c = args.conv;
  const bool wants_x = args.grad_x.data, wants_weight = args.grad_weight.data, wants_bias = args.grad_bias;
  const int64_t C = c.in_channels, O = c.out_channels;
  const PairTerms terms(c, sees_centre(c)), mirrored(c, sees_centre(c), /*mirrored=*/true);
  const MaskedGemm to_x{C, O, args.weight.stride_in, args.weight.stride_out, c.in_order, c.out_order,
                     nullptr, nullptr, /*centre_first=*/true};
  const MaskedGemm to_weight{O, C, 0, 0, c.out_order, c.in_order, nullptr, c.centre_end, /*centre_first=*/false};

  const int64_t forms_per_pixel = max64(wants_x ? FORMS * O : O, wants_weight ? FORMS * C : 0);
  const Tiling tiling = make_pair_tiling(c, forms_per_pixel + PRODUCTS / 2 * O, threads);
  const PairUnits x_units(c, mirrored, tiling, O, 0, c.reach_right());
  const PairUnits weight_units(c, terms, tiling, C, c.reach_up(), c.reach_left());
  const int64_t forms_floats = FORMS * max64(x_units.form_floats(), wants_weight ? weight_units.form_floats() : 0);
  const int64_t pairs_max = tiling.rows * PairUnits::pairs_of(tiling.columns);
  const int64_t sums_stride = panel_count(O) * PANEL_MAX, packed_floats = PRODUCTS * pairs_max * sums_stride;
  const int64_t sums_floats = wants_weight ? terms.count() * C * sums_stride : 0;
  const int64_t buffer_floats = wants_weight ? Scratch::round(c.kernel_h * c.kernel_w * PANEL_MAX) : 0;
  // Sums first: what is added across threads stands at a fixed distance.
  const int64_t thread_floats = sums_floats + sums_stride + forms_floats + packed_floats + x_units.thread_floats() +
                                buffer_floats;
  const int64_t weight_floats = wants_x ? Scratch::round(x_units.packed_floats(to_x)) : 0;
  const Scratch scratch(weight_floats + threads * thread_floats);
  if (!scratch.data()) return Outcome::no_memory;
  Evenness evenness;
  want_huge_pages(args.grad_x, c.batch * C * c.height * c.width);
  float* const weights = scratch.data();
  float* const first_sums = weights + weight_floats;

  int team = 1;  // the threads that really came
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    team = omp_get_num_threads();
    float* const sums = first_sums + omp_get_thread_num() * thread_floats;
    float* const bias_sums = sums + sums_floats;
    float* const forms = bias_sums + sums_stride;
    float* const packed = forms + forms_floats;
    float* const own = packed + packed_floats;
    float* const buffer = own + x_units.thread_floats();
    memset(sums, 0, (sums_floats + sums_stride) * sizeof(float));
    if (wants_x) {
#pragma omp for
      for (int64_t p = 0; p < panel_count(C); ++p)
        pack_pairs(args.weight, c, mirrored, to_x, p, evenness, weights);
    }

#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < tiling.units; ++unit) {
      if (evenness.refused()) continue;
      int64_t image;
      const Region region = tiling.region(c, unit, &image);
      const int64_t columns = 2 * PairUnits::pairs_of(region.columns());
      const Region below{region.y0, region.y1 + c.reach_up(), region.x0 - c.reach_right(),
                         region.x0 + columns + c.reach_left()};
      const int64_t pitch = below.columns();
      load_pixels({args.grad_y, image, O, c.height, c.width, c.out_order, args.relu ? &args.y : nullptr}, below, forms);
      // The sums of neighbouring taps are mixed, and with them what reaches one of the taps alone.
      const auto look = [&](const Region& r, int64_t channels) {
        const int64_t rows = min64(r.y1, c.height) - max64(r.y0, 0), columns = min64(r.x1, c.width) - max64(r.x0, 0);
        evenness.look_at(forms, r.pixels() * channels, rows * columns * channels);
      };
      if (wants_weight)
        look(below, O);
      else
        evenness.look_for_large(forms, below.pixels() * O);
      for (int64_t p = 0; (wants_weight || wants_bias) && p < panel_count(O); ++p)
        pack_pair_gradients(region, forms + c.reach_right() * O, pitch, O, make_panel(to_weight, p),
                            packed + PRODUCTS * pairs_max * p * PANEL_MAX, bias_sums + p * PANEL_MAX);
      if (wants_x) {
        make_forms(forms, x_units.form_floats(), below.pixels() * O, O);
        x_units.multiply(region, pitch, forms, to_x, weights, {args.grad_x, image, 0, 0, c.in_order, nullptr, false},
                         own);
      }
      if (!wants_weight) continue;
      const Region above{region.y0 - c.reach_up(), region.y1, region.x0 - c.reach_left(),
                         region.x0 + columns + c.reach_right()};
      load_pixels({args.x, image, C, c.height, c.width, c.in_order, nullptr}, above, forms);
      look(above, C);
      make_forms(forms, weight_units.form_floats(), above.pixels() * C, C);
      for (int64_t p = 0; p < panel_count(O); ++p)
        accumulate_pairs(region, weight_units, terms, forms, above.columns(), C, make_panel(to_weight, p),
                         packed + PRODUCTS * pairs_max * p * PANEL_MAX, sums + p * PANEL_MAX, sums_stride);
    }

    if (wants_weight) {
#pragma omp for
      for (int64_t p = 0; p < panel_count(O); ++p) {
        const Panel panel = make_panel(to_weight, p);
        const auto sum_taps = [&](int64_t k, float* to) {
          sum_pair_taps(terms, k, C, panel, first_sums + p * PANEL_MAX, sums_stride, thread_floats, team, to);
        };
        GK_BY_STORAGE(args.grad_weight.storage, write_weight, args, panel, sum_taps, buffer);
      }
    }
  }
  if (wants_bias)
    GK_BY_STORAGE(args.weight.storage, write_bias, args, first_sums + sums_floats, thread_floats, team);
  return evenness.refused() ? Outcome::uneven : Outcome::done;
}

}  // namespace gk::GK_ISA
