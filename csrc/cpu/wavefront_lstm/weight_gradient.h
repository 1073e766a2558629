// The gradient of the wavefront LSTM's weight, once that of the gates of a sequence is there.
//
// Tiling: blocks of lines of a sequence. Rows of the product = (tap, channel) planes of h, shifted by the tap, the initial
// state outside the image; panels = gates; reduction = the pixels of the block, without a break. A block's planes stay
// in L2, a panel of the gates' gradient in L1. Bound: the multiply-add units (measured: 85 % of their peak on AVX2).
#pragma once

#include "cpu/wavefront_lstm/product.h"
#include "cpu/wavefront_lstm/sequences.h"

namespace gk::GK_ISA::wavefront_lstm {

// Pixels of one block of the weight's gradient: its planes stay within 192 KiB of L2, a panel of the gradient in L1.
inline int64_t block_lines(const WavefrontLSTM& l) {
  const int64_t wanted = max64(32, min64(384, 48 * 1024 / (l.tap_count * l.hidden)));
  const int64_t lines = max64(1, min64(l.height, wanted / l.width));
  return ceil_div(l.height, ceil_div(l.height, lines));
}

// hidden at tap t of the block's pixels, as planes [channel][pixel]; outside the image h0.
inline void load_tap(const WavefrontLSTM& l, const Sequence& sequence, const Region& block, int64_t t, float* planes) {
  const int64_t dy = l.diagonal ? l.taps[t] : -1;
  const int64_t dx = l.diagonal ? (sequence.mirrored ? 1 + l.taps[t] : -1 - l.taps[t]) : l.taps[t];
  const Cells& cells = sequence.hidden;
  const ImageView hidden{cells.data, 0, 1, cells.stride_y, cells.stride_x, Storage::float32};
  load_planes({hidden, 0, l.hidden, l.height, l.width, nullptr, nullptr},
              {block.y0 + dy, block.y1 + dy, dx, l.width + dx}, planes);
  for (int64_t y = block.y0; y < block.y1; ++y) {
    const bool above = y + dy < 0;
    const int64_t left = above ? l.width : min64(l.width, max64(0, -dx));  // pixels without a source on either side
    const int64_t right = above ? 0 : min64(l.width, max64(0, dx));
    for (int64_t k = 0; k < l.hidden; ++k) {
      float* const line = planes + k * block.pixels() + (y - block.y0) * l.width;
      for (int64_t x = 0; x < left; ++x) line[x] = sequence.h0[k];
      for (int64_t x = l.width - right; x < l.width; ++x) line[x] = sequence.h0[k];
    }
  }
}

// Adds one block's part of the weight's gradient to sums [taps * h][padded(4h)].
inline void add_weight_block(const WavefrontLSTM& l, const Sequence& sequence, const Cells& grad_gates,
                             const Region& block, float* planes, float* panel, float* sums) {
  const int64_t h = l.hidden, pixels = block.pixels(), stride = padded(4 * h);
  for (int64_t t = 0; t < l.tap_count; ++t) load_tap(l, sequence, block, t, planes + t * h * pixels);
  for (int64_t p = 0; p < panel_count(4 * h); ++p) {
    const int64_t first = p * PANEL_MAX, live = min64(PANEL_MAX, 4 * h - first), width = ceil_div(live, VL) * VL;
    float* to = panel;
    for (int64_t y = block.y0; y < block.y1; ++y)
      for (int64_t x = 0; x < l.width; ++x, to += width) {
        const float* from = grad_gates.at(y, x) + first;
        __builtin_prefetch(from + PANEL_MAX);  // of the next panel: it arrives while this one is multiplied
        if (live == width) {
          for (int64_t j = 0; j < width; j += VL) store(to + j, load(from + j));
        } else {
          for (int64_t j = 0; j < width; ++j) to[j] = j < live ? from[j] : 0.0f;
        }
      }
    const Segment all{0, pixels};
    for_row_tiles(l.tap_count * h, [&](int64_t row, int64_t count) {
      const float* rows[MR_MAX];
      for (int64_t i = 0; i < count; ++i) rows[i] = planes + (row + i) * pixels;
      run_tile(TileMode::add, count, width / VL, rows, all, panel, sums + row * stride + first, stride);
    });
  }
}

// Adds the threads' sums of gates [j, j + IO) at one tap and writes them as rows of grad_weight [taps, 4h, h].
template <class T>
void write_weight(const WavefrontLSTM& l, void* grad_weight, int64_t tap, int64_t j, const float* sums,
                  int64_t thread_stride, int team) {
  const int64_t h = l.hidden, stride = padded(4 * h), rows = min64(IO, 4 * h - j);
  T* const to = static_cast<T*>(grad_weight) + (tap * 4 * h + j) * h;
  const auto total = [&](int64_t k) {
    Block sum{};
    for (int i = 0; i < team; ++i) sum += load_block(sums + i * thread_stride + (tap * h + k) * stride + j);
    return sum;
  };
  int64_t k = 0;
  for (; rows == IO && k + IO <= h; k += IO) {
    Block v[IO];
    GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = total(k + i);
    transpose(v);
    GK_UNROLL for (int i = 0; i < IO; ++i) store_block(to + i * h + k, v[i]);
  }
  for (; k < h; ++k) {
    const Block sum = total(k);
    for (int64_t i = 0; i < rows; ++i) store_one(to + i * h + k, sum[i]);
  }
}

}  // namespace gk::GK_ISA::wavefront_lstm
