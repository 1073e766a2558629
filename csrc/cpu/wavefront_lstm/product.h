// Matrix products of the wavefront LSTM: packed weights, the product of a step, and memory prefetched meanwhile.
#pragma once

#include "cpu/core/gemm_tile.h"
#include "cpu/core/image_io.h"
#include "cpu/core/scratch.h"
#include "cpu/wavefront_lstm/threads.h"

namespace gk::GK_ISA::wavefront_lstm {

inline int64_t panel_count(int64_t columns) { return ceil_div(columns, PANEL_MAX); }
inline int64_t padded(int64_t columns) { return panel_count(columns) * PANEL_MAX; }

// IO elements at a stride.
template <class T>
GK_INLINE Block load_run(const T* p, int64_t stride) {
  if (stride == 1) return load_block(p);
  Block v;
  for (int i = 0; i < IO; ++i) v[i] = load_one(p + i * stride);
  return v;
}

// Reductions [first, first + count) of a product that has `total`.
struct Reductions { int64_t total, first, count; };

// Packs these rows of panel `index` of a matrix [total][columns]; at(k, j) is where entry (first + k, j) stands. IO
// entries that stand `stride` apart, along j or along k (`along_k`), are moved at once; such a run never crosses a
// multiple of `period`, and IO runs along k, one for each j, stand `across` apart.
template <class T, class At>
GK_INLINE void pack_panel(const Reductions& part, int64_t columns, int64_t index, bool along_k, int64_t period,
                          int64_t stride, int64_t across, const At& at, float* packed) {
  const int64_t first = index * PANEL_MAX, live = min64(PANEL_MAX, columns - first), width = ceil_div(live, VL) * VL;
  float* const out = packed + index * PANEL_MAX * part.total + part.first * width;
  for (int64_t lane = 0; lane < width; lane += IO) {
    const bool whole = lane + IO <= live;
    for (int64_t k = 0; k < part.count;) {
      if (whole && along_k && k % period + IO <= period) {
        Block v[IO];
        const T* const from = at(k, first + lane);
        GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_run(from + i * across, stride);
        transpose(v);
        GK_UNROLL for (int i = 0; i < IO; ++i) store_block(out + (k + i) * width + lane, v[i]);
        k += IO;
        continue;
      }
      if (whole && !along_k && (first + lane) % period + IO <= period) {
        store_block(out + k * width + lane, load_run(at(k, first + lane), stride));
      } else {
        for (int64_t i = lane; i < lane + IO; ++i) out[k * width + i] = i < live ? load_one(at(k, first + i)) : 0.0f;
      }
      ++k;
    }
  }
}

template <class T>
GK_INLINE const T* weight_at(const WeightView& w, int64_t tap, int64_t out, int64_t in) {
  return static_cast<const T*>(w.data) + tap * w.stride_tap + out * w.stride_out + in * w.stride_in;
}

// A panel of a direction's weights for the forward product: [taps * h, then input taps * channels] x [4h].
template <class T>
void pack_forward(const WavefrontLSTM& l, const WavefrontDirection& direction, int64_t index, float* packed) {
  const int64_t total = reductions_of(l);
  const auto pack = [&](const WeightView& weight, int64_t first, int64_t taps, int64_t inputs) {
    const auto at = [&](int64_t k, int64_t j) { return weight_at<T>(weight, k / inputs, j, k % inputs); };
    pack_panel<T>({total, first, taps * inputs}, 4 * l.hidden, index, /*along_k=*/true, inputs, weight.stride_in,
                  weight.stride_out, at, packed);
  };
  pack(direction.weight, 0, l.tap_count, l.hidden);
  pack(direction.input_weight, l.tap_count * l.hidden, l.live_taps, l.channels);
}

// A panel for the backward product: [4h] x [taps * h].
template <class T>
void pack_backward(const WavefrontLSTM& l, const WavefrontDirection& direction, int64_t index, float* packed) {
  const int64_t h = l.hidden;
  const auto at = [&](int64_t k, int64_t j) { return weight_at<T>(direction.weight, j / h, k, j % h); };
  pack_panel<T>({4 * h, 0, 4 * h}, l.tap_count * h, index, /*along_k=*/false, h, direction.weight.stride_in, 0, at,
                packed);
}

// Constants of a direction: h0 [h] and c0 [h], which stand outside the image, and the bias of the gates [4h].
inline int64_t constant_floats(const WavefrontLSTM& l) { return Scratch::round(6 * l.hidden); }

template <class T>
void read_constants(const WavefrontLSTM& l, const WavefrontDirection& direction, float* out) {
  const auto read = [&](const void* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) *out++ = values ? load_one(static_cast<const T*>(values) + i) : 0.0f;
  };
  read(direction.h0, l.hidden);
  read(direction.c0, l.hidden);
  read(direction.input_bias, 4 * l.hidden);
}

// One tile whose rows are one run of the reduction.
GK_INLINE void run_tile(TileMode mode, int64_t mr, int64_t nr, const float* const* rows, const Segment& run,
                        const float* panel, float* out, int64_t out_stride) {
  tile_function(mode, static_cast<int>(mr), static_cast<int>(nr))(rows, &run, 1, panel, out, out_stride);
}

// Reduction steps at a time: a panel of so many (16 KiB on AVX2) leaves half of L1 to the rows.
constexpr int64_t REDUCTIONS_MAX = 256;

// Memory that the next elementwise pass will touch, prefetched a little with every tile of a product: the cells of a
// diagonal lie too far apart for the hardware to guess, and a cell would wait for L3 some forty times.
class PrefetchQueue {
 public:
  GK_INLINE void add(const float* p, int64_t floats) {
    for (int64_t k = 0; k + RUN <= floats && count_ < MOST; k += RUN) runs_[count_++] = p + k;
  }
  int64_t count() const { return count_; }
  GK_INLINE void prefetch(int64_t runs) {
    for (; runs > 0 && count_ > 0; --runs) {
      const float* const p = runs_[--count_];
      GK_UNROLL for (int k = 0; k < RUN; k += 16) __builtin_prefetch(p + k);
    }
  }

 private:
  static constexpr int RUN = 64, MOST = 2048;
  int64_t count_ = 0;
  const float* runs_[MOST];
};

// out[row][column] = rows[row][k] * packed[k][column], in panels; out has padded(columns) floats a row.
inline void multiply(const float* rows, int64_t count, int64_t reductions, const float* packed, int64_t columns,
                     float* out, PrefetchQueue& prefetches) {
  const int64_t stride = padded(columns);
  const int64_t runs = ceil_div(prefetches.count(), panel_count(columns) * ceil_div(count, MR_MAX));
  const ThreadSlice blocks{0, ceil_div(reductions, REDUCTIONS_MAX)};
  for (int64_t p = 0; p < panel_count(columns); ++p) {
    const int64_t nr = ceil_div(min64(PANEL_MAX, columns - p * PANEL_MAX), VL);
    for (int64_t b = 0; b < blocks.count; ++b) {
      const ThreadSlice block{b, blocks.count};
      const Segment segment{block.begin(reductions), block.end(reductions) - block.begin(reductions)};
      const float* const panel = packed + p * PANEL_MAX * reductions + segment.offset * nr * VL;
      for_row_tiles(count, [&](int64_t first, int64_t tile_rows) {
        const float* row[MR_MAX];
        for (int64_t i = 0; i < tile_rows; ++i) row[i] = rows + (first + i) * reductions;
        prefetches.prefetch(runs);
        run_tile(b == 0 ? TileMode::write : TileMode::add, tile_rows, nr, row, segment, panel,
                 out + first * stride + p * PANEL_MAX, stride);
      });
    }
  }
}

}  // namespace gk::GK_ISA::wavefront_lstm
