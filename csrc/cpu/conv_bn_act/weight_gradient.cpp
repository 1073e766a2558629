// Direct weight gradient: for every tap, the sum over the pixels o of the low image of low[o] times the high pixel that
// the tap puts against it.
//
// A task of work is a panel of high channels (N) and a block of low channels (M). It takes the pixels (K) chunk by
// chunk; for each tap the chunk's high pixels are packed as [pixel][column] in L1, and gemm_tile adds rows (planes of
// low channels) times panel to the task's sums in L2. Pixels are ordered [image block][row][column][image], so that
// what a tap leaves out at the border still leaves long runs where images are 4 pixels wide. No sum crosses threads, so
// the result does not depend on their number.
// Of few high channels (an image), the columns are all taps and channels together, read from an image with a border.
#include "cpu/conv_bn_act/weight_gradient.h"

namespace gk::GK_ISA::conv_bn_act {
namespace {

constexpr int64_t FEW_CHANNELS = 16;
constexpr int64_t CHUNK = 256;  // pixels

template <class T>
GK_INLINE T* weight_at(const ConvWeight& w, int64_t kernel_w, int64_t low, int64_t high, int64_t tap) {
  return static_cast<T*>(const_cast<void*>(w.data)) + low * w.stride_low + high * w.stride_high +
         tap / kernel_w * w.stride_kh + tap % kernel_w * w.stride_kw;
}

template <class T>
void write_taps_as(const ConvWeight& w, int64_t kernel_h, int64_t kernel_w, const TapSums& sums) {
  const int64_t taps = kernel_h * kernel_w;
  const ColumnPanel& panel = sums.panel;
  const bool taps_joined = w.stride_kw == 1 && w.stride_kh == kernel_w && taps >= IO;
  const int64_t blocks = taps_joined || w.stride_high == 1 ? panel.columns / IO * IO : 0;
  for (int64_t r = 0; r < sums.rows; ++r) {
    const auto to = [&](int64_t column, int64_t tap) {
      return weight_at<T>(w, kernel_w, sums.row0 + r, panel.first + column, tap);
    };
    const auto from = [&](int64_t tap, int64_t column) {
      return sums.sums + (tap * sums.tap_rows + r) * PANEL_MAX + column;
    };
    for (int64_t j = 0; j < blocks; j += IO) {
      if (w.stride_high == 1) {
        for (int64_t tap = 0; tap < taps; ++tap) store_block(to(j, tap), load_block(from(tap, j)));
        continue;
      }
      for_blocks(taps, [&](int64_t tap) {
        Block v[IO];
        GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_block(from(tap + i, j));
        transpose(v);
        GK_UNROLL for (int i = 0; i < IO; ++i) store_block(to(j + i, tap), v[i]);
      });
    }
    for (int64_t j = blocks; j < panel.columns; ++j)
      for (int64_t tap = 0; tap < taps; ++tap) store_one(to(j, tap), *from(tap, j));
  }
}

GK_INLINE void copy_columns(const float* from, const ColumnPanel& panel, float* to) {
  if (panel.columns == PANEL_MAX) {
    GK_UNROLL for (int j = 0; j < PANEL_MAX; j += VL) store(to + j, load(from + j));
  } else {
    for (int64_t j = 0; j < panel.width(); ++j) to[j] = j < panel.columns ? from[j] : 0.0f;
  }
}

}  // namespace

void write_taps(const ConvWeight& out, int64_t kernel_h, int64_t kernel_w, const TapSums& from) {
  GK_BY_STORAGE(out.storage, write_taps_as, out, kernel_h, kernel_w, from);
}

// A panel and the scratch of the thread that computes it.
struct WeightGradient::Task {
  ColumnPanel panel;
  int64_t row0, rows;
  float *sums, *packed;
  Segment* segments;
  int64_t offsets[PANEL_MAX];  // of the columns, where they are all taps
};

WeightGradient::WeightGradient(const ConvShape& s, const ConvWeight& out, int threads) : s_(s), out_(out) {
  all_taps_ = s.high_channels < FEW_CHANNELS;
  columns_ = all_taps_ ? s.kernel_h * s.kernel_w * s.high_channels : s.high_channels;
  panels_ = column_panels(columns_);
  images_ = s.low_w >= 16 ? 1 : min64(s.batch, ceil_div(64, s.low_w));
  images_ = ceil_div(s.batch, ceil_div(s.batch, images_));
  lines_ = max64(1, min64(s.low_h, CHUNK / (images_ * s.low_w)));
  // As many rows per task as leave four tasks for each thread, but no more sums than L2 holds beside the rest.
  const int64_t wanted = ceil_div(4 * threads, panels_), fitting = max64(MR_MAX, 4096 / panel_taps());
  const int64_t rows = min64(128, min64(fitting, max64(8 * MR_MAX, ceil_div(s.low_channels, wanted))));
  row_blocks_ = ceil_div(s.low_channels, rows);
  rows_ = ceil_div(s.low_channels, row_blocks_);

  sums_ = layout_.take<float>(panel_taps() * rows_ * PANEL_MAX);
  packed_ = layout_.take<float>((lines_ * s.low_w * images_ + PREFETCH_STEPS) * PANEL_MAX);
  segments_ = layout_.take<Segment>(lines_ * most_pieces(s.low_w * images_) + 4);
}

void WeightGradient::run_task(int64_t task, const NchwImage& low, const NhwcImage& high, float* scratch) const {
  const int64_t row0 = task % row_blocks_ * rows_;
  Task own{column_panel(columns_, task / row_blocks_), row0, min64(rows_, s_.low_channels - row0),
           part_of(scratch, sums_), part_of(scratch, packed_), part_of(scratch, segments_), {}};
  memset(own.sums, 0, panel_taps() * rows_ * PANEL_MAX * sizeof(float));
  if (all_taps_) find_columns(own.panel, high, own.offsets);
  for (int64_t n0 = 0; n0 < s_.batch; n0 += images_)
    for (int64_t y0 = 0; y0 < s_.low_h; y0 += lines_)
      add_chunk(own, low, high, {n0, min64(s_.batch, n0 + images_), y0, min64(s_.low_h, y0 + lines_)});
  const TapSums sums{own.sums, rows_, own.panel, row0, own.rows};
  if (all_taps_)
    GK_BY_STORAGE(out_.storage, write_all_taps, sums);
  else
    write_taps(out_, s_.kernel_h, s_.kernel_w, sums);
}

void WeightGradient::add_chunk(const Task& task, const NchwImage& low, const NhwcImage& high,
                               const Lines& lines) const {
  const float* const planes = low.data + task.row0 * low.stride_channel + lines.n0 / images_ * low.stride_block;
  for (int64_t tap = 0; tap < panel_taps(); ++tap) {
    int64_t count = 0;
    if (all_taps_) {
      const int64_t line = s_.low_w * lines.images();
      pack_all_taps(task, high, lines);
      count = cut_run(lines.y0 * line, lines.height() * line, task.segments);
    } else {
      count = pack_tap(task, high, tap, lines);
    }
    if (count == 0) continue;
    for_row_tiles(task.rows, [&](int64_t first, int64_t tile_rows) {
      const float* at[MR_MAX];
      for (int64_t i = 0; i < tile_rows; ++i) at[i] = planes + (first + i) * low.stride_channel;
      tile_function(TileMode::add, static_cast<int>(tile_rows), task.panel.nr)(
          at, task.segments, count, task.packed, task.sums + (tap * rows_ + first) * PANEL_MAX, PANEL_MAX);
    });
  }
}

// The high pixels that `tap` puts against `lines` of the low images; returns the segments of their partners.
int64_t WeightGradient::pack_tap(const Task& task, const NhwcImage& high, int64_t tap, const Lines& lines) const {
  const ColumnPanel& panel = task.panel;
  const int64_t C = s_.high_channels, W = s_.low_w, images = lines.images();
  const int64_t dy = tap / s_.kernel_w - s_.pad_h, dx = tap % s_.kernel_w - s_.pad_w;
  const int64_t lo = dx < 0 ? min64(W, ceil_div(-dx, s_.stride_w)) : 0;
  const int64_t hi = dx >= s_.high_w ? lo : max64(lo, min64(W, (s_.high_w - 1 - dx) / s_.stride_w + 1));
  if (lo == hi) return 0;
  // One image at a time: a line is long, and leaving a column out saves less than a cut costs.
  const int64_t x0 = images == 1 ? 0 : lo, x1 = images == 1 ? W : hi;
  float* packed = task.packed;
  int64_t count = 0, first = -1, end = -1;  // the run of partners that is growing
  for (int64_t y = lines.y0; y < lines.y1; ++y) {
    const int64_t in_y = y * s_.stride_h + dy;
    if (in_y < 0 || in_y >= s_.high_h) continue;
    const float* const line = high.data + lines.n0 * high.stride_n + in_y * high.stride_h + dx * C + panel.first;
    for (int64_t x = x0; x < x1; ++x) {
      if (x < lo || x >= hi) {
        memset(packed, 0, panel.width() * sizeof(float));
        packed += panel.width();
        continue;
      }
      const float* from = line + x * s_.stride_w * C;
      for (int64_t n = 0; n < images; ++n, from += high.stride_n, packed += panel.width())
        copy_columns(from, panel, packed);
    }
    const int64_t begin = (y * W + x0) * images, stop = (y * W + x1) * images;
    if (begin != end) {
      if (first >= 0) count += cut_run(first, end - first, task.segments + count);
      first = begin;
    }
    end = stop;
  }
  if (first >= 0) count += cut_run(first, end - first, task.segments + count);
  return count;
}

// offsets[j]: of column j of the panel, from the high pixel under tap (0, 0).
void WeightGradient::find_columns(const ColumnPanel& panel, const NhwcImage& high, int64_t* offsets) const {
  for (int64_t j = 0; j < panel.width(); ++j) {
    const int64_t column = panel.first + min64(j, panel.columns - 1), run = s_.kernel_w * s_.high_channels;
    offsets[j] = column / run * high.stride_h + column % run;
  }
}

void WeightGradient::pack_all_taps(const Task& task, const NhwcImage& high, const Lines& lines) const {
  const int64_t width = task.panel.width();
  const int64_t* const offsets = task.offsets;
  float* packed = task.packed;
  for (int64_t y = lines.y0; y < lines.y1; ++y)
    for (int64_t x = 0; x < s_.low_w; ++x)
      for (int64_t n = lines.n0; n < lines.n1; ++n, packed += width) {
        const float* const from = high.data + n * high.stride_n + y * s_.stride_h * high.stride_h +
                                  x * s_.stride_w * s_.high_channels;
        for (int64_t j = 0; j < width; j += 4) {
          if (offsets[j + 3] - offsets[j] == 3) {
            memcpy(packed + j, from + offsets[j], 4 * sizeof(float));
          } else {
            for (int64_t i = j; i < j + 4; ++i) packed[i] = from[offsets[i]];
          }
        }
      }
}

template <class T>
void WeightGradient::write_all_taps(const TapSums& from) const {
  for (int64_t r = 0; r < from.rows; ++r)
    for (int64_t j = 0; j < from.panel.columns; ++j) {
      const int64_t column = from.panel.first + j, tap = column / s_.high_channels;
      store_one(weight_at<T>(out_, s_.kernel_w, from.row0 + r, column % s_.high_channels, tap),
                from.sums[r * PANEL_MAX + j]);
    }
}

void make_planes(const NhwcImage& in, int64_t height, int64_t width, int64_t n0, int64_t images, int64_t c,
                 int64_t stride_channel, float* planes) {
  const int64_t C = in.channels, count = height * width * images, live = min64(IO, C - c);
  int64_t n = 0, x = 0, y = 0, q = 0;  // counted on: to divide q would take longer than to move its pixel
  const auto next_pixel = [&] {
    const float* const pixel = in.data + (n0 + n) * in.stride_n + y * in.stride_h + x * C + c;
    if (++n < images) return pixel;
    n = 0;
    if (++x < width) return pixel;
    x = 0;
    ++y;
    return pixel;
  };
  if (live == IO) {
    for (; q + IO <= count; q += IO) {
      Block v[IO];
      GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_block(next_pixel());
      transpose(v);
      GK_UNROLL for (int i = 0; i < IO; ++i) store_block(planes + (c + i) * stride_channel + q, v[i]);
    }
  }
  for (; q < count; ++q) {
    const float* const from = next_pixel();
    for (int64_t i = 0; i < live; ++i) planes[(c + i) * stride_channel + q] = from[i];
  }
}

}  // namespace gk::GK_ISA::conv_bn_act
