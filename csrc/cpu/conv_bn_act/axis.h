// One dimension of a product: the inputs that an output coordinate sees, and the taps through which it does.
//
// Strided: output o sees inputs o * stride - pad + k for all taps k. Transposed: output o sees the inputs
// (o + pad - k) / stride for the taps k that make this whole, those of one of `stride` phases. Taken in the order of
// their inputs, both are the same: an output sees `taps(phase)` consecutive inputs from `start(output)` on, of which
// those inside the image are [lo, hi). So one product serves both, every tap is one multiply-add, and taps on the
// border are left out and not multiplied with zeros.
#pragma once

#include "cpu/conv_bn_act/conv_bn_act.h"
#include "cpu/core/parallel.h"
#include "cpu/core/simd.h"

namespace gk::GK_ISA::conv_bn_act {

struct Axis {
  int64_t out, in, kernel, stride, pad;
  ConvKind kind;

  bool transposed() const { return kind == ConvKind::transposed; }
  int64_t phases() const { return transposed() ? stride : 1; }
  int64_t phase(int64_t o) const { return transposed() ? (o + pad) % stride : 0; }
  int64_t taps(int64_t phase) const {
    if (!transposed()) return kernel;
    return kernel > phase ? (kernel - phase + stride - 1) / stride : 0;
  }
  // The place in the kernel of tap t of a phase.
  int64_t tap(int64_t phase, int64_t t) const { return transposed() ? phase + (taps(phase) - 1 - t) * stride : t; }
  int64_t start(int64_t o) const {
    return transposed() ? (o + pad) / stride - (taps(phase(o)) - 1) : o * stride - pad;
  }
  int64_t lo(int64_t o) const { return min64(max64(-start(o), 0), taps(phase(o))); }
  int64_t hi(int64_t o) const { return max64(lo(o), min64(in - start(o), taps(phase(o)))); }
  // From one output of a phase to the next.
  int64_t out_step() const { return transposed() ? stride : 1; }
  int64_t in_step() const { return transposed() ? 1 : stride; }
  // Taps in the phases before this one.
  int64_t taps_before(int64_t phase) const {
    int64_t count = 0;
    for (int64_t f = 0; f < phase; ++f) count += taps(f);
    return count;
  }
  // Inputs beyond the two ends of the image that some output sees: the border that spares lo and hi.
  int64_t border_before() const { return max64(0, pad); }
  int64_t border_after() const { return max64(0, (out - 1) * stride - pad + kernel - in); }
};

inline Axis vertical(const ConvShape& s, ConvKind kind) {
  if (kind == ConvKind::transposed) return {s.high_h, s.low_h, s.kernel_h, s.stride_h, s.pad_h, kind};
  return {s.low_h, s.high_h, s.kernel_h, s.stride_h, s.pad_h, kind};
}
inline Axis horizontal(const ConvShape& s, ConvKind kind) {
  if (kind == ConvKind::transposed) return {s.high_w, s.low_w, s.kernel_w, s.stride_w, s.pad_w, kind};
  return {s.low_w, s.high_w, s.kernel_w, s.stride_w, s.pad_w, kind};
}

// Outputs of one phase that follow each other and see the same taps: `count` of them from output `first` on.
struct Run {
  int64_t phase, first, count;
  int64_t place;  // of the first one among all outputs, taken phase by phase
  int64_t lo, hi, start;
};

// Writes the runs of all outputs, phase by phase, and returns their number, at most that of the outputs.
inline int64_t make_runs(const Axis& a, Run* runs) {
  int64_t count = 0, place = 0;
  for (int64_t f = 0; f < a.phases(); ++f) {
    int64_t first = 0;
    while (first < a.out && a.phase(first) != f) ++first;
    int64_t previous = -1;  // the run that the last output went to
    for (int64_t o = first; o < a.out; o += a.out_step(), ++place) {
      const int64_t lo = a.lo(o), hi = a.hi(o);
      if (previous >= 0 && runs[previous].lo == lo && runs[previous].hi == hi) {
        ++runs[previous].count;
        continue;
      }
      previous = count;
      runs[count++] = {f, o, 1, place, lo, hi, a.start(o)};
    }
  }
  return count;
}

inline int useful_threads(const ConvShape& s, int threads) {
  const int64_t work = s.batch * s.low_h * s.low_w * s.low_channels * s.high_channels * s.kernel_h * s.kernel_w;
  return gk::GK_ISA::useful_threads(work, PRODUCTS_PER_THREAD, threads);
}

}  // namespace gk::GK_ISA::conv_bn_act
