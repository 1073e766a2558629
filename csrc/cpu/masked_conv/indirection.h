// Taps of a task as indirection, and a task's product with one panel of weights through it.
#pragma once

#include "cpu/masked_conv/packing.h"

namespace gk::GK_ISA::masked_conv {

// Offsets from a pixel's address at which its live taps stand, and their lengths.
struct Indirection {
  const Segment* segments;
  int64_t count;
};

// Writes a run of any length as segments and returns their number, at most most_segments(length).
inline int64_t cut_segment(const Segment& run, Segment* segments) {
  int64_t count = 0;
  for (int64_t done = 0; done < run.length; done += SEGMENT_MAX)
    segments[count++] = {run.offset + done, min64(SEGMENT_MAX, run.length - done)};
  return count;
}
inline int64_t most_segments(int64_t length) { return ceil_div(length, SEGMENT_MAX); }

// The taps of one panel; those that lie side by side become one segment. `base` is the place of the tap (0, 0), `pitch`
// the pixels of a line.
inline Indirection make_indirection(const MaskedConv& c, const MaskedGemm& p, const MaskedPanel& panel, int64_t base,
                                    int64_t pitch, Segment* segments) {
  int64_t count = 0;
  const auto add = [&](int64_t offset, int64_t length) {
    Segment* const last = count > 0 ? segments + count - 1 : nullptr;
    if (last && last->offset + last->length == offset && last->length + length <= SEGMENT_MAX)
      last->length += length;
    else
      count += cut_segment({offset, length}, segments + count);
  };
  const auto add_tap = [&](int64_t t) {
    const int64_t dy = (t / c.kernel_w - c.kernel_h / 2) * c.dilation_h;
    const int64_t dx = (t % c.kernel_w - c.kernel_w / 2) * c.dilation_w;
    const int64_t pixels = dy * pitch + dx;
    add((base + (p.mirrored ? -pixels : pixels)) * p.channels, p.channels);
  };
  const int64_t taps = c.full_taps();
  if (p.mirrored) add(base * p.channels + panel.lo, panel.hi - panel.lo);
  for (int64_t t = 0; t < taps; ++t) add_tap(p.mirrored ? taps - 1 - t : t);
  if (!p.mirrored) add(base * p.channels + panel.lo, panel.hi - panel.lo);
  return {segments, count};
}

// A region times one panel of weights, into the target. `source` holds the region's pixels with their border, lines of
// `pitch` pixels of `channels` floats. Where the target's pixels follow each other in memory with the panel's channels
// side by side (float32, channels_last), tiles leave the registers for good; else they are staged in L1.
inline void multiply_region(const Region& region, const float* source, int64_t pitch, int64_t channels,
                            const Indirection& taps, const Panel& panel, const float* weights, const Target& target,
                            float* staging) {
  const ImageView& view = target.view;
  const bool direct = view.storage == Storage::float32 && view.stride_c == 1 && !target.order &&
                      panel.columns == panel.width() && view.stride_h == region.columns() * view.stride_w;
  const Finish finish{target.bias ? target.bias + panel.first : nullptr, target.relu};
  for_line_groups(region, [&](const Region& lines) {
    float* out = staging;
    int64_t out_stride = panel.width();
    if (direct) {
      out = static_cast<float*>(const_cast<void*>(view.data)) + target.image * view.stride_n +
            lines.y0 * view.stride_h + panel.first;
      out_stride = view.stride_w;
    }
    int64_t y = lines.y0 - region.y0, x = 0;
    for_row_tiles(lines.pixels(), [&](int64_t first, int64_t count) {
      const float* rows[MR_MAX];
      for (int64_t i = 0; i < count; ++i) {
        rows[i] = source + (y * pitch + x) * channels;
        if (++x < region.columns()) continue;
        x = 0;
        ++y;
      }
      const int mr = static_cast<int>(count);
      float* const to = out + first * out_stride;
      if (direct)
        finish_function(mr, panel.nr)(rows, taps.segments, taps.count, weights, to, out_stride, finish);
      else
        tile_function(TileMode::write, mr, panel.nr)(rows, taps.segments, taps.count, weights, to, out_stride);
    });
    if (!direct) store_panel(target, lines, staging, panel.width());
  });
}

}  // namespace gk::GK_ISA::masked_conv
