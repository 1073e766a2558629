// Convolution and transposed convolution with batch norm and activation. The arithmetic is in
//   conv_bn_act/forward.cpp   the product of a forward pass
//   conv_bn_act/backward.cpp  the input gradient (by the same code) and the weight gradient
//   conv_bn_act/norm.cpp      the passes over values alone: normalise, sums of the gradient
#pragma once

#include "cpu/core/isa.h"
#include "cpu/core/tensor_view.h"

namespace gk {

// A small and a large image that one convolution relates: small[o] meets large[o * stride - pad + k] through
// weight[small channel][large channel][k]. "Down" maps large to small (a convolution, or the input gradient of a
// transposed one), "up" maps small to large (a transposed convolution, or the input gradient of a plain one).
struct ConvShape {
  int64_t batch, small_channels, large_channels;
  int64_t small_h, small_w, large_h, large_w;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

struct ConvWeight {
  const void* data;
  int64_t stride_small, stride_large, stride_kh, stride_kw;
  Storage storage;
};

enum class Activation : int { none = 0, relu = 1, leaky_relu = 2, tanh = 3, sigmoid = 4 };

struct ActivationSpec {
  Activation kind;
  float negative_slope;
};

// What is known of each channel of a batch norm, [channels] each and in this order in memory.
struct NormCoefficients {
  const float* mean;  // nullptr: there is no batch norm
  int64_t channels;
  const float* rstd() const { return mean + channels; }
  const float* gamma() const { return mean + 2 * channels; }
  const float* beta() const { return mean + 3 * channels; }
  const float* factor() const { return mean + 4 * channels; }       // gamma * rstd
  const float* mean_g() const { return mean + 5 * channels; }       // backward only
  const float* mean_g_zhat() const { return mean + 6 * channels; }  // likewise
};

struct ConvForward {
  ConvShape shape;
  bool up;
  ImageView x, y;
  ConvWeight weight;
  const float *scale, *shift;  // [out] or nullptr: y = act(scale * product + shift)
  ActivationSpec activation;
  float* statistics;  // nullptr, or [2][out] for the mean and the sum of squared deviations of the product
  int threads;
};

// The gradient that reaches a convolution's result: `grad` is the gradient of y. Without batch norm `other` is y, with
// batch norm it is z. Both are dense, in one layout.
struct ConvGradient {
  ImageView grad, other;
  NormCoefficients norm;
  ActivationSpec activation;
};

struct ConvBackward {
  ConvShape shape;
  bool up;  // of the forward pass
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
  void* y;            // normalise only
  float* sums;        // sums only: [2][channels], of g and of g * zhat
  int threads;
};

}  // namespace gk

// Those that return bool return false when there is no memory for their scratch.
GK_DECLARE_PER_ISA(bool, conv_forward, (const ConvForward& args))
GK_DECLARE_PER_ISA(bool, conv_backward, (const ConvBackward& args))
GK_DECLARE_PER_ISA(void, norm_forward, (const NormPass& args))
GK_DECLARE_PER_ISA(bool, norm_gradient_sums, (const NormPass& args))
