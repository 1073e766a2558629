// The product of a convolution or transposed convolution: pixels of the input times packed weights.
//
// A unit of work is one panel of output channels and a part of the images. Its weights are packed once, by the thread
// that uses them, and then meet all rows of the part: where the weights outweigh the images (512 -> 256 channels on
// 4x4) they are read from memory once and never written back.
// The part goes block by block: some lines of some images. Rows of gemm_tile are the output pixels of one phase that
// see the same taps, along a line and then across the images of the block, so that tiles are full even where lines are
// 2 pixels long. Segments are tap rows: the input pixels that an output sees on one line are side by side. Results are
// staged, [line][column by phase][image][column of the panel], take scale, shift and activation or give their
// statistics there, and leave turned to the layout of the tensor.
#pragma once

#include <omp.h>

#include "cpu/conv_bn_act/nhwc_image.h"
#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/core/scratch.h"

namespace gk::GK_ISA {

// The geometry of a product and the layout in which it reads its input. A strided convolution of few channels gets its
// input with a border, so that all outputs are alike: its runs of kw * C floats are short, and few tiles matter more
// than a few multiplications with zeros.
struct ProductGeometry {
  Axis rows, cols;
  PixelLayout layout;

  ProductGeometry(const ConvShape& s, bool up) : rows(vertical(s, up)), cols(horizontal(s, up)) {
    layout = {up ? s.small_channels : s.large_channels, rows.in, cols.in, 0, 0, 0, 0};
    if (!up && layout.channels < FEW_CHANNELS) {
      layout.top = rows.border_before(), layout.bottom = rows.border_after();
      layout.left = cols.border_before(), layout.right = cols.border_after();
      rows.in += layout.top + layout.bottom, rows.pad = 0;
      cols.in += layout.left + layout.right, cols.pad = 0;
    }
  }
  static constexpr int64_t FEW_CHANNELS = 16;
};

class DirectConv {
 public:
  static constexpr int64_t PIECE = 256;      // reduction steps: 16 KB of an AVX2 panel

  DirectConv(const Axis& rows, const Axis& cols, int64_t batch, const ColumnWeight& weight, const ImageView& out,
          const Epilogue& epilogue, bool wants_moments, int threads)
      : rows_(rows), cols_(cols), batch_(batch), weight_(weight), output_(out, epilogue, cols.out), wants_moments_(wants_moments) {
    const int64_t width = cols.out, phase_width = ceil_div(width, cols.phases());
    images_ = max64(1, min64(min64(batch, max64(4, ceil_div(48, phase_width))), 2048 / width));
    images_ = ceil_div(batch, ceil_div(batch, images_));
    lines_ = max64(1, min64(rows.out, 1024 / (images_ * width)));
    if (lines_ > rows.phases()) lines_ -= lines_ % rows.phases();
    line_blocks_ = ceil_div(rows.out, lines_);
    blocks_ = line_blocks_ * ceil_div(batch, images_);
    panels_ = column_panels(weight.columns);
    parts_ = min64(blocks_, ceil_div(4 * threads, panels_));
  }

  int64_t units() const { return panels_ * parts_; }

  // What threads share: runs along a line, places of taps, moments per unit.
  int64_t shared_floats() const {
    return Scratch::round(cols_.out * sizeof(Run) / 4) + Scratch::round(taps() * sizeof(int64_t) / 4) +
           (wants_moments_ ? Scratch::round(units() * sizeof(Moments) / 4) : 0);
  }
  void set_shared(float* shared) {
    runs_ = reinterpret_cast<Run*>(shared);
    places_ = reinterpret_cast<int64_t*>(shared + Scratch::round(cols_.out * sizeof(Run) / 4));
    moments_ = reinterpret_cast<Moments*>(reinterpret_cast<float*>(places_) +
                                          Scratch::round(taps() * sizeof(int64_t) / 4));
    run_count_ = make_runs(cols_, 0, cols_.out, runs_);
    place_taps(rows_, cols_, places_);
  }

  int64_t thread_floats() const { return panel_floats() + staging_floats() + table_floats() + segment_floats(); }

  // One unit, in the scratch of a thread.
  void run_unit(int64_t unit, const Pixels& in, float* scratch) const {
    float* const packed = scratch;
    float* const staging = packed + panel_floats();
    int64_t* const table = reinterpret_cast<int64_t*>(staging + staging_floats());
    Segment* const segments = reinterpret_cast<Segment*>(staging + staging_floats() + table_floats());
    const ColumnPanel panel = column_panel(weight_.columns, unit / parts_);
    GK_BY_STORAGE(weight_.storage, pack_columns, weight_, panel, rows_.kernel, cols_.kernel, places_, packed);
    Moments moments{};
    const int64_t part = unit % parts_;
    for (int64_t block = blocks_ * part / parts_; block < blocks_ * (part + 1) / parts_; ++block) {
      const int64_t n0 = block / line_blocks_ * images_, n1 = min64(batch_, n0 + images_);
      const int64_t y0 = block % line_blocks_ * lines_, y1 = min64(rows_.out, y0 + lines_);
      multiply(in, panel, packed, n0, n1 - n0, y0, y1, segments, staging);
      fill_table(table, n1 - n0, y1 - y0, panel.width());
      output_.emit(staging, table, panel, n0, n1, y0, y1, wants_moments_ ? &moments : nullptr);
    }
    if (wants_moments_) moments_[unit] = moments;
  }

  void write_statistics(float* statistics) const {
    PanelOutput::write_statistics(moments_, weight_.columns, parts_, statistics);
  }

 private:
  int64_t taps() const { return rows_.kernel * cols_.kernel; }
  int64_t panel_floats() const { return taps() * weight_.reductions * PANEL_MAX + PREFETCH_STEPS * PANEL_MAX; }
  int64_t staging_floats() const { return Scratch::round(lines_ * cols_.out * images_ * PANEL_MAX); }
  int64_t table_floats() const { return Scratch::round(lines_ * cols_.out * sizeof(int64_t) / 4); }
  int64_t segment_floats() const {
    return Scratch::round(rows_.kernel * sizeof(Segment) / 4);
  }

  void multiply(const Pixels& in, const ColumnPanel& panel, const float* packed, int64_t n0, int64_t images, int64_t y0,
                int64_t y1, Segment* segments, float* staging) const {
    const int64_t C = weight_.reductions, width = panel.width(), step = C * width;
    for (int64_t fy = 0; fy < rows_.phases(); ++fy) {
      int64_t before = 0;  // outputs of a line in the phases before this run's
      for (int64_t r = 0; r < run_count_; ++r) {
        const Run& run = runs_[r];
        if (r > 0 && run.phase != runs_[r - 1].phase) before += runs_[r - 1].index + runs_[r - 1].count;
        const int64_t Tx = cols_.taps(run.phase);
        const float* const phase = packed + (rows_.taps_before(fy) * cols_.kernel +
                                             rows_.taps(fy) * cols_.taps_before(run.phase)) * step;
        const int64_t length = (run.hi - run.lo) * C, Ty = rows_.taps(fy);
        const auto for_lines = [&](const auto& line) {
          for (int64_t y = y0; y < y1; ++y)
            if (rows_.phase(y) == fy) line(y, staging + ((y - y0) * cols_.out + before + run.index) * images * width);
        };
        for_lines([&](int64_t y, float* out) {
          if (length == 0 || rows_.lo(y) == rows_.hi(y)) memset(out, 0, run.count * images * width * sizeof(float));
        });
        if (length == 0) continue;
        // The reduction goes in pieces whose share of the panel stays in L1 while all lines of the block meet it:
        // several tap rows where all of them are there from end to end and short, else a part of one.
        const int64_t group = run.hi - run.lo == Tx ? max64(1, PIECE / length) : 1;
        for (int64_t t = 0; t < Ty; t += group)
          for (int64_t k = 0; k < length; k += PIECE) {
            const int64_t steps = min64(PIECE, length - k);
            for_lines([&](int64_t y, float* out) {
              const int64_t lo = rows_.lo(y), first = max64(t, lo), last = min64(t + group, rows_.hi(y));
              if (first >= last) return;
              for (int64_t i = first; i < last; ++i) segments[i - first] = {(i - first) * in.stride_h, steps};
              const float* const corner =
                  in.data + n0 * in.stride_n + (rows_.start(y) + first) * in.stride_h + (run.start + run.lo) * C + k;
              const float* const weights = phase + (first * Tx + run.lo) * step + k * width;
              const bool starts = first == lo && k == 0;
              multiply_run(in, corner, run.count, images, segments, last - first, weights, panel, starts, out);
            });
          }
      }
    }
  }

  // The rows of one run of a line, across the images of the block.
  void multiply_run(const Pixels& in, const float* corner, int64_t count, int64_t images, const Segment* segments,
                    int64_t segment_count, const float* weights, const ColumnPanel& panel, bool starts,
                    float* out) const {
    const int64_t pixel_step = cols_.in_step() * in.channels;
    const float* pixel = corner;
    int64_t n = 0;
    for_row_tiles(count * images, [&](int64_t first, int64_t tile_rows) {
      const float* rows[MR_MAX];
      for (int64_t i = 0; i < tile_rows; ++i) {
        rows[i] = pixel + n * in.stride_n;
        if (++n == images) n = 0, pixel += pixel_step;
      }
      const int mr = static_cast<int>(tile_rows);
      tile_function(starts ? TileMode::write : TileMode::add, mr, panel.nr)(
          rows, segments, segment_count, weights, out + first * panel.width(), panel.width());
    });
  }

  // Where pixel (line, column) of the block's first image stands in the staging.
  void fill_table(int64_t* table, int64_t images, int64_t lines, int64_t width) const {
    int64_t before = 0;
    for (int64_t r = 0; r < run_count_; ++r) {
      const Run& run = runs_[r];
      if (r > 0 && run.phase != runs_[r - 1].phase) before += runs_[r - 1].index + runs_[r - 1].count;
      for (int64_t i = 0; i < run.count; ++i)
        table[run.first + i * cols_.out_step()] = (before + run.index + i) * images * width;
    }
    for (int64_t y = 1; y < lines; ++y)
      for (int64_t x = 0; x < cols_.out; ++x) table[y * cols_.out + x] = table[x] + y * cols_.out * images * width;
  }

  Axis rows_, cols_;
  int64_t batch_;
  ColumnWeight weight_;
  PanelOutput output_;
  bool wants_moments_;
  int64_t images_, lines_, line_blocks_, blocks_, panels_, parts_;
  Run* runs_ = nullptr;
  int64_t run_count_ = 0;
  int64_t* places_ = nullptr;
  Moments* moments_ = nullptr;
};

}  // namespace gk::GK_ISA
