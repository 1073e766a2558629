// Backward passes of the masked convolution: the frame that all have, the threads' sums of the gradients of weight and
// bias, and their way to the tensors.
#pragma once

#include "cpu/core/implementation.h"
#include "cpu/masked_conv/packing.h"

namespace gk::GK_ISA::masked_conv {

// One vector of the sum over `threads` buffers that stand `thread_stride` apart.
GK_INLINE Vec sum_threads(const float* sums, int64_t thread_stride, int threads) {
  Vec total{};
  for (int thread = 0; thread < threads; ++thread) total += load(sums + thread * thread_stride);
  return total;
}

// What each thread adds up. The rows of the weight's sums are the implementation's: taps, or terms of Winograd's.
struct GradientSums {
  int64_t stride;              // floats of a row: the output channels in whole panels
  int64_t rows;
  ScratchArray<float> weight;  // [rows][stride]
  ScratchArray<float> bias;    // [stride]
  ScratchArray<float> taps;    // of one input channel and a panel: [kernel_h * kernel_w][PANEL_MAX]

  GradientSums(const MaskedConvBackward& args, int64_t live_rows, ScratchLayout& own)
      : stride(panel_count(args.conv.out_channels) * PANEL_MAX), rows(args.grad_weight.data ? live_rows : 0) {
    weight = own.take<float>(rows * stride);
    bias = own.take<float>(stride);
    taps = own.take<float>(rows ? args.conv.kernel_h * args.conv.kernel_w * PANEL_MAX : 0);
  }
  void clear(const Scratch& scratch) const {
    memset(scratch.own(weight), 0, rows * stride * sizeof(float));
    memset(scratch.own(bias), 0, stride * sizeof(float));
  }
};

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

// At the end of a pass, by the whole team: sum_taps(panel index, k, buffer) as in write_weight.
template <class SumTaps>
void write_weight_panels(const MaskedConvBackward& args, const GradientSums& sums, const Scratch& scratch,
                         const SumTaps& sum_taps) {
#pragma omp for
  for (int64_t p = 0; p < panel_count(args.conv.out_channels); ++p) {
    const auto sum_panel = [&](int64_t k, float* to) { sum_taps(p, k, to); };
    GK_BY_STORAGE(args.grad_weight.storage, write_weight, args, panel_at(args.conv.out_channels, p), sum_panel,
                  scratch.own(sums.taps));
  }
}

inline bool needs_x(const MaskedConvBackward& args) { return args.grad_x.data; }
inline bool needs_weight(const MaskedConvBackward& args) { return args.grad_weight.data; }

// The frame: weights packed once, tasks split among the threads for good, so that sums are added in a fixed order.
//   pass.pack_weights(panel index, scratch)          for grad_x
//   pass.refused()                                   whether the numbers have turned out uneven
//   pass.run_task(task, scratch)                     grad_x of a task, and its part of the thread's sums
//   pass.sum_taps(scratch, team, panel, k, buffer)   as in write_weight, over the sums of `team` threads
template <class Pass>
Outcome run_backward(Pass& pass, const MaskedConvBackward& args, const Tasks& tasks, const GradientSums& sums,
                     const ScratchLayout& shared, const ScratchLayout& own, int threads) {
  const MaskedConv& c = args.conv;
  const Scratch scratch(shared, own, threads);
  if (!scratch.data()) return Outcome::no_memory;
  want_huge_pages(args.grad_x, c.batch * c.in_channels * c.height * c.width);
  int team = 1;  // the threads that really came
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    team = omp_get_num_threads();
    sums.clear(scratch);
    if (needs_x(args)) {
#pragma omp for
      for (int64_t p = 0; p < panel_count(c.in_channels); ++p) pass.pack_weights(p, scratch);
    }
#pragma omp for schedule(static)
    for (int64_t index = 0; index < tasks.count; ++index)
      if (!pass.refused()) pass.run_task(tasks.at(c, index), scratch);
    if (needs_weight(args)) write_weight_panels(args, sums, scratch, [&](int64_t p, int64_t k, float* to) {
      pass.sum_taps(scratch, team, p, k, to);
    });
  }
  if (args.grad_bias)
    GK_BY_STORAGE(args.weight.storage, write_bias, args, scratch.own(sums.bias, 0), scratch.thread_stride(), team);
  return pass.refused() ? Outcome::uneven : Outcome::done;
}

}  // namespace gk::GK_ISA::masked_conv
