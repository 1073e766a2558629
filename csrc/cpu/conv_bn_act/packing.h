// Weights packed into panels of columns for the direct products: [phase][tap row][tap column][reduction][column of the
// panel].
#pragma once

#include "cpu/conv_bn_act/axis.h"
#include "cpu/core/gemm_tile.h"
#include "cpu/core/scratch.h"
#include "cpu/core/storage.h"

namespace gk::GK_ISA::conv_bn_act {

// An array in the scratch of a product, which is a part of that of the call.
template <class T>
T* part_of(float* scratch, ScratchArray<T> array) {
  return reinterpret_cast<T*>(scratch + array.offset);
}

// A weight as the matrix of a product: columns (N) are its outputs, reductions (K) its inputs.
struct ColumnWeight {
  const void* data;
  int64_t columns, reductions;
  int64_t stride_column, stride_reduction, stride_kh, stride_kw;
  Storage storage;
};

inline ColumnWeight columns_of(const ConvShape& s, const ConvWeight& w, ConvKind kind) {
  if (kind == ConvKind::transposed)
    return {w.data, s.high_channels, s.low_channels, w.stride_high, w.stride_low, w.stride_kh, w.stride_kw, w.storage};
  return {w.data, s.low_channels, s.high_channels, w.stride_low, w.stride_high, w.stride_kh, w.stride_kw, w.storage};
}

struct ColumnPanel {
  int64_t first, columns;  // the columns it holds
  int nr;                  // its width in vectors
  int64_t width() const { return int64_t{nr} * VL; }
};

inline int64_t column_panels(int64_t columns) { return ceil_div(columns, PANEL_MAX); }
inline ColumnPanel column_panel(int64_t columns, int64_t index) {
  const int64_t first = index * PANEL_MAX, count = min64(PANEL_MAX, columns - first);
  return {first, count, static_cast<int>(ceil_div(count, VL))};
}

// Where the panel of tap (ky, kx) begins, in units of reductions * width: `place[ky * kernel_w + kx]`.
inline void place_taps(const Axis& rows, const Axis& cols, int64_t* place) {
  for (int64_t fy = 0; fy < rows.phases(); ++fy)
    for (int64_t fx = 0; fx < cols.phases(); ++fx)
      for (int64_t ty = 0; ty < rows.taps(fy); ++ty)
        for (int64_t tx = 0; tx < cols.taps(fx); ++tx)
          place[rows.tap(fy, ty) * cols.kernel + cols.tap(fx, tx)] =
              rows.taps_before(fy) * cols.kernel + rows.taps(fy) * cols.taps_before(fx) + ty * cols.taps(fx) + tx;
}

constexpr int64_t PREFETCH_ROWS = 4;

// Whichever of columns, taps and reductions stand side by side in memory is read block by block.
template <class T>
void pack_columns(const ColumnWeight& w, const ColumnPanel& panel, int64_t kernel_h, int64_t kernel_w,
                  const int64_t* place, float* packed) {
  const int64_t width = panel.width(), taps = kernel_h * kernel_w, C = w.reductions, step = C * width;
  const T* const data = static_cast<const T*>(w.data) + panel.first * w.stride_column;
  const auto tap_at = [&](int64_t tap) { return tap / kernel_w * w.stride_kh + tap % kernel_w * w.stride_kw; };
  const auto from = [&](int64_t column, int64_t c) { return data + column * w.stride_column + c * w.stride_reduction; };
  const bool taps_joined = w.stride_kw == 1 && w.stride_kh == kernel_w && taps >= IO;
  // One block: IO columns at `place` from v, where v[i] holds column i.
  const auto store_transposed = [&](Block (&v)[IO], int64_t lane, int64_t tap, int64_t c, int64_t tap_step,
                                    int64_t c_step) {
    transpose(v);
    GK_UNROLL for (int i = 0; i < IO; ++i)
      store_block(packed + place[tap + i * tap_step] * step + (c + i * c_step) * width + lane, v[i]);
  };
  // Columns in the innermost loop: a line of the panel is then written at once, though all taps share a set of L1.
  const int64_t blocks = panel.columns / IO * IO;
  int64_t done = blocks;
  if (w.stride_column == 1) {
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0; c < C; ++c)
        for (int64_t lane = 0; lane < blocks; lane += IO)
          store_block(packed + place[tap] * step + c * width + lane, load_block(from(lane, c) + tap_at(tap)));
  } else if (taps_joined) {
    for (int64_t c = 0; c < C; ++c)
      for (int64_t first = 0; first < taps; first += IO)
        for (int64_t lane = 0; lane < blocks; lane += IO) {
          const int64_t tap = min64(first, taps - IO);
          Block v[IO];
          GK_UNROLL for (int i = 0; i < IO; ++i) {
            v[i] = load_block(from(lane + i, c) + tap);
            __builtin_prefetch(from(lane + i, c + PREFETCH_ROWS) + tap);  // a page away: the hardware does not prefetch
          }
          store_transposed(v, lane, tap, c, 1, 0);
        }
  } else if (w.stride_reduction == 1 && C >= IO) {
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t first = 0; first < C; first += IO)
        for (int64_t lane = 0; lane < blocks; lane += IO) {
          const int64_t c = min64(first, C - IO);
          Block v[IO];
          GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_block(from(lane + i, c) + tap_at(tap));
          store_transposed(v, lane, tap, c, 0, 1);
        }
  } else {
    done = 0;
  }
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t i = done; i < width; ++i)
        packed[place[tap] * step + c * width + i] = i < panel.columns ? load_one(from(i, c) + tap_at(tap)) : 0.0f;
}

// Writes a run of any length as segments and returns their number, at most most_pieces(length).
inline int64_t cut_run(int64_t offset, int64_t length, Segment* segments) {
  int64_t count = 0;
  for (int64_t done = 0; done < length; done += SEGMENT_MAX)
    segments[count++] = {offset + done, min64(SEGMENT_MAX, length - done)};
  return count;
}
inline int64_t most_pieces(int64_t length) { return ceil_div(length, SEGMENT_MAX); }

}  // namespace gk::GK_ISA::conv_bn_act
