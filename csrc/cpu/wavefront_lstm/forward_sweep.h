// The forward sweep of a group of sequences, which backward takes as well where nothing was kept.
#pragma once

#include "cpu/core/vector_math.h"
#include "cpu/wavefront_lstm/product.h"
#include "cpu/wavefront_lstm/sequences.h"

namespace gk::GK_ISA::wavefront_lstm {

// --- elementwise passes ---

// Some or all lanes of a vector.
template <bool ALL>
struct Lanes {
  int64_t count;
  GK_INLINE Vec get(const float* p) const {
    if (ALL) return load(p);
    Vec v{};
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return v;
  }
  GK_INLINE void put(float* p, Vec v) const {
    if (ALL) return store(p, v);
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
  }
};

// Calls body(first channel, lanes) for all channels, a vector at a time.
template <class Body>
GK_INLINE void for_channels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + VL <= channels; c += VL) body(c, Lanes<true>{VL});
  if (c < channels) body(c, Lanes<false>{channels - c});
}

// --- the sweep ---

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
GK_INLINE void cell_forward(int64_t h, const float* input, const float* sum, const float* c_before, float* gates,
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
GK_INLINE float* c_of(const Steps& f, const Sequence& sequence, int64_t h, const StepCell& cell) {
  return sequence.c + (sequence.keeps_c ? cell.y * f.width + cell.x : cell.r) * h;
}

// Where the activated gates of a cell are kept, or nullptr.
GK_INLINE float* gates_of(const Steps& f, const Sequence& sequence, int64_t h, const StepCell& cell) {
  return sequence.gates ? sequence.gates + (cell.y * f.width + cell.x) * 4 * h : nullptr;
}

// c that a cell of step s carries on: that of its position on step s - 1 (`before`), or the initial one.
GK_INLINE const float* c_before(const Steps& f, const Span& before, int64_t s, const Sequence* sequences, int64_t h,
                                const StepCell& cell) {
  const Sequence& sequence = sequences[cell.sequence];
  return before.has(cell.r) ? c_of(f, sequence, h, cell_at(f, s - 1, cell.r, sequences, cell.sequence)) : sequence.c0;
}

// x at the input taps of a cell, side by side, to `row`; zero outside the image.
GK_INLINE void gather_x(const WavefrontLSTM& l, const Sequence& sequence, const StepCell& cell, float* row) {
  for (int64_t t = 0; t < l.live_taps; ++t, row += l.channels) {
    const int64_t y = cell.y + t / l.kernel_w - l.kernel_h / 2, x = cell.x + t % l.kernel_w - l.kernel_w / 2;
    if (y >= 0 && x >= 0 && x < l.width)
      memcpy(row, sequence.x.at(y, x), l.channels * sizeof(float));
    else
      memset(row, 0, l.channels * sizeof(float));
  }
}

// packed[direction]: the weights of the forward product.
inline void sweep_forward(const WavefrontLSTM& l, const Sequence* sequences, int64_t sequence_count,
                          const ThreadSlice& slice, const float* packed, int64_t packed_floats,
                          const ProductScratch& scratch) {
  const Steps f = steps_of(l);
  const int64_t h = l.hidden, reductions = reductions_of(l), sums_stride = padded(4 * h);
  PrefetchQueue prefetches;
  for (int64_t s = 0; s < f.count(); ++s) {
    const Span before = f.span(s - 1), after = f.span(s + 1);
    for_chunks(f, s, sequences, sequence_count, slice, scratch.limit, [&](const StepCell* cells, int64_t count, int64_t) {
      for (int64_t n = 0; n < count; ++n) {
        float* row = scratch.rows + n * reductions;
        const StepCell& cell = cells[n];
        const Sequence& sequence = sequences[cell.sequence];
        for (int64_t t = 0; t < l.tap_count; ++t, row += h) {
          const int64_t r = cell.r + l.taps[t];
          const float* from = sequence.h0;
          if (before.has(r)) {
            const StepCell source = cell_at(f, s - 1, r, sequences, cell.sequence);
            from = sequence.hidden.at(source.y, source.x);
          }
          memcpy(row, from, h * sizeof(float));
        }
        const float* const gates = gates_of(f, sequence, h, cell);
        if (l.convolves()) {
          gather_x(l, sequence, cell, row);
          if (after.has(cell.r)) {
            const StepCell next = cell_at(f, s + 1, cell.r, sequences, cell.sequence);
            prefetches.add(sequence.x.at(next.y, next.x), l.channels);
          }
        } else {
          prefetches.add(sequence.input.at(cell.y, cell.x), 4 * h);
        }
        if (gates && gates != sequence.input.at(cell.y, cell.x)) prefetches.add(gates, 4 * h);
        prefetches.add(c_of(f, sequence, h, cell), h);
        prefetches.add(sequence.hidden.at(cell.y, cell.x), h);
      }
      multiply(scratch.rows, count, reductions, packed + sequences[cells[0].sequence].direction * packed_floats, 4 * h,
               scratch.sums, prefetches);
      for (int64_t n = 0; n < count; ++n) {
        const StepCell& cell = cells[n];
        const Sequence& sequence = sequences[cell.sequence];
        float* const sum = scratch.sums + n * sums_stride;
        float* const gates = gates_of(f, sequence, h, cell);
        cell_forward(h, sequence.input.at(cell.y, cell.x), sum, c_before(f, before, s, sequences, h, cell),
                     gates ? gates : sum, c_of(f, sequence, h, cell), sequence.hidden.at(cell.y, cell.x));
      }
    });
    slice.wait();
  }
}

// The thread's slice of the lines of an image of `channels`, into [H * W][channels].
inline void load_lines(const ImageView& view, int64_t image, int64_t channels, const Steps& f, const ThreadSlice& slice,
                       float* out) {
  const Region lines{slice.begin(f.height), slice.end(f.height), 0, f.width};
  if (lines.rows() > 0)
    load_pixels({view, image, channels, f.height, f.width, nullptr, nullptr}, lines,
                out + lines.y0 * f.width * channels);
}

// And back. Reads up to IO - 1 floats behind the last channel.
inline void store_lines(const ImageView& view, int64_t image, int64_t channels, const Steps& f,
                        const ThreadSlice& slice, const float* from) {
  const Region lines{slice.begin(f.height), slice.end(f.height), 0, f.width};
  if (lines.rows() > 0)
    store_panel({view, image, 0, channels, nullptr, nullptr, false}, lines, from + lines.y0 * f.width * channels,
                channels);
}

// A sequence whose gates are convolved of x, which is brought into `scratch` where its memory cannot serve.
inline void read_x(const WavefrontLSTM& l, const WavefrontDirection& direction, const Steps& f, const ThreadSlice& slice,
                   float* constants, float* scratch, Sequence& sequence) {
  sequence.input = {constants + 2 * l.hidden, 0, 0};
  sequence.x = is_cells(direction.x) ? cells_of(direction.x, sequence.image)
                                     : scratch_cells(scratch, l.width, l.channels);
  if (!is_cells(direction.x) && l.channels > 0)
    load_lines(direction.x, sequence.image, l.channels, f, slice, sequence.x.data);
}

}  // namespace gk::GK_ISA::wavefront_lstm
