// The weight gradient: for every tap, the sum over the pixels o of the small image of small[o] times the large pixel
// that the tap puts against it.
//
// A unit of work is a panel of large channels and a block of small channels. It walks the pixels chunk by chunk; for
// each tap the chunk's large pixels are packed as [pixel][column] in L1, and gemm_tile adds rows (planes of small
// channels) times panel to the unit's sums in L2. Pixels are ordered [image block][row][column][image], so that what a
// tap leaves out at the border still leaves long runs where images are 4 pixels wide. No sum crosses threads, so the
// result does not depend on their number.
// Of few large channels (an image), the columns are all taps and channels together, read from an image with a border.
#pragma once

#include <omp.h>

#include "cpu/conv_bn_act/nhwc_image.h"
#include "cpu/conv_bn_act/packing.h"
#include "cpu/core/scratch.h"

namespace gk::GK_ISA {

// Channel planes of the small image, [channel][pixel in the order above].
struct Planes {
  const float* data;
  int64_t stride_channel, stride_block;  // from one block of images to the next
};

template <class T>
GK_INLINE T* weight_at(const ConvWeight& w, int64_t kernel_w, int64_t small, int64_t large, int64_t tap) {
  return static_cast<T*>(const_cast<void*>(w.data)) + small * w.stride_small + large * w.stride_large +
         tap / kernel_w * w.stride_kh + tap % kernel_w * w.stride_kw;
}

// A panel of large channels and `rows` small channels from row0 on: from sums[tap][row][column of the panel], of which a
// tap holds `tap_rows`, to the weight gradient.
template <class T>
void write_taps(const ConvWeight& w, int64_t kernel_h, int64_t kernel_w, const float* sums, int64_t tap_rows,
                const ColumnPanel& panel, int64_t row0, int64_t rows) {
  const int64_t taps = kernel_h * kernel_w;
  const bool taps_joined = w.stride_kw == 1 && w.stride_kh == kernel_w && taps >= IO;
  const int64_t blocks = taps_joined || w.stride_large == 1 ? panel.columns / IO * IO : 0;
  for (int64_t r = 0; r < rows; ++r) {
    const auto to = [&](int64_t column, int64_t tap) {
      return weight_at<T>(w, kernel_w, row0 + r, panel.first + column, tap);
    };
    const auto from = [&](int64_t tap, int64_t column) { return sums + (tap * tap_rows + r) * PANEL_MAX + column; };
    for (int64_t j = 0; j < blocks; j += IO) {
      if (w.stride_large == 1) {
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

class WeightGradient {
 public:
  static constexpr int64_t FEW_CHANNELS = 16;
  static constexpr int64_t CHUNK = 256;  // pixels

  WeightGradient(const ConvShape& s, const ConvWeight& out, int threads) : s_(s), out_(out) {
    all_taps_ = s.large_channels < FEW_CHANNELS;
    columns_ = all_taps_ ? s.kernel_h * s.kernel_w * s.large_channels : s.large_channels;
    panels_ = column_panels(columns_);
    images_ = s.small_w >= 16 ? 1 : min64(s.batch, ceil_div(64, s.small_w));
    images_ = ceil_div(s.batch, ceil_div(s.batch, images_));
    lines_ = max64(1, min64(s.small_h, CHUNK / (images_ * s.small_w)));
    // As many rows per unit as leave four units for each thread, but no more sums than L2 holds beside the rest.
    const int64_t wanted = ceil_div(4 * threads, panels_), fitting = max64(MR_MAX, 4096 / panel_taps());
    const int64_t rows = min64(128, min64(fitting, max64(8 * MR_MAX, ceil_div(s.small_channels, wanted))));
    row_blocks_ = ceil_div(s.small_channels, rows);
    rows_ = ceil_div(s.small_channels, row_blocks_);
  }

  // Images in a block, whose pixels stand side by side in the planes.
  int64_t images() const { return images_; }
  bool wants_border() const { return all_taps_; }
  int64_t units() const { return panels_ * row_blocks_; }
  int64_t thread_floats() const { return sums_floats() + chunk_floats() + segment_floats(); }

  void run_unit(int64_t unit, const Planes& small, const Pixels& large, float* scratch) const {
    float* const sums = scratch;
    float* const packed = sums + sums_floats();
    Segment* const segments = reinterpret_cast<Segment*>(packed + chunk_floats());
    const ColumnPanel panel = column_panel(columns_, unit / row_blocks_);
    const int64_t row0 = unit % row_blocks_ * rows_, rows = min64(rows_, s_.small_channels - row0);
    memset(sums, 0, sums_floats() * sizeof(float));
    int64_t offsets[PANEL_MAX];
    if (all_taps_) column_offsets(panel, large, offsets);
    for (int64_t n0 = 0, block = 0; n0 < s_.batch; n0 += images_, ++block) {
      const int64_t images = min64(images_, s_.batch - n0);
      for (int64_t y0 = 0; y0 < s_.small_h; y0 += lines_) {
        const int64_t y1 = min64(s_.small_h, y0 + lines_);
        for (int64_t tap = 0; tap < panel_taps(); ++tap) {
          int64_t count = 0;
          if (all_taps_) {
            pack_all_taps(large, offsets, panel, n0, images, y0, y1, packed);
            count = cut_run(y0 * s_.small_w * images, (y1 - y0) * s_.small_w * images, segments);
          } else {
            count = pack_tap(large, tap, panel, n0, images, y0, y1, packed, segments);
          }
          if (count == 0) continue;
          for_row_tiles(rows, [&](int64_t first, int64_t tile_rows) {
            const float* at[MR_MAX];
            for (int64_t i = 0; i < tile_rows; ++i)
              at[i] = small.data + (row0 + first + i) * small.stride_channel + block * small.stride_block;
            tile_function(TileMode::add, static_cast<int>(tile_rows), panel.nr)(
                at, segments, count, packed, sums + (tap * rows_ + first) * PANEL_MAX, PANEL_MAX);
          });
        }
      }
    }
    if (all_taps_)
      GK_BY_STORAGE(out_.storage, write_all_taps, sums, panel, row0, rows);
    else
      GK_BY_STORAGE(out_.storage, write_taps, out_, s_.kernel_h, s_.kernel_w, sums, rows_, panel, row0, rows);
  }

 private:
  int64_t panel_taps() const { return all_taps_ ? 1 : s_.kernel_h * s_.kernel_w; }
  int64_t sums_floats() const { return Scratch::round(panel_taps() * rows_ * PANEL_MAX); }
  int64_t chunk_floats() const { return Scratch::round((lines_ * s_.small_w * images_ + PREFETCH_STEPS) * PANEL_MAX); }
  int64_t segment_floats() const {
    return Scratch::round(lines_ * most_pieces(s_.small_w * images_) * sizeof(Segment) / 4 + 16);
  }

  static void copy_columns(const float* from, const ColumnPanel& panel, float* to) {
    if (panel.columns == PANEL_MAX) {
      GK_UNROLL for (int j = 0; j < PANEL_MAX; j += VL) store(to + j, load(from + j));
    } else {
      for (int64_t j = 0; j < panel.width(); ++j) to[j] = j < panel.columns ? from[j] : 0.0f;
    }
  }

  // The large pixels that `tap` puts against rows [y0, y1) of the small images; returns the segments of their partners.
  int64_t pack_tap(const Pixels& large, int64_t tap, const ColumnPanel& panel, int64_t n0, int64_t images, int64_t y0,
                   int64_t y1, float* packed, Segment* segments) const {
    const int64_t C = s_.large_channels, W = s_.small_w;
    const int64_t dy = tap / s_.kernel_w - s_.pad_h, dx = tap % s_.kernel_w - s_.pad_w;
    const int64_t lo = dx < 0 ? min64(W, ceil_div(-dx, s_.stride_w)) : 0;
    const int64_t hi = dx >= s_.large_w ? lo : max64(lo, min64(W, (s_.large_w - 1 - dx) / s_.stride_w + 1));
    if (lo == hi) return 0;
    // One image at a time: a line is long, and leaving a column out saves less than a cut costs.
    const bool whole_lines = images == 1;
    int64_t count = 0, first = -1, end = -1;  // the run of partners that is growing
    for (int64_t y = y0; y < y1; ++y) {
      const int64_t in_y = y * s_.stride_h + dy;
      if (in_y < 0 || in_y >= s_.large_h) continue;
      const float* const line = large.data + n0 * large.stride_n + in_y * large.stride_h + dx * C + panel.first;
      const int64_t x0 = whole_lines ? 0 : lo, x1 = whole_lines ? W : hi;
      for (int64_t x = x0; x < x1; ++x) {
        if (x < lo || x >= hi) {
          memset(packed, 0, panel.width() * sizeof(float));
          packed += panel.width();
          continue;
        }
        const float* from = line + x * s_.stride_w * C;
        for (int64_t n = 0; n < images; ++n, from += large.stride_n, packed += panel.width())
          copy_columns(from, panel, packed);
      }
      const int64_t begin = (y * W + x0) * images, stop = (y * W + x1) * images;
      if (begin != end) {
        if (first >= 0) count += cut_run(first, end - first, segments + count);
        first = begin;
      }
      end = stop;
    }
    if (first >= 0) count += cut_run(first, end - first, segments + count);
    return count;
  }

  // Column j of the panel, seen from the large pixel under tap (0, 0).
  void column_offsets(const ColumnPanel& panel, const Pixels& large, int64_t* offsets) const {
    for (int64_t j = 0; j < panel.width(); ++j) {
      const int64_t column = panel.first + min64(j, panel.columns - 1), run = s_.kernel_w * s_.large_channels;
      offsets[j] = column / run * large.stride_h + column % run;
    }
  }
  void pack_all_taps(const Pixels& large, const int64_t* offsets, const ColumnPanel& panel, int64_t n0, int64_t images,
                     int64_t y0, int64_t y1, float* packed) const {
    for (int64_t y = y0; y < y1; ++y)
      for (int64_t x = 0; x < s_.small_w; ++x)
        for (int64_t n = n0; n < n0 + images; ++n, packed += panel.width()) {
          const float* const from = large.data + n * large.stride_n + y * s_.stride_h * large.stride_h +
                                    x * s_.stride_w * s_.large_channels;
          for (int64_t j = 0; j < panel.width(); j += 4) {
            if (offsets[j + 3] - offsets[j] == 3) {
              memcpy(packed + j, from + offsets[j], 4 * sizeof(float));
            } else {
              for (int64_t i = j; i < j + 4; ++i) packed[i] = from[offsets[i]];
            }
          }
        }
  }

  template <class T>
  void write_all_taps(const float* sums, const ColumnPanel& panel, int64_t row0, int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < panel.columns; ++j) {
        const int64_t column = panel.first + j, tap = column / s_.large_channels;
        store_one(weight_at<T>(out_, s_.kernel_w, row0 + r, column % s_.large_channels, tap), sums[r * PANEL_MAX + j]);
      }
  }

  ConvShape s_;
  ConvWeight out_;
  bool all_taps_;
  int64_t columns_, panels_, images_, lines_, row_blocks_, rows_;
};

// Planes of channels [c, c + IO) of one block of images, from pixels. C >= IO, or c = 0 and C channels are moved.
inline void make_planes(const Pixels& in, int64_t height, int64_t width, int64_t n0, int64_t images, int64_t c,
                        int64_t stride_channel, float* planes) {
  const int64_t C = in.channels, count = height * width * images, live = min64(IO, C - c);
  int64_t n = 0, x = 0, y = 0, q = 0;  // counted on: to divide q would take longer than to move its pixel
  const auto next_pixel = [&] {
    const float* const pixel = in.data + (n0 + n) * in.stride_n + y * in.stride_h + x * C + c;
    if (++n == images) {
      n = 0;
      if (++x == width) x = 0, ++y;
    }
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

}  // namespace gk::GK_ISA
