// What forward and backward of the masked convolution share: units of work, packed weights, and the product of one
// unit with them.
#pragma once

#include "cpu/core/parallel.h"
#include <omp.h>

#include "cpu/core/gemm_tile.h"
#include "cpu/core/image_io.h"
#include "cpu/masked_conv/masked_conv.h"
#include "cpu/core/scratch.h"

namespace gk::GK_ISA {

// --- units of work: rectangles of output pixels ---

struct Tiling {
  int64_t rows, columns;               // of one unit, at most
  int64_t row_blocks, column_blocks;   // per image
  int64_t units;                       // in all images

  Region region(const MaskedConv& c, int64_t unit, int64_t* image) const {
    const int64_t column = unit % column_blocks, row = unit / column_blocks % row_blocks;
    *image = unit / column_blocks / row_blocks;
    return {row * rows, min64((row + 1) * rows, c.height), column * columns, min64((column + 1) * columns, c.width)};
  }
};

// Results are staged in L1: so many pixels at a time.
constexpr int64_t STAGED_PIXELS = 16 * 1024 / (PANEL_MAX * 4);

// The unit's lines in groups of at most STAGED_PIXELS (at least one line): calls group(lines as a region).
template <class Group>
GK_INLINE void for_line_groups(const Region& r, const Group& group) {
  const int64_t lines = max64(1, STAGED_PIXELS / r.columns());
  for (int64_t y = r.y0; y < r.y1; y += lines) group(Region{y, min64(y + lines, r.y1), r.x0, r.x1});
}

// The most pixels that one of them can have.
inline int64_t staged_pixels(const Tiling& t) { return max64(t.columns, min64(STAGED_PIXELS, t.rows * t.columns)); }

// As many rows as keep `floats_per_pixel` floats for every pixel of the unit and its border within the L2 budget, but
// few enough that all threads have work. Lines too long for the budget are cut into columns.
inline Tiling make_tiling(const MaskedConv& c, int64_t floats_per_pixel, int threads) {
  // Floats: 256 KiB of the 512 KiB that an L2 has at the least; with AVX-512 640 KiB of 1 MiB (backward 5 to 12 %).
  constexpr int64_t budget = (GK_ISA_LEVEL == 2 ? 160 : 64) * 1024;
  const int64_t border = c.reach_left() + c.reach_right();
  Tiling t;
  t.columns = c.width;
  if ((c.reach_up() + 1) * (c.width + border) * floats_per_pixel > budget)
    t.columns = min64(c.width, max64(64, budget / ((c.reach_up() + 1) * floats_per_pixel) - border));
  t.column_blocks = ceil_div(c.width, t.columns);
  t.columns = ceil_div(c.width, t.column_blocks);
  const int64_t fitting = budget / (floats_per_pixel * (t.columns + border)) - c.reach_up();
  const int64_t wanted_blocks = ceil_div(2 * threads, max64(1, c.batch * t.column_blocks));
  const int64_t most = max64(1, min64(fitting, ceil_div(c.height, wanted_blocks)));
  // As many as make the busiest thread's share smallest; a unit's beginning costs as much as a tenth of a row and of
  // each border row.
  const auto share = [&](int64_t rows) {
    return ceil_div(c.batch * t.column_blocks * ceil_div(c.height, rows), threads) * (10 * rows + c.reach_up() + 1);
  };
  int64_t rows = most;
  for (int64_t fewer = most - 1; fewer > 0; --fewer)
    if (share(fewer) < share(rows)) rows = fewer;
  t.row_blocks = ceil_div(c.height, rows);
  t.rows = ceil_div(c.height, t.row_blocks);
  t.row_blocks = ceil_div(c.height, t.rows);
  t.units = c.batch * t.row_blocks * t.column_blocks;
  return t;
}

inline int useful_threads(const MaskedConv& c, int threads) {
  const int64_t work = c.batch * c.height * c.width * c.in_channels * c.out_channels * (c.full_taps() + 1);
  return useful_threads(work, PRODUCTS_PER_THREAD, threads);
}

// --- weights, packed into panels of columns ---

// The convolution written as a product: columns (output channels, or input channels for the input gradient) against
// reduction channels at a list of taps.
struct MaskedGemm {
  int64_t columns, reductions;
  int64_t column_stride, reduction_stride;           // of the weight, in elements
  const int32_t *column_order, *reduction_order;
  const int32_t *centre_lo, *centre_hi;              // live reductions at the centre, per column; nullptr: 0 / all
  bool centre_first;                                 // where the centre stands among the taps
};

inline int64_t panel_count(int64_t columns) { return ceil_div(columns, PANEL_MAX); }

struct Panel {
  int64_t first, columns;   // the channels it holds
  int nr;                   // its width in vectors
  int64_t lo, hi;           // live reductions at the centre, for any of its columns
  int64_t width() const { return int64_t{nr} * VL; }
};

inline Panel make_panel(const MaskedGemm& p, int64_t index) {
  Panel panel;
  panel.first = index * PANEL_MAX;
  panel.columns = min64(PANEL_MAX, p.columns - panel.first);
  panel.nr = static_cast<int>(ceil_div(panel.columns, VL));
  panel.lo = p.reductions;
  panel.hi = 0;
  for (int64_t j = panel.first; j < panel.first + panel.columns; ++j) {
    panel.lo = min64(panel.lo, p.centre_lo ? p.centre_lo[j] : 0);
    panel.hi = max64(panel.hi, p.centre_hi ? p.centre_hi[j] : p.reductions);
  }
  if (panel.lo >= panel.hi) panel.lo = panel.hi = 0;
  return panel;
}

inline int64_t packed_floats(const MaskedGemm& p, int64_t taps) {
  return panel_count(p.columns) * PANEL_MAX * (taps + 1) * p.reductions;
}

// Panel `index` of the weights: [tap][reduction][column of the panel], dead centre entries zero.
template <class T>
void pack_panel(const WeightView& w, const MaskedGemm& p, const MaskedConv& c, int64_t index, float* packed) {
  const Panel panel = make_panel(p, index);
  const int64_t taps = c.full_taps(), width = panel.width(), centre = panel.hi - panel.lo;
  float* const out = packed + index * PANEL_MAX * (taps + 1) * p.reductions;
  float* const at_centre = p.centre_first ? out : out + taps * p.reductions * width;
  float* const at_taps = p.centre_first ? out + centre * width : out;
  // With the centre first the taps run backwards, so that neighbours in memory stay neighbours.
  const auto place = [&](int64_t tap, int64_t k, int64_t lane) {
    if (tap == taps) return at_centre + (k - panel.lo) * width + lane;
    return at_taps + ((p.centre_first ? taps - 1 - tap : tap) * p.reductions + k) * width + lane;
  };
  const auto from = [&](int64_t k, int64_t lane) {
    const int64_t j = panel.first + lane;
    return static_cast<const T*>(w.data) + (p.column_order ? p.column_order[j] : j) * p.column_stride +
           (p.reduction_order ? p.reduction_order[k] : k) * p.reduction_stride;
  };
  const auto seen = [&](int64_t k) { return k >= panel.lo && k < panel.hi; };
  // Taps are neighbours in a contiguous weight: IO columns x IO taps are turned at once. Reading whole blocks must
  // stay inside the kernel, which it does from 3x3 on.
  const bool blocks = w.stride_tap == 1 && ceil_div(taps + 1, IO) * IO <= c.kernel_h * c.kernel_w;
  for (int64_t lane = 0; lane < width; lane += IO) {
    if (blocks && lane + IO <= panel.columns) {
      for (int64_t k = 0; k < p.reductions; ++k)
        for (int64_t t = 0; t <= taps; t += IO) {
          Block v[IO];
          GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_block(from(k, lane + i) + t);
          transpose(v);
          for (int64_t i = 0; i < min64(IO, taps + seen(k) - t); ++i) store_block(place(t + i, k, lane), v[i]);
        }
      continue;
    }
    for (int64_t i = lane; i < lane + IO; ++i)
      for (int64_t k = 0; k < p.reductions; ++k)
        for (int64_t t = 0; t < taps + seen(k); ++t)
          *place(t, k, i) = i < panel.columns ? load_one(from(k, i) + t * w.stride_tap) : 0.0f;
  }
  // Zero what a column's own groups do not see, in panels where groups meet.
  for (int64_t lane = 0; lane < panel.columns; ++lane) {
    const int64_t j = panel.first + lane;
    for (int64_t k = panel.lo; k < min64(panel.hi, p.centre_lo ? p.centre_lo[j] : 0); ++k) *place(taps, k, lane) = 0;
    for (int64_t k = max64(panel.lo, p.centre_hi ? p.centre_hi[j] : panel.hi); k < panel.hi; ++k)
      *place(taps, k, lane) = 0;
  }
}

// Writes a run of any length as segments and returns their number, at most most_segments(length).
inline int64_t cut_segment(const Segment& run, Segment* segments) {
  int64_t count = 0;
  for (int64_t done = 0; done < run.length; done += SEGMENT_MAX)
    segments[count++] = {run.offset + done, min64(SEGMENT_MAX, run.length - done)};
  return count;
}
inline int64_t most_segments(int64_t length) { return ceil_div(length, SEGMENT_MAX); }

// The taps of one panel as segments of a pixel row in scratch; taps that lie side by side become one segment.
// `base` is the place of the tap (0, 0), `pitch` the pixels of a scratch line; `direction` -1 mirrors the taps.
inline int64_t make_segments(const MaskedConv& c, const MaskedGemm& p, const Panel& panel, int64_t base, int64_t pitch,
                             int64_t direction, Segment* segments) {
  int64_t count = 0;
  const auto add = [&](int64_t offset, int64_t length) {
    Segment* const last = count > 0 ? segments + count - 1 : nullptr;
    if (last && last->offset + last->length == offset && last->length + length <= SEGMENT_MAX)
      last->length += length;
    else
      count += cut_segment({offset, length}, segments + count);
  };
  const auto add_tap = [&](int64_t t) {
    const int64_t dy = (t / c.kernel_w - c.kernel_h / 2) * c.dilation_h;
    const int64_t dx = (t % c.kernel_w - c.kernel_w / 2) * c.dilation_w;
    add((base + direction * (dy * pitch + dx)) * p.reductions, p.reductions);
  };
  const int64_t taps = c.full_taps();
  if (p.centre_first) add(base * p.reductions + panel.lo, panel.hi - panel.lo);
  for (int64_t t = 0; t < taps; ++t) add_tap(p.centre_first ? taps - 1 - t : t);
  if (!p.centre_first) add(base * p.reductions + panel.lo, panel.hi - panel.lo);
  return count;
}

// One value per channel (a bias) to float32, in group order.
template <class T>
void read_channels(const void* values, const int32_t* order, int64_t channels, float* out) {
  for (int64_t i = 0; i < channels; ++i) out[i] = load_one(static_cast<const T*>(values) + (order ? order[i] : i));
}

// Memory of a forward call: packed weights, the bias in the order of the weights' channels, then each thread's own.
// Asks for huge pages for y too.
class ForwardScratch {
 public:
  ForwardScratch(const MaskedConvForward& args, int64_t weight_floats, int64_t thread_floats, int threads)
      : weight_floats_(Scratch::round(weight_floats)), bias_floats_(Scratch::round(args.conv.out_channels)),
        thread_floats_(thread_floats), scratch_(weight_floats_ + bias_floats_ + threads * thread_floats) {
    const MaskedConv& c = args.conv;
    if (!scratch_.data()) return;
    want_huge_pages(args.y, (c.batch - 1) * args.y.stride_n + c.out_channels * c.height * c.width);
    float* const bias = weights() + weight_floats_;
    if (args.bias) GK_BY_STORAGE(args.y.storage, read_channels, args.bias, c.out_order, c.out_channels, bias);
    if (args.bias) bias_ = bias;
  }
  explicit operator bool() const { return scratch_.data() != nullptr; }
  float* weights() const { return scratch_.data(); }
  const float* bias() const { return bias_; }  // nullptr where there is none
  // Of the calling thread of a team.
  float* own() const { return weights() + weight_floats_ + bias_floats_ + omp_get_thread_num() * thread_floats_; }

 private:
  int64_t weight_floats_, bias_floats_, thread_floats_;
  const float* bias_ = nullptr;
  Scratch scratch_;
};

// The segments of every pixel of the unit side by side: [pixel][sum of their lengths]. For few channels, where the
// segments are so short that ending one costs as much as walking it. Reads and writes up to IO - 1 floats too far.
inline void gather_patches(const Region& region, const float* source, int64_t pitch, int64_t channels,
                           const Segment* segments, int64_t segment_count, float* patches) {
  for (int64_t y = 0; y < region.rows(); ++y)
    for (int64_t x = 0; x < region.columns(); ++x)
      for (int64_t s = 0; s < segment_count; ++s) {
        const float* from = source + (y * pitch + x) * channels + segments[s].offset;
        for (int64_t k = 0; k < segments[s].length; k += IO) store_block(patches + k, load_block(from + k));
        patches += segments[s].length;
      }
}

// One unit times one panel of weights, into the target. `source` holds the unit's pixels with their border, lines of
// `pitch` pixels of `reductions` floats. Where the target's pixels follow each other in memory with the panel's
// channels side by side (float32, channels_last), tiles leave the registers for good; else they are staged in L1.
inline void multiply_unit(const Region& region, const float* source, int64_t pitch, int64_t reductions,
                          const Segment* segments, int64_t segment_count, const Panel& panel, const float* weights,
                          const Target& target, float* staging) {
  const ImageView& view = target.view;
  const bool direct = view.storage == Storage::float32 && view.stride_c == 1 && !target.order &&
                      panel.columns == panel.width() && view.stride_h == region.columns() * view.stride_w;
  const Finish finish{target.bias ? target.bias + panel.first : nullptr, target.relu};
  for_line_groups(region, [&](const Region& lines) {
    float* out = staging;
    int64_t out_stride = panel.width();
    if (direct) {
      out = static_cast<float*>(const_cast<void*>(view.data)) + target.image * view.stride_n +
            lines.y0 * view.stride_h + panel.first;
      out_stride = view.stride_w;
    }
    int64_t y = lines.y0 - region.y0, x = 0;
    for_row_tiles(lines.pixels(), [&](int64_t first, int64_t count) {
      const float* rows[MR_MAX];
      for (int64_t i = 0; i < count; ++i) {
        rows[i] = source + (y * pitch + x) * reductions;
        if (++x == region.columns()) x = 0, ++y;
      }
      const int mr = static_cast<int>(count);
      float* const to = out + first * out_stride;
      if (direct)
        finish_function(mr, panel.nr)(rows, segments, segment_count, weights, to, out_stride, finish);
      else
        tile_function(TileMode::write, mr, panel.nr)(rows, segments, segment_count, weights, to, out_stride);
    });
    if (!direct) store_panel(target, lines, staging, panel.width());
  });
}

}  // namespace gk::GK_ISA
