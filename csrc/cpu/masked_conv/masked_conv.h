// Arguments and entry points of the masked 2-D convolution: forward, and all gradients in one pass.
#pragma once

#include "cpu/core/isa.h"
#include "cpu/core/tensor_view.h"

namespace gk {

// The convolution itself: sizes and mask. Channels are counted in group order; `*_order[c]` is where channel c of
// that order stands in the tensors (nullptr: in place). Taps before the centre in raster order are live for every
// pair of channels; at the centre, output o sees inputs [0, centre_end[o]) and so input c is seen by outputs
// [centre_begin[c], out_channels).
struct MaskedConv {
  int64_t batch, in_channels, out_channels, height, width;
  int64_t kernel_h, kernel_w, dilation_h, dilation_w;
  const int32_t* centre_end;    // [out_channels]
  const int32_t* centre_begin;  // [in_channels]
  const int32_t* in_order;      // [in_channels] or nullptr
  const int32_t* out_order;     // [out_channels] or nullptr

  int64_t full_taps() const { return kernel_h / 2 * kernel_w + kernel_w / 2; }
  int64_t reach_up() const { return kernel_h / 2 * dilation_h; }
  int64_t reach_left() const { return kernel_w / 2 * dilation_w; }
  int64_t reach_right() const { return kernel_h > 1 ? reach_left() : 0; }
};

struct MaskedConvForward {
  MaskedConv conv;
  ImageView x, y;
  WeightView weight;
  const void* bias;  // [out_channels] of y's storage type, or nullptr
  bool relu;
  int threads;
};

struct MaskedConvBackward {
  MaskedConv conv;
  ImageView grad_y, x;
  ImageView y;  // the forward result, read when `relu`; the same kind of layout as grad_y
  WeightView weight;
  ImageView grad_x;        // data nullptr: not needed
  WeightView grad_weight;  // likewise; every element is written, dead ones with zero
  void* grad_bias;         // likewise
  bool relu;
  int threads;
};

}  // namespace gk

// Both return false when there is no memory for their scratch.
GK_DECLARE_PER_ISA(bool, masked_conv_forward, (const MaskedConvForward& args))
GK_DECLARE_PER_ISA(bool, masked_conv_backward, (const MaskedConvBackward& args))
