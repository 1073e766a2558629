// Winograd F(2,3) and F(2,2) gradients of the masked convolution, with as few multiplications as the forward pass of
// masked_conv/winograd_f23.cpp.
//
//   grad_x       the forward pass over grad_y, with the taps mirrored.
//   grad_weight  the products of the forward pass the other way round: y0 = m0 + m1 + m2 and y1 = m1 - m2 + m3, so that
//                their gradients are dm0 = dy0, dm1 = dy0 + dy1, dm2 = dy0 - dy1, dm3 = dy1, and each weight sum of a
//                term has as gradient the sum over all tiles of the term's transformed input times dm. The weights'
//                gradients are put together from these at the end, by the factors that packed them.
//
// Tiling: a task is some rows of one image. Its grad_y comes into scratch as [row][column][channel], transformed for
// grad_x, and as the four dm, packed per panel of output channels; then x, transformed, takes that place. A register
// tile of grad_weight has six input channels of one term as rows, which stand side by side at each pixel, and sums over
// all tiles of the task; the sums stand in each thread's own buffer, [term][in][out], and are added in thread order at
// the end.
// Traffic: grad_y (and y), x and grad_x once; transformed copies and packed panels in L2, a panel of dm
// (task pixels / 2 * PANEL floats) in L1. Bound: the multiply-adds, 7 instead of 10 for a 3x3 B
// (measured 1.2 to 1.5 times as fast as the direct products of masked_conv/direct_backward.cpp).
#include "cpu/masked_conv/gradient.h"
#include "cpu/masked_conv/implementations.h"
#include "cpu/masked_conv/winograd_f23.h"

namespace gk::GK_ISA::masked_conv {
namespace {

// sums[i][j] += sum over lines and tiles of a[line * a_line + tile * a_step + i] * panel[line * tiles + tile][j].
template <int MR, int NR>
void outer_tile(const float* a, int64_t a_step, int64_t a_line, const float* panel, int64_t lines, int64_t tiles,
                float* sums, int64_t sums_stride) {
  Vec acc[MR][NR];
  GK_UNROLL for (int i = 0; i < MR; ++i)
    GK_UNROLL for (int j = 0; j < NR; ++j) acc[i][j] = load(sums + i * sums_stride + j * VL);
  for (int64_t line = 0; line < lines; ++line, a += a_line) {
    const float* at = a;
    GK_TWICE for (int64_t k = 0; k < tiles; ++k, at += a_step, panel += NR * VL) {
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

using OuterTile = void (*)(const float*, int64_t, int64_t, const float*, int64_t, int64_t, float*, int64_t);

OuterTile outer_tile_of(int64_t mr, int64_t nr) {
#define GK_TILE(mr_, nr_) outer_tile<mr_, nr_>
  static constexpr OuterTile table[NR_MAX][MR_MAX] = GK_TILE_TABLE;
#undef GK_TILE
  return table[nr - 1][mr - 1];
}

// The gradients of m0 .. m3 for one panel: packed[m][tile][panel.width()], and their sum over the pixels to `bias`.
// `gradient` stands at the task's first pixel; a line of an odd number of pixels has a zero behind it.
void transform_gradient(const Region& region, const float* gradient, int64_t pitch, int64_t channels,
                        const Panel& panel, float* packed, float* bias) {
  const int64_t tiles = tiles_of(region.columns()), width = panel.width();
  const int64_t product = region.rows() * tiles * width;
  const auto read = [&](const float* from, int64_t j) {
    if (j + VL <= panel.columns) return load(from + j);
    Vec v{};
    memcpy(&v, from + j, (panel.columns - j) * sizeof(float));
    return v;
  };
  Vec sum[NR_MAX] = {};
  for (int64_t y = 0; y < region.rows(); ++y)
    for (int64_t x = 0; x < tiles; ++x, packed += width) {
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

// Adds the task's part of one panel's sums: [term][in][out], the terms of m0 first.
void accumulate_weight(const Region& region, const WinogradProducts& products, const float* input, int64_t pitch,
                       const Panel& panel, const float* packed, float* sums, int64_t sums_stride) {
  const WinogradTerms& terms = products.terms();
  const int64_t tiles = tiles_of(region.columns()), lines = region.rows(), channels = products.gemm().channels;
  for (int m = 0; m < PRODUCTS; ++m, packed += lines * tiles * panel.width())
    for (int64_t n = 0; n < terms.count(m); ++n, sums += channels * sums_stride) {
      const float* const a = input + products.term_offset(terms.term(m, n), pitch);
      for_row_tiles(channels, [&](int64_t first, int64_t rows) {
        outer_tile_of(rows, panel.nr)(a + first, 2 * channels, pitch * channels, packed, lines, tiles,
                                      sums + first * sums_stride, sums_stride);
      });
    }
}

// As make_tasks, with an even number of columns where lines are cut: a tile belongs to one task.
Tasks make_tile_tasks(const MaskedConv& c, int64_t floats_per_pixel, int threads) {
  Tasks t = make_tasks(c, floats_per_pixel, threads);
  if (t.column_blocks > 1) t.columns += t.columns % 2;
  t.column_blocks = ceil_div(c.width, t.columns);
  t.count = c.batch * t.row_blocks * t.column_blocks;
  return t;
}

class WinogradBackward {
 public:
  explicit WinogradBackward(const MaskedConvBackward& args)
      : args_(args),
        c_(args.conv),
        threads_(useful_threads(c_, args.threads)),
        tasks_(make_tile_tasks(c_, floats_per_pixel(), threads_)),
        to_x_(c_, input_gradient_gemm(c_, args.weight), tasks_, 0, c_.reach_right()),
        to_y_(c_, output_gemm(c_, args.weight), tasks_, c_.reach_up(), c_.reach_left()),
        sums_(args, to_y_.terms().count() * c_.in_channels, own_) {
    packed_panel_ = PRODUCTS * tasks_.rows * tiles_of(tasks_.columns) * PANEL_MAX;
    weights_ = shared_.take<float>(needs_x(args_) ? to_x_.packed_floats() : 0);
    input_ = own_.take<float>(max64(to_x_.input_floats(), needs_weight(args_) ? to_y_.input_floats() : 0));
    packed_ = own_.take<float>(packed_panel_ * panel_count(c_.out_channels));
    to_x_.take_scratch(own_);
  }

  Outcome run() { return run_backward(*this, args_, tasks_, sums_, shared_, own_, threads_); }

  void pack_weights(int64_t p, const Scratch& scratch) {
    transform_weights(args_.weight, c_, to_x_.terms(), to_x_.gemm(), p, evenness_, scratch.shared(weights_));
  }
  bool refused() const { return evenness_.refused(); }

  int64_t floats_per_pixel() const {
    const int64_t C = c_.in_channels, O = c_.out_channels;
    return max64(needs_x(args_) ? INPUTS * O : O, needs_weight(args_) ? INPUTS * C : 0) + PRODUCTS / 2 * O;
  }

  void run_task(const Task& task, const Scratch& scratch) {
    const int64_t O = c_.out_channels;
    const Region below = gradient_region(c_, in_tiles(task.region));
    float* const input = scratch.own(input_);
    load_pixels({args_.grad_y, task.image, O, c_.height, c_.width, c_.out_order, args_.relu ? &args_.y : nullptr},
                below, input);
    if (needs_weight(args_))
      look(input, below, O);
    else
      evenness_.look_for_large(input, below.pixels() * O);
    for (int64_t p = 0; (needs_weight(args_) || args_.grad_bias) && p < panel_count(O); ++p)
      transform_gradient(task.region, input + c_.reach_right() * O, below.columns(), O, panel_at(O, p),
                         scratch.own(packed_) + p * packed_panel_, scratch.own(sums_.bias) + p * PANEL_MAX);
    if (needs_x(args_)) {
      to_x_.transform_input(input, below.pixels());
      to_x_.multiply(task.region, below.columns(), input, scratch.shared(weights_),
                     {args_.grad_x, task.image, 0, 0, c_.in_order, nullptr, /*relu=*/false}, scratch);
    }
    if (needs_weight(args_)) add_weight_gradient(task, scratch);
  }

  void add_weight_gradient(const Task& task, const Scratch& scratch) {
    const Region above = input_region(c_, in_tiles(task.region));
    float* const input = scratch.own(input_);
    load_pixels({args_.x, task.image, c_.in_channels, c_.height, c_.width, c_.in_order, nullptr}, above, input);
    look(input, above, c_.in_channels);
    to_y_.transform_input(input, above.pixels());
    for (int64_t p = 0; p < panel_count(c_.out_channels); ++p)
      accumulate_weight(task.region, to_y_, input, above.columns(), panel_at(c_.out_channels, p),
                        scratch.own(packed_) + p * packed_panel_, scratch.own(sums_.weight) + p * PANEL_MAX,
                        sums_.stride);
  }

  // The sums of neighbouring taps are mixed, and with them what reaches one of the taps alone.
  void look(const float* input, const Region& r, int64_t channels) {
    const int64_t rows = min64(r.y1, c_.height) - max64(r.y0, 0), columns = min64(r.x1, c_.width) - max64(r.x0, 0);
    evenness_.look_at(input, r.pixels() * channels, rows * columns * channels);
  }

  // Puts the taps of input channel k together for a panel: to[tap][PANEL_MAX] += each term's sum over all threads.
  void sum_taps(const Scratch& scratch, int team, int64_t p, int64_t k, float* to) const {
    const WinogradTerms& terms = to_y_.terms();
    const int nr = panel_at(c_.out_channels, p).nr;
    const float* from = scratch.own(sums_.weight, 0) + p * PANEL_MAX + k * sums_.stride;
    for (int m = 0; m < PRODUCTS; ++m)
      for (int64_t n = 0; n < terms.count(m); ++n, from += c_.in_channels * sums_.stride) {
        const WinogradTerm& term = terms.term(m, n);
        for (int j = 0; j < nr; ++j) {
          const Vec total = sum_threads(from + j * VL, scratch.thread_stride(), team);
          for (int64_t t = 0; t < term.taps; ++t) {
            float* const tap = to + (term.tap + t) * PANEL_MAX + j * VL;
            store(tap, load(tap) + total * (t == 1 ? term.second : term.first));
          }
        }
      }
  }

 private:
  const MaskedConvBackward& args_;
  const MaskedConv& c_;
  int threads_;
  Tasks tasks_;
  WinogradProducts to_x_, to_y_;  // grad_x, and the products of the forward pass, whose terms the weights' sums are of
  ScratchLayout shared_, own_;
  GradientSums sums_;
  int64_t packed_panel_;         // floats of the four dm of a panel
  ScratchArray<float> weights_;  // transformed for grad_x
  ScratchArray<float> input_;    // grad_y, then x, with their transformed copies
  ScratchArray<float> packed_;   // dm0 .. dm3 by panel
  Evenness evenness_;
};

}  // namespace

Outcome winograd_f23_backward(const MaskedConvBackward& args) { return WinogradBackward(args).run(); }

}  // namespace gk::GK_ISA::masked_conv
