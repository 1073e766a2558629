// The forward walk of a group of units, which backward takes as well where nothing was kept.
#pragma once

#include "cpu/core/vector_math.h"
#include "cpu/wavefront_lstm/steps.h"

namespace gk::GK_ISA {

// What a thread needs for the rows of one product.
struct ProductScratch {
  int64_t limit;  // cells at a time
  float* rows;    // [limit][reductions]: h at the taps of each cell, and x at the input taps, side by side
  float* sums;    // [limit][padded(4h)]
};

// Few enough cells that rows and sums stay within 192 KiB of L2.
inline int64_t product_rows(const WavefrontLSTM& l) {
  const int64_t floats = reductions_of(l) + padded(4 * l.hidden);
  return max64(24, min64(ROWS_MAX, 48 * 1024 / floats));
}

// One cell: all pointers at its first channel. `gates` may be `sum`. A gate after the other: of a chain through all of
// them the core's window holds no second one (in one pass it takes a quarter longer than even in two).
GK_INLINE void step_cell(int64_t h, const float* input, const float* sum, const float* c_before, float* gates,
                         float* c_after, float* hidden) {
  const int64_t f = h, g = 2 * h, o = 3 * h;  // where these gates begin; i is at 0
  for_channels(f + h, [&](int64_t k, auto lanes) {
    lanes.put(gates + k, sigmoid(lanes.get(input + k) + lanes.get(sum + k)));
  });
  for_channels(h, [&](int64_t k, auto lanes) {
    const Vec v = tanh(lanes.get(input + g + k) + lanes.get(sum + g + k));
    lanes.put(gates + g + k, v);
    lanes.put(c_after + k, lanes.get(gates + f + k) * lanes.get(c_before + k) + lanes.get(gates + k) * v);
  });
  for_channels(h, [&](int64_t k, auto lanes) {
    const Vec v = sigmoid(lanes.get(input + o + k) + lanes.get(sum + o + k));
    lanes.put(gates + o + k, v);
    lanes.put(hidden + k, v * tanh(lanes.get(c_after + k)));
  });
}

// c of cell (s, r), whose place in the image is (y, x).
GK_INLINE float* c_of(const Fronts& f, const Unit& unit, int64_t h, const FrontCell& cell) {
  return unit.c + (unit.keeps_c ? cell.y * f.width + cell.x : cell.r) * h;
}

// Where the activated gates of a cell are kept, or nullptr.
GK_INLINE float* gates_of(const Fronts& f, const Unit& unit, int64_t h, const FrontCell& cell) {
  return unit.gates ? unit.gates + (cell.y * f.width + cell.x) * 4 * h : nullptr;
}

// c that a cell of front s carries on: that of its position on front s - 1 (`before`), or the initial one.
GK_INLINE const float* c_before(const Fronts& f, const Span& before, int64_t s, const Unit* units, int64_t h,
                                const FrontCell& cell) {
  const Unit& unit = units[cell.unit];
  return before.has(cell.r) ? c_of(f, unit, h, front_cell(f, s - 1, cell.r, units, cell.unit)) : unit.c0;
}

// x at the input taps of a cell, side by side, to `row`; zero outside the image.
GK_INLINE void gather_x(const WavefrontLSTM& l, const Unit& unit, const FrontCell& cell, float* row) {
  for (int64_t t = 0; t < l.live_taps; ++t, row += l.channels) {
    const int64_t y = cell.y + t / l.kernel_w - l.kernel_h / 2, x = cell.x + t % l.kernel_w - l.kernel_w / 2;
    if (y >= 0 && x >= 0 && x < l.width)
      memcpy(row, unit.x.at(y, x), l.channels * sizeof(float));
    else
      memset(row, 0, l.channels * sizeof(float));
  }
}

// packed[walk]: the weights of the forward product.
inline void walk_forward(const WavefrontLSTM& l, const Unit* units, int64_t unit_count, const Share& share,
                         const float* packed, int64_t packed_floats, const ProductScratch& scratch) {
  const Fronts f = fronts_of(l);
  const int64_t h = l.hidden, reductions = reductions_of(l), sums_stride = padded(4 * h);
  Lookahead ahead;
  for (int64_t s = 0; s < f.count(); ++s) {
    const Span before = f.span(s - 1), after = f.span(s + 1);
    for_chunks(f, s, units, unit_count, share, scratch.limit, [&](const FrontCell* cells, int64_t count, int64_t) {
      for (int64_t n = 0; n < count; ++n) {
        float* row = scratch.rows + n * reductions;
        const FrontCell& cell = cells[n];
        const Unit& unit = units[cell.unit];
        for (int64_t t = 0; t < l.tap_count; ++t, row += h) {
          const int64_t r = cell.r + l.taps[t];
          const float* from = unit.h0;
          if (before.has(r)) {
            const FrontCell source = front_cell(f, s - 1, r, units, cell.unit);
            from = unit.hidden.at(source.y, source.x);
          }
          memcpy(row, from, h * sizeof(float));
        }
        const float* const gates = gates_of(f, unit, h, cell);
        if (l.convolves()) {
          gather_x(l, unit, cell, row);
          if (after.has(cell.r)) {
            const FrontCell next = front_cell(f, s + 1, cell.r, units, cell.unit);
            ahead.add(unit.x.at(next.y, next.x), l.channels);
          }
        } else {
          ahead.add(unit.input.at(cell.y, cell.x), 4 * h);
        }
        if (gates && gates != unit.input.at(cell.y, cell.x)) ahead.add(gates, 4 * h);
        ahead.add(c_of(f, unit, h, cell), h);
        ahead.add(unit.hidden.at(cell.y, cell.x), h);
      }
      multiply(scratch.rows, count, reductions, packed + units[cells[0].unit].walk * packed_floats, 4 * h,
               scratch.sums, ahead);
      for (int64_t n = 0; n < count; ++n) {
        const FrontCell& cell = cells[n];
        const Unit& unit = units[cell.unit];
        float* const sum = scratch.sums + n * sums_stride;
        float* const gates = gates_of(f, unit, h, cell);
        step_cell(h, unit.input.at(cell.y, cell.x), sum, c_before(f, before, s, units, h, cell), gates ? gates : sum,
                  c_of(f, unit, h, cell), unit.hidden.at(cell.y, cell.x));
      }
    });
    share.wait();
  }
}

// The thread's share of the lines of an image of `channels`, into [H * W][channels].
inline void load_lines(const ImageView& view, int64_t image, int64_t channels, const Fronts& f, const Share& share,
                       float* out) {
  const Region lines{share.begin(f.height), share.end(f.height), 0, f.width};
  if (lines.rows() > 0)
    load_pixels({view, image, channels, f.height, f.width, nullptr, nullptr}, lines,
                out + lines.y0 * f.width * channels);
}

// And back. Reads up to IO - 1 floats behind the last channel.
inline void store_lines(const ImageView& view, int64_t image, int64_t channels, const Fronts& f, const Share& share,
                        const float* from) {
  const Region lines{share.begin(f.height), share.end(f.height), 0, f.width};
  if (lines.rows() > 0)
    store_panel({view, image, 0, channels, nullptr, nullptr, false}, lines, from + lines.y0 * f.width * channels,
                channels);
}

// A unit whose gates are convolved of x, which is brought into `scratch` where its memory cannot serve.
inline void read_x(const WavefrontLSTM& l, const WavefrontDirection& walk, const Fronts& f, const Share& share,
                   float* constants, float* scratch, Unit& unit) {
  unit.input = {constants + 2 * l.hidden, 0, 0};
  unit.x = is_cells(walk.x) ? cells_of(walk.x, unit.image) : scratch_cells(scratch, l.width, l.channels);
  if (!is_cells(walk.x) && l.channels > 0) load_lines(walk.x, unit.image, l.channels, f, share, unit.x.data);
}

}  // namespace gk::GK_ISA
