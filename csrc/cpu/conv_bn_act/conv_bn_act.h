// Convolution and transposed convolution with batch norm and activation: arguments and entry points.
//
//   dispatch.cpp                 which implementation of the forward pass and of the gradients runs
//   direct, col2im               products of pixels and packed weights; backward.cpp: the gradients by them
//   winograd                     forward pass and gradients by F(4x4, 2x2) and F(2x2, 2x2)
//   weight_gradient              the direct weight gradient
//   epilogue.h                   from a staged product to the tensor: statistics, scale, shift, activation, layout
//   load_gradient.cpp            the gradient of the product, through batch norm and activation
//   norm.cpp                     the passes over values alone: normalise, sums of the gradient
//   axis.h, nhwc_image.h, packing.h   sizes, images and weights as the products see them
#pragma once

#include "cpu/core/activation_spec.h"
#include "cpu/core/isa.h"
#include "cpu/core/tensor_view.h"

namespace gk {

// A low and a high image that one convolution relates: low[o] meets high[o * stride - pad + k] through
// weight[low channel][high channel][k].
struct ConvShape {
  int64_t batch, low_channels, high_channels;
  int64_t low_h, low_w, high_h, high_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

// A strided product maps high to low: a convolution, or the input gradient of a transposed one. A transposed product
// maps low to high: a transposed convolution, or the input gradient of a plain one.
enum class ConvKind { strided, transposed };

inline ConvKind twin(ConvKind kind) { return kind == ConvKind::strided ? ConvKind::transposed : ConvKind::strided; }

struct ConvWeight {
  const void* data;
  int64_t stride_low, stride_high, stride_kh, stride_kw;
  Storage storage;
};

struct ConvForward {
  ConvShape shape;
  ConvKind kind;
  ImageView x, y;
  ConvWeight weight;
  const float *scale, *shift;  // [out] or nullptr: y = act(scale * product + shift)
  ActivationSpec activation;
  float* statistics;  // nullptr, or [2][out] for the mean and the sum of squared deviations of the product
  int threads;
};

// The gradient of the product: `grad` is the gradient of y. Without batch norm `other` is y, with batch norm it is z.
// Both are dense, in one layout.
struct ConvGradient {
  ImageView grad, other;
  NormCoefficients norm;
  ActivationSpec activation;
};

struct ConvBackward {
  ConvShape shape;
  ConvKind kind;  // of the forward pass
  ConvGradient gradient;
  ImageView x;
  ConvWeight weight;
  ImageView grad_x;        // data nullptr: not wanted
  ConvWeight grad_weight;  // likewise
  int threads;
};

// A pass over dense images, [n][channels][pixels] or [n][pixels][channels].
struct NormPass {
  int64_t batch, channels, pixels;
  bool channels_last;
  Storage storage;
  const void* grad;   // of y; sums only
  const void* other;  // z, or y without batch norm
  NormCoefficients norm;
  ActivationSpec activation;
  void* y;      // normalise only
  float* sums;  // sums only: [2][channels], of g and of g * zhat
  int threads;
};

}  // namespace gk

// Those that return bool return false when there is no memory for their scratch.
GK_DECLARE_PER_ISA(bool, conv_forward, (const ConvForward& args))
GK_DECLARE_PER_ISA(bool, conv_backward, (const ConvBackward& args))
// The name of the implementation that a forward pass takes where the numbers are even.
GK_DECLARE_PER_ISA(const char*, conv_implementation, (const ConvShape& shape, ConvKind kind))
GK_DECLARE_PER_ISA(void, norm_forward, (const NormPass& args))
GK_DECLARE_PER_ISA(bool, norm_gradient_sums, (const NormPass& args))
