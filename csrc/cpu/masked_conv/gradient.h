// How the gradients of a masked convolution's weight and bias leave the threads' sums.
#pragma once

#include "cpu/masked_conv/packing.h"

namespace gk::GK_ISA {

// One vector of the sum over `threads` buffers that stand `thread_stride` apart.
GK_INLINE Vec sum_threads(const float* sums, int64_t thread_stride, int threads) {
  Vec total{};
  for (int thread = 0; thread < threads; ++thread) total += load(sums + thread * thread_stride);
  return total;
}

// Writes one panel of output channels of grad_weight, dead entries as zero. sum_taps(k, buffer) adds up the live taps
// of input channel k, for all columns of the panel: buffer[tap][PANEL_MAX], zeros before.
template <class T, class SumTaps>
void write_weight(const MaskedConvBackward& args, const Panel& panel, const SumTaps& sum_taps, float* buffer) {
  const MaskedConv& c = args.conv;
  const int64_t taps = c.full_taps(), positions = c.kernel_h * c.kernel_w;
  memset(buffer + taps * PANEL_MAX, 0, (positions - taps) * PANEL_MAX * sizeof(float));
  T* const data = static_cast<T*>(const_cast<void*>(args.grad_weight.data));
  for (int64_t k = 0; k < c.in_channels; ++k) {
    memset(buffer, 0, (taps + 1) * PANEL_MAX * sizeof(float));
    sum_taps(k, buffer);
    for (int64_t j = 0; j < panel.columns; ++j)
      if (k >= c.centre_end[panel.first + j]) buffer[taps * PANEL_MAX + j] = 0;
    const auto to = [&](int64_t j) {
      const int64_t column = panel.first + j, in = c.in_order ? c.in_order[k] : k;
      return data + (c.out_order ? c.out_order[column] : column) * args.grad_weight.stride_out +
             in * args.grad_weight.stride_in;
    };
    int64_t turned = 0;  // columns written by blocks of IO taps
    for (; args.grad_weight.stride_tap == 1 && positions >= IO && turned + IO <= panel.columns; turned += IO)
      for_blocks(positions, [&](int64_t t) {
        Block v[IO];
        GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_block(buffer + (t + i) * PANEL_MAX + turned);
        transpose(v);
        GK_UNROLL for (int i = 0; i < IO; ++i) store_block(to(turned + i) + t, v[i]);
      });
    for (int64_t j = turned; j < panel.columns; ++j)
      for (int64_t t = 0; t < positions; ++t)
        store_one(to(j) + t * args.grad_weight.stride_tap, buffer[t * PANEL_MAX + j]);
  }
}

template <class T>
void write_bias(const MaskedConvBackward& args, const float* sums, int64_t thread_stride, int threads) {
  for (int64_t o = 0; o < args.conv.out_channels; ++o) {
    float total = 0;
    for (int thread = 0; thread < threads; ++thread) total += sums[thread * thread_stride + o];
    const int64_t place = args.conv.out_order ? args.conv.out_order[o] : o;
    store_one(static_cast<T*>(args.grad_bias) + place, total);
  }
}

}  // namespace gk::GK_ISA
