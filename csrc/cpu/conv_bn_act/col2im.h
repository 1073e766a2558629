// The transposed product as col2im; col2im.cpp describes it.
#pragma once

#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/core/implementation.h"

namespace gk::GK_ISA::conv_bn_act {

bool col2im_suits_forward(const ConvForward& args);
bool col2im_suits_backward(const ConvBackward& args);
Outcome col2im_forward(const ConvForward& args);
Outcome col2im_backward(const ConvBackward& args);  // in backward.cpp

class Col2ImConv {
 public:
  Col2ImConv(const ConvShape& s, const ColumnWeight& weight, const ImageView& out, const EpilogueSpec& epilogue);

  int64_t tasks() const { return s_.batch; }
  int64_t shared_floats() const { return shared_layout_.floats(); }
  int64_t thread_floats() const { return thread_layout_.floats(); }
  void prepare(float* shared);
  // One task, in the scratch of a thread.
  void run_task(int64_t task, const NhwcImage& in, float* scratch) const;
  void write_statistics(float* statistics) const;

 private:
  template <class T>
  void pack() const;
  void multiply(const NhwcImage& in, const Lines& lines, float* products) const;
  void add_up(const float* products, const Lines& lines, float* image) const;
  void take_moments(int64_t n, const float* image) const;
  template <class T>
  void store(const float* image, int64_t n, float* line) const;
  const float* at(const float* image, int64_t y, int64_t x) const {
    return image + (y + s_.pad_h) * pitch_ + (x + s_.pad_w) * s_.high_channels;
  }

  ConvShape s_;
  ColumnWeight weight_;
  ImageView out_;
  EpilogueSpec epilogue_;
  int64_t run_, columns_, panels_, pitch_, lines_;
  // Of all threads: the packed weights, and of every image the moments, [batch][2][channels].
  ScratchLayout shared_layout_;
  ScratchArray<float> packed_at_;
  ScratchArray<double> moments_at_;
  float* packed_ = nullptr;
  double* moments_ = nullptr;
  // Of each thread: an image, and products of its lines (later a line of one channel of the result).
  ScratchLayout thread_layout_;
  ScratchArray<float> image_, products_;
  int64_t packed_floats_, image_floats_;
};

}  // namespace gk::GK_ISA::conv_bn_act
