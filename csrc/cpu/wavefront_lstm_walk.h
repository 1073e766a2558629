// The forward walk of a group of units, which backward takes as well where nothing was kept.
#pragma once

#include "cpu/vector_math.h"
#include "cpu/wavefront_lstm_plan.h"

namespace gk::GK_ISA {

// What a thread needs for the rows of one product.
struct ProductScratch {
  int64_t limit;  // cells at a time
  float* rows;    // [limit][taps * h]: h at the taps of each cell, side by side
  float* sums;    // [limit][padded(4h)]
};

// Few enough cells that rows and sums stay within 192 KiB of L2.
inline int64_t product_rows(const WavefrontLSTM& l) {
  const int64_t floats = l.tap_count * l.hidden + padded(4 * l.hidden);
  return max64(24, min64(ROWS_MAX, 48 * 1024 / floats));
}

// One cell: all pointers at its first channel. `gates` may be `sum`. In two passes: the second tanh waits for the
// first pass's whole chain, and a chain that long leaves the core's window no room for another.
GK_INLINE void step_cell(int64_t h, const float* input, const float* sum, const float* c_before, float* gates,
                         float* c_after, float* hidden) {
  for_channels(h, [&](int64_t k, auto lanes) {
    const Vec i = sigmoid(lanes.get(input + k) + lanes.get(sum + k));
    const Vec f = sigmoid(lanes.get(input + h + k) + lanes.get(sum + h + k));
    const Vec g = tanh(lanes.get(input + 2 * h + k) + lanes.get(sum + 2 * h + k));
    const Vec o = sigmoid(lanes.get(input + 3 * h + k) + lanes.get(sum + 3 * h + k));
    const Vec c = f * lanes.get(c_before + k) + i * g;
    lanes.put(gates + k, i);
    lanes.put(gates + h + k, f);
    lanes.put(gates + 2 * h + k, g);
    lanes.put(gates + 3 * h + k, o);
    lanes.put(c_after + k, c);
  });
  for_channels(h, [&](int64_t k, auto lanes) {
    lanes.put(hidden + k, lanes.get(gates + 3 * h + k) * tanh(lanes.get(c_after + k)));
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

// packed[walk]: the weights of the forward product.
inline void walk_forward(const WavefrontLSTM& l, const Unit* units, int64_t unit_count, const Share& share,
                         const float* packed, int64_t packed_floats, const ProductScratch& scratch) {
  const Fronts f = fronts_of(l);
  const int64_t h = l.hidden, reductions = l.tap_count * h, sums_stride = padded(4 * h);
  Lookahead ahead;
  for (int64_t s = 0; s < f.count(); ++s) {
    const Span before = f.span(s - 1);
    for_chunks(f, s, units, unit_count, share, scratch.limit, [&](const FrontCell* cells, int64_t count, int64_t) {
      float* row = scratch.rows;
      for (int64_t n = 0; n < count; ++n) {
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
        ahead.add(unit.input.at(cell.y, cell.x), 4 * h);
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

}  // namespace gk::GK_ISA
