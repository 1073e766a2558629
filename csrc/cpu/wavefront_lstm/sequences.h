// Sequences of a group, where their numbers stand in memory, and the cells of a step in chunks.
#pragma once

#include "cpu/core/image_io.h"
#include "cpu/wavefront_lstm/threads.h"

namespace gk::GK_ISA::wavefront_lstm {

constexpr int64_t ROWS_MAX = 128;  // of one product

// One vector of floats for each pixel of an image.
struct Cells {
  float* data;
  int64_t stride_y, stride_x;
  float* at(int64_t y, int64_t x) const { return data + y * stride_y + x * stride_x; }
};

// Whether the tensor's memory itself can serve as Cells.
GK_INLINE bool is_cells(const ImageView& v) { return v.storage == Storage::float32 && v.stride_c == 1; }

inline Cells cells_of(const ImageView& v, int64_t image) {
  return {static_cast<float*>(const_cast<void*>(v.data)) + image * v.stride_n, v.stride_h, v.stride_w};
}
inline Cells scratch_cells(float* data, int64_t width, int64_t floats) { return {data, width * floats, floats}; }

// One sequence: an image in one direction.
struct Sequence {
  int64_t direction, image;
  bool mirrored;
  Cells input;      // [4h] gates before the recurrence, or, where they are convolved, everywhere their bias
  Cells x;          // [channels], where they are convolved
  float* gates;     // [H * W][4h] after it, or nullptr: not kept
  float* c;         // [H * W][h], or, not kept, [positions][h] of the last step alone
  bool keeps_c;
  Cells hidden;     // [h]
  const float *h0, *c0;
};

// A cell of the step at hand.
struct StepCell {
  int64_t sequence;    // in the group
  int64_t r, y, x;
};

GK_INLINE StepCell cell_at(const Steps& f, int64_t s, int64_t r, const Sequence* sequences, int64_t sequence) {
  if (!f.diagonal) return {sequence, r, s, r};
  return {sequence, r, r, sequences[sequence].mirrored ? f.width - 1 - (s - r) : s - r};
}

// The thread's slice of step s, in chunks of at most `limit` cells of one direction: calls chunk(cells, count, number of
// the first in the step). The cells of a step are numbered sequence by sequence.
template <class Chunk>
GK_INLINE void for_chunks(const Steps& f, int64_t s, const Sequence* sequences, int64_t sequence_count,
                          const ThreadSlice& slice, int64_t limit, const Chunk& chunk) {
  StepCell cells[ROWS_MAX];
  const Span span = f.span(s);
  const int64_t total = span.length() * sequence_count, end = slice.end(total);
  int64_t first = slice.begin(total);
  const int64_t even = ceil_div(end - first, max64(1, ceil_div(end - first, limit)));
  while (first < end) {
    int64_t count = 0;
    for (int64_t sequence = first / span.length(), r = first % span.length(); count < min64(even, end - first);
         ++count) {
      if (sequences[sequence].direction != sequences[first / span.length()].direction) break;
      cells[count] = cell_at(f, s, span.lo + r, sequences, sequence);
      if (++r == span.length()) r = 0, ++sequence;
    }
    chunk(cells, count, first);
    first += count;
  }
}

}  // namespace gk::GK_ISA::wavefront_lstm
