// The direct product of a strided or transposed convolution; direct.cpp describes it.
#pragma once

#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/core/implementation.h"

namespace gk::GK_ISA::conv_bn_act {

Outcome direct_forward(const ConvForward& args);
Outcome direct_backward(const ConvBackward& args);  // in backward.cpp

// The geometry of a product and the layout in which it reads its input. A strided convolution of few channels gets its
// input with a border, so that all outputs are alike: its runs of kw * C floats are short, and few tiles matter more
// than a few multiplications with zeros.
struct DirectGeometry {
  static constexpr int64_t FEW_CHANNELS = 16;

  Axis rows, cols;
  NhwcLayout layout;

  DirectGeometry(const ConvShape& s, ConvKind kind);
};

class DirectConv {
 public:
  DirectConv(const DirectGeometry& geometry, int64_t batch, const ColumnWeight& weight, const ImageView& out,
             const EpilogueSpec& epilogue, int threads);

  int64_t tasks() const { return panels_ * parts_; }
  int64_t shared_floats() const { return shared_layout_.floats(); }
  int64_t thread_floats() const { return thread_layout_.floats(); }
  void prepare(float* shared);
  // One task, in the scratch of a thread.
  void run_task(int64_t task, const NhwcImage& in, float* scratch) const;
  void write_statistics(float* statistics) const;

 private:
  struct Task;

  void multiply(const Task& task, const NhwcImage& in, const Lines& lines) const;
  void multiply_run(const Task& task, const NhwcImage& in, const Lines& lines, int64_t row_phase, const Run& run) const;
  void multiply_pixels(const Task& task, const NhwcImage& in, int64_t images, const float* corner, int64_t count,
                       int64_t segment_count, const float* weights, TileMode mode, float* out) const;
  void fill_table(int64_t* table, int64_t images, int64_t lines, int64_t width) const;

  Axis rows_, cols_;
  int64_t batch_;
  ColumnWeight weight_;
  Epilogue epilogue_;
  int64_t images_, lines_, line_blocks_, blocks_, panels_, parts_;
  // Of all threads: runs along a line, places of taps, moments per task.
  ScratchLayout shared_layout_;
  ScratchArray<Run> runs_at_;
  ScratchArray<int64_t> places_at_;
  ScratchArray<Moments> moments_at_;
  const Run* runs_ = nullptr;
  int64_t run_count_ = 0;
  const int64_t* places_ = nullptr;
  Moments* moments_ = nullptr;
  // Of each thread.
  ScratchLayout thread_layout_;
  ScratchArray<float> packed_, staging_;
  ScratchArray<int64_t> table_;
  ScratchArray<Segment> segments_;
};

}  // namespace gk::GK_ISA::conv_bn_act
