// One dimension of a product: which inputs an output coordinate sees, and through which taps.
//
// Down (strided): output o sees inputs o * stride - pad + k for all taps k. Up (transposed): output o sees the inputs
// (o + pad - k) / stride for the taps k that make this whole, those of one of `stride` phases. Taken in the order of
// their inputs, both are the same: an output sees `taps(phase)` consecutive inputs from `start(output)` on, of which
// those inside the image are [lo, hi). So one product serves both, every tap is one multiply-add, and taps on the
// border are left out and not multiplied with zeros.
#pragma once

#include "cpu/core/parallel.h"
#include "cpu/conv_bn_act/conv_bn_act.h"
#include "cpu/core/simd.h"

namespace gk::GK_ISA {

struct Axis {
  int64_t out, in, kernel, stride, pad;
  bool up;

  int64_t phases() const { return up ? stride : 1; }
  int64_t phase(int64_t o) const { return up ? (o + pad) % stride : 0; }
  int64_t taps(int64_t phase) const {
    if (!up) return kernel;
    return kernel > phase ? (kernel - phase + stride - 1) / stride : 0;
  }
  // The place in the kernel of tap t of a phase.
  int64_t tap(int64_t phase, int64_t t) const { return up ? phase + (taps(phase) - 1 - t) * stride : t; }
  int64_t start(int64_t o) const { return up ? (o + pad) / stride - (taps(phase(o)) - 1) : o * stride - pad; }
  int64_t lo(int64_t o) const { return min64(max64(-start(o), 0), taps(phase(o))); }
  int64_t hi(int64_t o) const { return max64(lo(o), min64(in - start(o), taps(phase(o)))); }
  // From one output of a phase to the next.
  int64_t out_step() const { return up ? stride : 1; }
  int64_t in_step() const { return up ? 1 : stride; }
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

inline Axis vertical(const ConvShape& s, bool up) {
  return {up ? s.large_h : s.small_h, up ? s.small_h : s.large_h, s.kernel_h, s.stride_h, s.pad_h, up};
}
inline Axis horizontal(const ConvShape& s, bool up) {
  return {up ? s.large_w : s.small_w, up ? s.small_w : s.large_w, s.kernel_w, s.stride_w, s.pad_w, up};
}

// Outputs of one phase that follow each other and see the same taps: `count` of them, the first being output `first`
// and number `index` of its phase.
struct Run {
  int64_t phase, index, first, count, lo, hi, start;
};

// Writes the runs of the outputs [begin, end), phase by phase, and returns their number, at most end - begin.
inline int64_t make_runs(const Axis& a, int64_t begin, int64_t end, Run* runs) {
  int64_t count = 0;
  for (int64_t f = 0; f < a.phases(); ++f) {
    int64_t first = begin;
    while (first < end && a.phase(first) != f) ++first;
    int64_t index = 0, previous = -1;  // the run that the last output went to
    for (int64_t o = first; o < end; o += a.out_step(), ++index) {
      const int64_t lo = a.lo(o), hi = a.hi(o);
      if (previous >= 0 && runs[previous].lo == lo && runs[previous].hi == hi) {
        ++runs[previous].count;
        continue;
      }
      previous = count;
      runs[count++] = {f, index, o, 1, lo, hi, a.start(o)};
    }
  }
  return count;
}

inline int useful_threads(const ConvShape& s, int threads) {
  const int64_t work =
      s.batch * s.small_h * s.small_w * s.small_channels * s.large_channels * s.kernel_h * s.kernel_w;
  return useful_threads(work, PRODUCTS_PER_THREAD, threads);
}

}  // namespace gk::GK_ISA
