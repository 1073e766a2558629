// Geometry of the wavefront LSTM: steps and their cells, and the arithmetic that forward and backward share.
//
//   gates[p] = input[p] + sum over taps  W_tap h[p + tap]     i, f, o: sigmoid, g: tanh
//   input[p] = as given, or  bias + sum over input taps  V_tap x[p + tap], in the same product
//   c[p] = f c[p + tap 0] + i g,   h[p] = o tanh(c[p])
//
// A cell is named by its step s and its position r on it; tap k then reads step s - 1 at position r + k, and that is
// inside the image exactly where step s - 1 has such a position. A sequence is one image of one direction.
#pragma once

#include "cpu/core/simd.h"
#include "cpu/wavefront_lstm/wavefront_lstm.h"

namespace gk::GK_ISA::wavefront_lstm {

struct Span {
  int64_t lo, hi;
  bool has(int64_t r) const { return r >= lo && r < hi; }
  int64_t length() const { return hi - lo; }
};

struct Steps {
  int64_t height, width;
  bool diagonal;

  int64_t count() const { return diagonal ? height + width - 1 : height; }
  int64_t positions() const { return diagonal ? height : width; }
  int64_t longest() const { return diagonal ? min64(height, width) : width; }
  // The positions of step s; none before the first step and behind the last.
  Span span(int64_t s) const {
    if (s < 0 || s >= count()) return {0, 0};
    return diagonal ? Span{max64(0, s - width + 1), min64(height, s + 1)} : Span{0, width};
  }
};

inline Steps steps_of(const WavefrontLSTM& l) { return {l.height, l.width, l.diagonal}; }

// Floats of a cell that the forward product takes in: h at the taps, then x at the input taps.
inline int64_t reductions_of(const WavefrontLSTM& l) { return l.tap_count * l.hidden + l.live_taps * l.channels; }

}  // namespace gk::GK_ISA::wavefront_lstm
