// The masked convolution as a matrix product, and its weights packed into panels.
#pragma once

#include "cpu/core/panel.h"
#include "cpu/core/scratch.h"
#include "cpu/masked_conv/tasks.h"

namespace gk::GK_ISA::masked_conv {

// Columns (N) against channels at a list of taps (K = taps * channels): y has output channels as columns and sums over
// input channels, the input gradient the other way round.
struct MaskedGemm {
  int64_t columns, channels;
  int64_t column_stride, channel_stride;  // of the weight, in elements
  const int32_t *column_order, *channel_order;
  const int32_t *centre_lo, *centre_hi;   // live channels at the centre, per column; nullptr: 0 / all
  bool mirrored;                          // taps are read from the other side, the centre first
};

inline MaskedGemm output_gemm(const MaskedConv& c, const WeightView& w) {
  return {c.out_channels, c.in_channels, w.stride_out, w.stride_in, c.out_order,
          c.in_order,     nullptr,       c.centre_end, /*mirrored=*/false};
}
inline MaskedGemm input_gradient_gemm(const MaskedConv& c, const WeightView& w) {
  return {c.in_channels, c.out_channels, w.stride_in, w.stride_out, c.in_order,
          c.out_order,   c.centre_begin, nullptr,     /*mirrored=*/true};
}

struct MaskedPanel : Panel {
  int64_t lo, hi;  // live channels at the centre, for any of its columns
};

inline MaskedPanel masked_panel(const MaskedGemm& p, int64_t index) {
  MaskedPanel panel{panel_at(p.columns, index), p.channels, 0};
  for (int64_t j = panel.first; j < panel.first + panel.columns; ++j) {
    panel.lo = min64(panel.lo, p.centre_lo ? p.centre_lo[j] : 0);
    panel.hi = max64(panel.hi, p.centre_hi ? p.centre_hi[j] : p.channels);
  }
  if (panel.lo >= panel.hi) panel.lo = panel.hi = 0;
  return panel;
}

inline int64_t packed_floats(const MaskedGemm& p, int64_t taps) {
  return panel_count(p.columns) * PANEL_MAX * (taps + 1) * p.channels;
}

// Panel `index` of the weights: [tap][channel][column of the panel], dead centre entries zero.
template <class T>
void pack_panel(const WeightView& w, const MaskedGemm& p, const MaskedConv& c, int64_t index, float* packed) {
  const MaskedPanel panel = masked_panel(p, index);
  const int64_t taps = c.full_taps(), width = panel.width(), centre = panel.hi - panel.lo;
  float* const out = packed + index * PANEL_MAX * (taps + 1) * p.channels;
  float* const at_centre = p.mirrored ? out : out + taps * p.channels * width;
  float* const at_taps = p.mirrored ? out + centre * width : out;
  // Mirrored taps run backwards, so that neighbours in memory stay neighbours.
  const auto place = [&](int64_t tap, int64_t k, int64_t lane) {
    if (tap == taps) return at_centre + (k - panel.lo) * width + lane;
    return at_taps + ((p.mirrored ? taps - 1 - tap : tap) * p.channels + k) * width + lane;
  };
  const auto from = [&](int64_t k, int64_t lane) {
    const int64_t j = panel.first + lane;
    return static_cast<const T*>(w.data) + (p.column_order ? p.column_order[j] : j) * p.column_stride +
           (p.channel_order ? p.channel_order[k] : k) * p.channel_stride;
  };
  const auto seen = [&](int64_t k) { return k >= panel.lo && k < panel.hi; };
  // Taps are neighbours in a contiguous weight: IO columns x IO taps are turned at once. Reading whole blocks must
  // stay inside the kernel, which it does from 3x3 on.
  const bool blocks = w.stride_tap == 1 && ceil_div(taps + 1, IO) * IO <= c.kernel_h * c.kernel_w;
  for (int64_t lane = 0; lane < width; lane += IO) {
    if (blocks && lane + IO <= panel.columns) {
      for (int64_t k = 0; k < p.channels; ++k)
        for (int64_t t = 0; t <= taps; t += IO) {
          Block v[IO];
          GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_block(from(k, lane + i) + t);
          transpose(v);
          for (int64_t i = 0; i < min64(IO, taps + seen(k) - t); ++i) store_block(place(t + i, k, lane), v[i]);
        }
      continue;
    }
    for (int64_t i = lane; i < lane + IO; ++i)
      for (int64_t k = 0; k < p.channels; ++k)
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

// One value per channel (a bias) to float32, in group order.
template <class T>
void read_channels(const void* values, const int32_t* order, int64_t channels, float* out) {
  for (int64_t i = 0; i < channels; ++i) out[i] = load_one(static_cast<const T*>(values) + (order ? order[i] : i));
}

// Before a forward pass: y in huge pages, and the bias in the order of the weights' channels, nullptr for none.
inline const float* prepare_output(const MaskedConvForward& args, float* bias) {
  const MaskedConv& c = args.conv;
  want_huge_pages(args.y, (c.batch - 1) * args.y.stride_n + c.out_channels * c.height * c.width);
  if (!args.bias) return nullptr;
  GK_BY_STORAGE(args.y.storage, read_channels, args.bias, c.out_order, c.out_channels, bias);
  return bias;
}

}  // namespace gk::GK_ISA::masked_conv
