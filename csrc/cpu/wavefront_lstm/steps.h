// What forward and backward of the wavefront LSTM share: fronts, the division of work, packed weights, the product.
//
//   gates[p] = input[p] + sum over taps  W_tap h[p + tap]     i, f, o: sigmoid, g: tanh
//   input[p] = as given, or  bias + sum over input taps  V_tap x[p + tap], in the same product
//   c[p] = f c[p + tap 0] + i g,   h[p] = o tanh(c[p])
//
// A cell is named by its front s and its position r on it; tap k then reads front s - 1 at position r + k, and that is
// inside the image exactly where front s - 1 has such a position. A unit is one image of one walk.
#pragma once

#include "cpu/core/parallel.h"
#include <omp.h>

#include "cpu/core/gemm_tile.h"
#include "cpu/core/image_io.h"
#include "cpu/core/scratch.h"
#include "cpu/wavefront_lstm/wavefront_lstm.h"
#include "cpu/wavefront_lstm/threads.h"

namespace gk::GK_ISA {

// --- fronts ---

struct Span {
  int64_t lo, hi;
  bool has(int64_t r) const { return r >= lo && r < hi; }
  int64_t length() const { return hi - lo; }
};

struct Fronts {
  int64_t height, width;
  bool diagonal;

  int64_t count() const { return diagonal ? height + width - 1 : height; }
  int64_t positions() const { return diagonal ? height : width; }
  int64_t longest() const { return diagonal ? min64(height, width) : width; }
  // The positions of front s; none before the first front and behind the last.
  Span span(int64_t s) const {
    if (s < 0 || s >= count()) return {0, 0};
    return diagonal ? Span{max64(0, s - width + 1), min64(height, s + 1)} : Span{0, width};
  }
};

inline Fronts fronts_of(const WavefrontLSTM& l) { return {l.height, l.width, l.diagonal}; }

// Floats of a cell that the forward product takes in: h at the taps, then x at the input taps.
inline int64_t reductions_of(const WavefrontLSTM& l) { return l.tap_count * l.hidden + l.live_taps * l.channels; }

// --- who does what ---

// One thread's part of work that `count` threads do together.
struct Share {
  int64_t index, count;
  FrontBarrier* barrier = nullptr;
  int64_t begin(int64_t total) const { return total * index / count; }
  int64_t end(int64_t total) const { return total * (index + 1) / count; }
  void wait() const {
    if (count > 1) barrier->wait(count);
  }
};

inline int useful_threads(const WavefrontLSTM& l, int64_t walks, int threads) {
  const int64_t work = walks * l.batch * l.height * l.width * 4 * l.hidden * reductions_of(l);
  return useful_threads(work, PRODUCTS_PER_THREAD, threads);
}

constexpr int64_t UNITS_MAX = 64;   // of one group
constexpr int64_t ROWS_MAX = 128;   // of one product

// Units that walk in step, so many that their fronts fill the rows of a product: only then are the weights, which
// stream from L2 or L3 once per product, used often enough.
inline int64_t group_units(const WavefrontLSTM& l, int64_t walks, int threads) {
  const int64_t cells_per_front = ceil_div(l.height * l.width, fronts_of(l).count());
  const int64_t wanted = min64(UNITS_MAX, ceil_div(32, cells_per_front));
  const int64_t units = l.batch * walks, own = units / threads;
  const int64_t most = max64(own, units - own * threads);
  return ceil_div(most, ceil_div(most, wanted));
}

// Calls walk(first unit, units, share) for groups of at most `limit` units. Each thread walks the same number of units
// alone; what is left over (fewer than threads) is walked by all of them together, each front split among them. To be
// called by every thread of the team.
template <class Walk>
GK_INLINE void for_groups(int64_t units, int64_t limit, FrontBarrier* barrier, const Walk& walk) {
  const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
  const int64_t own = units / team, left = units - own * team;
  const auto groups = [&](int64_t first, int64_t count, const Share& share) {
    const int64_t pieces = ceil_div(count, limit);
    for (int64_t i = 0; i < pieces; ++i) {
      const Share piece{i, pieces};
      share.wait();  // the scratch of the piece before is free
      walk(first + piece.begin(count), piece.end(count) - piece.begin(count), share);
    }
  };
  groups(me * own, own, Share{0, 1});
  groups(team * own, left, Share{me, team, barrier});
}

// --- cells of a group ---

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

// One unit as the walks see it.
struct Unit {
  int64_t walk, image;
  bool mirrored;
  Cells input;      // [4h] gates before the recurrence, or, where they are convolved, everywhere their bias
  Cells x;          // [channels], where they are convolved
  float* gates;     // [H * W][4h] after it, or nullptr: not kept
  float* c;         // [H * W][h], or, not kept, [positions][h] of the last front alone
  bool keeps_c;
  Cells hidden;     // [h]
  const float *h0, *c0;
};

// A cell of the front at hand.
struct FrontCell {
  int64_t unit;    // in the group
  int64_t r, y, x;
};

GK_INLINE FrontCell front_cell(const Fronts& f, int64_t s, int64_t r, const Unit* units, int64_t unit) {
  if (!f.diagonal) return {unit, r, s, r};
  return {unit, r, r, units[unit].mirrored ? f.width - 1 - (s - r) : s - r};
}

// The thread's share of front s, in chunks of at most `limit` cells of one walk: calls chunk(cells, count, number of
// the first in the front). The cells of a front are numbered unit by unit.
template <class Chunk>
GK_INLINE void for_chunks(const Fronts& f, int64_t s, const Unit* units, int64_t unit_count, const Share& share,
                          int64_t limit, const Chunk& chunk) {
  FrontCell cells[ROWS_MAX];
  const Span span = f.span(s);
  const int64_t total = span.length() * unit_count, end = share.end(total);
  int64_t first = share.begin(total);
  const int64_t even = ceil_div(end - first, max64(1, ceil_div(end - first, limit)));
  while (first < end) {
    int64_t count = 0;
    for (int64_t unit = first / span.length(), r = first % span.length(); count < min64(even, end - first); ++count) {
      if (units[unit].walk != units[first / span.length()].walk) break;
      cells[count] = front_cell(f, s, span.lo + r, units, unit);
      if (++r == span.length()) r = 0, ++unit;
    }
    chunk(cells, count, first);
    first += count;
  }
}

// --- products ---

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

// A panel of the walk's weights for the forward product: [taps * h, then input taps * channels] x [4h].
template <class T>
void pack_forward(const WavefrontLSTM& l, const WavefrontDirection& walk, int64_t index, float* packed) {
  const int64_t total = reductions_of(l);
  const auto pack = [&](const WeightView& weight, int64_t first, int64_t taps, int64_t inputs) {
    const auto at = [&](int64_t k, int64_t j) { return weight_at<T>(weight, k / inputs, j, k % inputs); };
    pack_panel<T>({total, first, taps * inputs}, 4 * l.hidden, index, /*along_k=*/true, inputs, weight.stride_in,
                  weight.stride_out, at, packed);
  };
  pack(walk.weight, 0, l.tap_count, l.hidden);
  pack(walk.input_weight, l.tap_count * l.hidden, l.live_taps, l.channels);
}

// A panel for the backward product: [4h] x [taps * h].
template <class T>
void pack_backward(const WavefrontLSTM& l, const WavefrontDirection& walk, int64_t index, float* packed) {
  const int64_t h = l.hidden;
  const auto at = [&](int64_t k, int64_t j) { return weight_at<T>(walk.weight, j / h, k, j % h); };
  pack_panel<T>({4 * h, 0, 4 * h}, l.tap_count * h, index, /*along_k=*/false, h, walk.weight.stride_in, 0, at,
                packed);
}

// What a walk's cells find where there is nothing of the image: h0 [h], c0 [h] and the gates' bias [4h].
inline int64_t constant_floats(const WavefrontLSTM& l) { return Scratch::round(6 * l.hidden); }

template <class T>
void read_constants(const WavefrontLSTM& l, const WavefrontDirection& walk, float* out) {
  const auto read = [&](const void* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) *out++ = values ? load_one(static_cast<const T*>(values) + i) : 0.0f;
  };
  read(walk.h0, l.hidden);
  read(walk.c0, l.hidden);
  read(walk.input_bias, 4 * l.hidden);
}

// One tile whose rows are one run of the reduction.
GK_INLINE void run_tile(TileMode mode, int64_t mr, int64_t nr, const float* const* rows, const Segment& run,
                        const float* panel, float* out, int64_t out_stride) {
  tile_function(mode, static_cast<int>(mr), static_cast<int>(nr))(rows, &run, 1, panel, out, out_stride);
}

// Reduction steps at a time: a panel of so many (16 KiB on AVX2) leaves half of L1 to the rows.
constexpr int64_t REDUCTIONS_MAX = 256;

// Memory that the next elementwise pass will touch, asked for a little with every tile of a product: the cells of a
// diagonal lie too far apart for the hardware to guess, and a cell would wait for L3 some forty times.
class Lookahead {
 public:
  GK_INLINE void add(const float* p, int64_t floats) {
    for (int64_t k = 0; k + RUN <= floats && count_ < MOST; k += RUN) runs_[count_++] = p + k;
  }
  int64_t count() const { return count_; }
  GK_INLINE void ask(int64_t runs) {
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
                     float* out, Lookahead& ahead) {
  const int64_t stride = padded(columns);
  const int64_t runs = ceil_div(ahead.count(), panel_count(columns) * ceil_div(count, MR_MAX));
  const Share blocks{0, ceil_div(reductions, REDUCTIONS_MAX)};
  for (int64_t p = 0; p < panel_count(columns); ++p) {
    const int64_t nr = ceil_div(min64(PANEL_MAX, columns - p * PANEL_MAX), VL);
    for (int64_t b = 0; b < blocks.count; ++b) {
      const Share block{b, blocks.count};
      const Segment segment{block.begin(reductions), block.end(reductions) - block.begin(reductions)};
      const float* const panel = packed + p * PANEL_MAX * reductions + segment.offset * nr * VL;
      for_row_tiles(count, [&](int64_t first, int64_t tile_rows) {
        const float* row[MR_MAX];
        for (int64_t i = 0; i < tile_rows; ++i) row[i] = rows + (first + i) * reductions;
        ahead.ask(runs);
        run_tile(b == 0 ? TileMode::write : TileMode::add, tile_rows, nr, row, segment, panel,
                 out + first * stride + p * PANEL_MAX, stride);
      });
    }
  }
}

// --- elementwise passes ---

// Some or all lanes of a vector.
template <bool ALL>
struct Lanes {
  int64_t count;
  GK_INLINE Vec get(const float* p) const {
    if (ALL) return load(p);
    Vec v{};
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return v;
  }
  GK_INLINE void put(float* p, Vec v) const {
    if (ALL) return store(p, v);
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
  }
};

// Calls body(first channel, lanes) for all channels, a vector at a time.
template <class Body>
GK_INLINE void for_channels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + VL <= channels; c += VL) body(c, Lanes<true>{VL});
  if (c < channels) body(c, Lanes<false>{channels - c});
}

}  // namespace gk::GK_ISA
