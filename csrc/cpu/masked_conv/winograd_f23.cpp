// Winograd F(2,3) and F(2,2) forward pass of the masked convolution: two pixels of a line at a time, with fewer
// multiplications.
//
// Two neighbouring outputs of n taps in a line, a tile, take n + 1 products of sums instead of 2 n (d: the pixels from
// the first tap of the first output on, g: the weights):
//   3 taps   y0 = m0 + m1 + m2          m0 = (d2 - d0) (-g0)             m1 = (d1 + d2) (g0 + g1 + g2) / 2
//            y1 = m1 - m2 + m3          m2 = (d2 - d1) (g0 - g1 + g2)/2  m3 = (d3 - d1) g2
//   2 taps   y0 = m0 + m1, y1 = m1 + m3     m0 = (d1 - d0) (-g0),  m1 = d1 (g0 + g1),  m3 = (d2 - d1) g1
//   1 tap    y0 = m0, y1 = m3               m0 = d0 g0,  m3 = d1 g0
// A line of live taps is cut into pieces of three and two. An output is made of products of its own live pixels alone,
// so that the mask holds to the last bit. Numbers that are not finite, or so large that their sums might not be, take
// the direct product (core/evenness.h), and so does everything with GENKERNELS_WINOGRAD=0.
//
// Tiling: a task is some rows of one image, brought into scratch as [row][column][channel] and from there to four
// transformed copies, which serve all pieces: x, and x[j+1] - x[j], x[j+1] + x[j], x[j+2] - x[j]. Each of m0 .. m3 is
// then a gemm_tile with tiles as rows and pieces as segments of the copies; the four are staged in L1, added up and
// stored.
// Traffic: as the direct product's, and the copies in L2: 4 C floats a pixel written once, read once per panel.
// Bound: the multiply-adds, 7 instead of 10 for two outputs of a 3x3 B, 36 instead of 50 of a 7x7 B
// (measured 1.2 to 1.3 times as fast as the direct product; errors 0.3 to 1.1 times PyTorch's). Tried without gain:
// tasks of half as much scratch again.
//
// Source: Winograd 1980, Arithmetic Complexity of Computations; Lavin, Gray 2016, section 4.
#include "cpu/masked_conv/winograd_f23.h"

#include "cpu/masked_conv/implementations.h"

namespace gk::GK_ISA::masked_conv {
namespace {

bool sees_centre(const MaskedConv& c) { return c.centre_end[0] == c.in_channels; }

// Where there is something to save, and enough channels for that to outweigh the sums.
bool suits(const MaskedConv& c) {
  if (!allows_winograd()) return false;
  const int64_t live = c.full_taps() + sees_centre(c);
  if (c.in_channels < 32 || c.out_channels < 32 || c.width < 2 || c.dilation_w != 1 || live > TAPS_MOST) return false;
  for (int64_t o = 0; o < c.out_channels; ++o)
    if (c.centre_end[o] != (sees_centre(c) ? c.in_channels : 0)) return false;
  return WinogradTerms(c, output_gemm(c, {})).count() * 8 <= live * 2 * 7;
}

template <class T>
void transform_panel(const WeightView& w, const MaskedConv& c, const WinogradTerms& terms, const MaskedGemm& p,
                     int64_t index, float* packed) {
  const Panel panel = panel_at(p.columns, index);
  const int64_t C = p.channels, width = panel.width(), live = c.full_taps() + sees_centre(c);
  float* const out = packed + index * PANEL_MAX * terms.count() * C;
  const auto from = [&](int64_t k, int64_t lane) {
    const int64_t j = panel.first + lane;
    return static_cast<const T*>(w.data) + (p.column_order ? p.column_order[j] : j) * p.column_stride +
           (p.channel_order ? p.channel_order[k] : k) * p.channel_stride;
  };
  const bool by_taps = w.stride_tap == 1 && ceil_div(live, IO) * IO <= c.kernel_h * c.kernel_w;  // blocks stay inside
  for (int64_t k = 0; k < C; k += IO)
    for (int64_t lane = 0; lane < width; lane += IO) {
      const int64_t channels = min64(IO, C - k);
      Block g[IO][TAPS_MOST + IO];  // of IO channels, all live taps of IO columns
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
      } else if (p.channel_stride == 1 && !p.channel_order && channels == IO && lane + IO <= panel.columns) {
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
          const WinogradTerm& term = terms.term(product, n);
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

// [tile][m0 | m3][column] and [tile][m1 | m2][column] to the pixels, in the place of the former.
void transform_output(int64_t tiles, int64_t width, float* pixels, const float* shared) {
  for (int64_t i = 0; i < tiles; ++i, pixels += 2 * width, shared += 2 * width)
    for (int64_t j = 0; j < width; j += VL) {
      const Vec m1 = load(shared + j), m2 = load(shared + width + j);
      store(pixels + j, load(pixels + j) + (m1 + m2));
      store(pixels + width + j, load(pixels + width + j) + (m1 - m2));
    }
}

}  // namespace

WinogradTerms::WinogradTerms(const MaskedConv& c, const MaskedGemm& gemm) {
  for (int64_t row = 0; row <= c.kernel_h / 2; ++row) {
    int64_t tap = row * c.kernel_w, left = row < c.kernel_h / 2 ? c.kernel_w : c.kernel_w / 2 + sees_centre(c);
    for (int64_t taps; left > 0; tap += taps, left -= taps) {
      taps = left >= 3 && left != 4 ? 3 : min64(left, 2);
      add_piece((row - c.kernel_h / 2) * c.dilation_h, tap % c.kernel_w - c.kernel_w / 2, tap, taps, gemm.mirrored);
    }
  }
}

void WinogradTerms::add_piece(int64_t row, int64_t column, int64_t tap, int64_t taps, bool mirrored) {
  int64_t first = tap, last = tap + taps - 1;  // the weights of the piece's first pixel and of its last
  if (mirrored) {
    row = -row;
    column = 1 - column - taps;
    first = last;
    last = tap;
  }
  if (taps == 1) {
    add(0, {Input::plain, row, column, tap, 1, 1, 0});
    add(3, {Input::plain, row, column + 1, tap, 1, 1, 0});
    return;
  }
  const Input outer = taps == 3 ? Input::reach : Input::difference;
  const float half = taps == 3 ? 0.5f : 1;
  add(0, {outer, row, column, first, 1, -1, 0});
  add(1, {taps == 3 ? Input::sum : Input::plain, row, column + 1, tap, taps, half, half});
  if (taps == 3) add(2, {Input::difference, row, column + 1, tap, 3, 0.5f, -0.5f});
  add(3, {outer, row, column + 1, last, 1, 1, 0});
}

void transform_weights(const WeightView& w, const MaskedConv& c, const WinogradTerms& terms, const MaskedGemm& gemm,
                       int64_t index, Evenness& evenness, float* packed) {
  GK_BY_STORAGE(w.storage, transform_panel, w, c, terms, gemm, index, packed);
  const Panel panel = panel_at(gemm.columns, index);
  const int64_t floats = terms.count() * gemm.channels;
  // Results at the image's edge read some of the taps alone.
  evenness.look_at(packed + index * PANEL_MAX * floats, floats * panel.width(), floats * panel.columns);
}

WinogradProducts::WinogradProducts(const MaskedConv& c, const MaskedGemm& gemm, const Tasks& tasks, int64_t origin_row,
                                   int64_t origin_column)
    : gemm_(gemm), terms_(c, gemm), origin_row_(origin_row), origin_column_(origin_column) {
  const int64_t pixels = bordered_pixels(c, tasks, 2 * tiles_of(tasks.columns));
  copy_floats_ = Scratch::round((pixels + 2) * gemm.channels + VL);
  group_lines_ = max64(1, STAGED_PIXELS / tasks.columns);
  group_tiles_ = min64(group_lines_, tasks.rows) * tiles_of(tasks.columns);
  segments_most_ = TAPS_MOST * most_segments(gemm.channels);
}

void WinogradProducts::take_scratch(ScratchLayout& own) {
  pixels_ = own.take<float>(group_tiles_ * 2 * PANEL_MAX);
  shared_ = own.take<float>(group_tiles_ * 2 * PANEL_MAX);
  rows_ = own.take<const float*>(group_tiles_);
  segments_ = own.take<Segment>(PRODUCTS * segments_most_);
}

void WinogradProducts::transform_input(float* input, int64_t pixels) const {
  const int64_t C = gemm_.channels;
  float *const difference = input + static_cast<int>(Input::difference) * copy_floats_,
               *const sum = input + static_cast<int>(Input::sum) * copy_floats_,
               *const reach = input + static_cast<int>(Input::reach) * copy_floats_;
  for (int64_t i = 0; i < pixels * C; i += VL) {
    const Vec here = load(input + i), next = load(input + i + C), after = load(input + i + 2 * C);
    store(difference + i, next - here);
    store(sum + i, next + here);
    store(reach + i, after - here);
  }
}

void WinogradProducts::multiply(const Region& region, int64_t pitch, const float* input, const float* weights,
                                Target target, const Scratch& scratch) const {
  const float** const rows = scratch.own(rows_);
  const int64_t tiles = tiles_of(region.columns());
  Indirection taps[PRODUCTS];
  for (int m = 0; m < PRODUCTS; ++m) {
    Segment* const segments = scratch.own(segments_) + m * segments_most_;
    taps[m] = {segments, 0};
    for (int64_t n = 0; n < terms_.count(m); ++n)
      taps[m].count += cut_segment({term_offset(terms_.term(m, n), pitch), gemm_.channels}, segments + taps[m].count);
  }
  for (int64_t p = 0; p < panel_count(gemm_.columns); ++p) {
    const Panel panel = panel_at(gemm_.columns, p);
    target.first_channel = panel.first;
    target.channels = panel.columns;
    for (int64_t y = region.y0; y < region.y1; y += group_lines_) {
      const Region lines{y, min64(y + group_lines_, region.y1), region.x0, region.x1};
      for (int64_t i = 0; i < lines.rows() * tiles; ++i)
        rows[i] = input + ((y - region.y0 + i / tiles) * pitch + i % tiles * 2) * gemm_.channels;
      multiply_panel(panel, lines.rows() * tiles, taps, rows, weights + p * PANEL_MAX * terms_.count() * gemm_.channels,
                     scratch);
      const float* const pixels = scratch.own(pixels_);
      if (region.columns() % 2 == 0) {
        store_panel(target, lines, pixels, panel.width());
      } else {
        for (int64_t line = 0; line < lines.rows(); ++line)
          store_panel(target, {y + line, y + line + 1, lines.x0, lines.x1}, pixels + line * tiles * 2 * panel.width(),
                      panel.width());
      }
    }
  }
}

// The pixels of `tiles` tiles, of which rows[i] is the first one's address in the plain copy.
void WinogradProducts::multiply_panel(const Panel& panel, int64_t tiles, const Indirection* taps,
                                      const float* const* rows, const float* weights, const Scratch& scratch) const {
  const int64_t width = panel.width();
  float *const pixels = scratch.own(pixels_), *const shared = scratch.own(shared_);
  float* const products[PRODUCTS] = {pixels, shared, shared + width, pixels + width};
  for (int m = 0; m < PRODUCTS; ++m) {
    for_row_tiles(tiles, [&](int64_t first, int64_t count) {
      tile_function(TileMode::write, static_cast<int>(count), panel.nr)(
          rows + first, taps[m].segments, taps[m].count, weights, products[m] + first * 2 * width, 2 * width);
    });
    weights += terms_.count(m) * gemm_.channels * width;
  }
  transform_output(tiles, width, pixels, shared);
}

bool winograd_f23_suits(const MaskedConvForward& args) { return suits(args.conv); }
bool winograd_f23_suits(const MaskedConvBackward& args) { return suits(args.conv); }

Outcome winograd_f23_forward(const MaskedConvForward& args) {
  const MaskedConv& c = args.conv;
  const int threads = useful_threads(c, args.threads);
  const Tasks tasks = make_tasks(c, INPUTS * c.in_channels, threads);
  WinogradProducts products(c, output_gemm(c, args.weight), tasks, c.reach_up(), c.reach_left());

  ScratchLayout shared, own;
  const auto for_weights = shared.take<float>(products.packed_floats());
  const auto for_bias = shared.take<float>(c.out_channels);
  const auto for_input = own.take<float>(products.input_floats());
  products.take_scratch(own);
  const Scratch scratch(shared, own, threads);
  if (!scratch.data()) return Outcome::no_memory;
  float* const weights = scratch.shared(for_weights);
  const float* const bias = prepare_output(args, scratch.shared(for_bias));
  Evenness evenness;

#pragma omp parallel num_threads(threads)
  {
    float* const input = scratch.own(for_input);
#pragma omp for
    for (int64_t p = 0; p < panel_count(c.out_channels); ++p)
      transform_weights(args.weight, c, products.terms(), products.gemm(), p, evenness, weights);

#pragma omp for schedule(dynamic) nowait
    for (int64_t index = 0; index < tasks.count; ++index) {
      if (evenness.refused()) continue;
      const Task task = tasks.at(c, index);
      const Region bordered = input_region(c, in_tiles(task.region));
      load_pixels({args.x, task.image, c.in_channels, c.height, c.width, c.in_order, nullptr}, bordered, input);
      evenness.look_for_large(input, bordered.pixels() * c.in_channels);
      products.transform_input(input, bordered.pixels());
      products.multiply(task.region, bordered.columns(), input, weights,
                        {args.y, task.image, 0, 0, c.out_order, bias, args.relu}, scratch);
    }
  }
  return evenness.refused() ? Outcome::uneven : Outcome::done;
}

}  // namespace gk::GK_ISA::masked_conv
