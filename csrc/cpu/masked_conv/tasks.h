// Tasks of the masked convolution: rectangles of output pixels of one image, each the work of one thread.
#pragma once

#include "cpu/core/gemm_tile.h"
#include "cpu/core/image_io.h"
#include "cpu/core/parallel.h"
#include "cpu/masked_conv/masked_conv.h"

namespace gk::GK_ISA::masked_conv {

struct Task {
  int64_t image;
  Region region;
};

struct Tasks {
  int64_t rows, columns;              // of one task, at most
  int64_t row_blocks, column_blocks;  // per image
  int64_t count;                      // in all images

  Task at(const MaskedConv& c, int64_t index) const {
    const int64_t x = index % column_blocks * columns, y = index / column_blocks % row_blocks * rows;
    return {index / column_blocks / row_blocks, {y, min64(y + rows, c.height), x, min64(x + columns, c.width)}};
  }
};

// The pixels of x that the outputs of a region read.
inline Region input_region(const MaskedConv& c, const Region& r) {
  return {r.y0 - c.reach_up(), r.y1, r.x0 - c.reach_left(), r.x1 + c.reach_right()};
}
// The outputs that read the pixels of a region: what their input gradient is made of.
inline Region gradient_region(const MaskedConv& c, const Region& r) {
  return {r.y0, r.y1 + c.reach_up(), r.x0 - c.reach_right(), r.x1 + c.reach_left()};
}
// The most pixels of either, for tasks whose lines have `columns` pixels.
inline int64_t bordered_pixels(const MaskedConv& c, const Tasks& tasks, int64_t columns) {
  return (tasks.rows + c.reach_up()) * (columns + c.reach_left() + c.reach_right());
}

// Results are staged in L1: so many pixels at a time.
constexpr int64_t STAGED_PIXELS = 16 * 1024 / (PANEL_MAX * sizeof(float));

// A task's lines in groups of at most STAGED_PIXELS (at least one line): calls group(lines as a region).
template <class Group>
GK_INLINE void for_line_groups(const Region& r, const Group& group) {
  const int64_t lines = max64(1, STAGED_PIXELS / r.columns());
  for (int64_t y = r.y0; y < r.y1; y += lines) group(Region{y, min64(y + lines, r.y1), r.x0, r.x1});
}

// The most pixels that one of them can have.
inline int64_t staged_pixels(const Tasks& t) { return max64(t.columns, min64(STAGED_PIXELS, t.rows * t.columns)); }

// As many rows as keep `floats_per_pixel` floats for every pixel of the task and its border within the L2 budget, but
// few enough that all threads have work. Lines too long for the budget are cut into columns.
inline Tasks make_tasks(const MaskedConv& c, int64_t floats_per_pixel, int threads) {
  // Floats: 256 KiB of the 512 KiB that an L2 has at the least; with AVX-512 640 KiB of 1 MiB (backward 5 to 12 %).
  constexpr int64_t budget = (GK_ISA_LEVEL == 2 ? 160 : 64) * 1024;
  const int64_t border = c.reach_left() + c.reach_right();
  Tasks t;
  t.columns = c.width;
  if ((c.reach_up() + 1) * (c.width + border) * floats_per_pixel > budget)
    t.columns = min64(c.width, max64(64, budget / ((c.reach_up() + 1) * floats_per_pixel) - border));
  t.column_blocks = ceil_div(c.width, t.columns);
  t.columns = ceil_div(c.width, t.column_blocks);
  const int64_t fitting = budget / (floats_per_pixel * (t.columns + border)) - c.reach_up();
  const int64_t wanted_blocks = ceil_div(2 * threads, max64(1, c.batch * t.column_blocks));
  const int64_t most = max64(1, min64(fitting, ceil_div(c.height, wanted_blocks)));
  // As many as make the busiest thread's work smallest; a task's beginning costs as much as a tenth of a row and of
  // each border row.
  const auto busiest = [&](int64_t rows) {
    return ceil_div(c.batch * t.column_blocks * ceil_div(c.height, rows), threads) * (10 * rows + c.reach_up() + 1);
  };
  int64_t rows = most;
  for (int64_t fewer = most - 1; fewer > 0; --fewer)
    if (busiest(fewer) < busiest(rows)) rows = fewer;
  t.row_blocks = ceil_div(c.height, rows);
  t.rows = ceil_div(c.height, t.row_blocks);
  t.row_blocks = ceil_div(c.height, t.rows);
  t.count = c.batch * t.row_blocks * t.column_blocks;
  return t;
}

inline int useful_threads(const MaskedConv& c, int threads) {
  const int64_t work = c.batch * c.height * c.width * c.in_channels * c.out_channels * (c.full_taps() + 1);
  return gk::GK_ISA::useful_threads(work, PRODUCTS_PER_THREAD, threads);
}

}  // namespace gk::GK_ISA::masked_conv
