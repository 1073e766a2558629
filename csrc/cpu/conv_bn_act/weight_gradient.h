// The direct weight gradient; weight_gradient.cpp describes it.
#pragma once

#include "cpu/conv_bn_act/nhwc_image.h"
#include "cpu/conv_bn_act/packing.h"

namespace gk::GK_ISA::conv_bn_act {

// The low images as planes, [channel][pixel in the order of the weight gradient].
struct NchwImage {
  const float* data;
  int64_t stride_channel, stride_block;  // from one block of images to the next
};

// Planes of channels [c, c + IO) of one block of images. C >= IO, or c = 0 and C channels are moved.
void make_planes(const NhwcImage& in, int64_t height, int64_t width, int64_t n0, int64_t images, int64_t c,
                 int64_t stride_channel, float* planes);

// A panel of high channels and `rows` low channels from row0 on: sums[tap][row][column of the panel], of which a tap
// holds `tap_rows`, to the weight gradient `out`.
struct TapSums {
  const float* sums;
  int64_t tap_rows;
  ColumnPanel panel;
  int64_t row0, rows;
};
void write_taps(const ConvWeight& out, int64_t kernel_h, int64_t kernel_w, const TapSums& from);

class WeightGradient {
 public:
  WeightGradient(const ConvShape& s, const ConvWeight& out, int threads);

  // Images in a block, whose pixels stand side by side in the planes.
  int64_t images() const { return images_; }
  bool wants_border() const { return all_taps_; }
  int64_t tasks() const { return panels_ * row_blocks_; }
  int64_t thread_floats() const { return layout_.floats(); }
  // One task, in the scratch of a thread.
  void run_task(int64_t task, const NchwImage& low, const NhwcImage& high, float* scratch) const;

 private:
  struct Task;

  int64_t panel_taps() const { return all_taps_ ? 1 : s_.kernel_h * s_.kernel_w; }
  void add_chunk(const Task& task, const NchwImage& low, const NhwcImage& high, const Lines& lines) const;
  int64_t pack_tap(const Task& task, const NhwcImage& high, int64_t tap, const Lines& lines) const;
  void find_columns(const ColumnPanel& panel, const NhwcImage& high, int64_t* offsets) const;
  void pack_all_taps(const Task& task, const NhwcImage& high, const Lines& lines) const;
  template <class T>
  void write_all_taps(const TapSums& from) const;

  ConvShape s_;
  ConvWeight out_;
  bool all_taps_;
  int64_t columns_, panels_, images_, lines_, row_blocks_, rows_;
  ScratchLayout layout_;
  ScratchArray<float> sums_, packed_;
  ScratchArray<Segment> segments_;
};

}  // namespace gk::GK_ISA::conv_bn_act
