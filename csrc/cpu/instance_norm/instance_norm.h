// Instance norm and activation: y = act(gamma * (x - mean) / sqrt(variance + eps) + beta), mean and variance being
// those of each channel of each image.
#pragma once

#include "cpu/core/activation_spec.h"
#include "cpu/core/isa.h"
#include "cpu/core/tensor_view.h"

namespace gk {

// Dense images, [n][channel][pixel] or [n][pixel][channel]; all tensors of a call in one layout.
struct InstanceNormShape {
  int64_t batch, channels, pixels;
  bool channels_last;
  Storage storage;
};

// gamma and beta: [channels] each, or nullptr for 1 and 0.
struct InstanceNormAffine {
  const float *gamma, *beta;
};

struct InstanceNormForward {
  InstanceNormShape shape;
  const void* x;
  InstanceNormAffine affine;
  float eps;
  ActivationSpec activation;
  void* y;
  float* statistics;  // [2][n][channel]: the mean and 1 / sqrt(variance + eps)
  int threads;
};

// With g the gradient before the activation and xhat = (x - mean) * rstd, the gradient of x is
// gamma * rstd * (g - mean(g) - xhat * mean(g * xhat)), the means being those of a channel of an image.
struct InstanceNormBackward {
  InstanceNormShape shape;
  const void *grad, *x;
  InstanceNormAffine affine;
  const float* statistics;
  ActivationSpec activation;
  void* grad_x;  // nullptr: not needed
  float* sums;   // [2][n][channel]: of g * xhat and of g; summed over the images: gradients of gamma and beta
  int threads;
};

}  // namespace gk

GK_DECLARE_PER_ISA(void, instance_norm_forward, (const InstanceNormForward& args))
GK_DECLARE_PER_ISA(void, instance_norm_backward, (const InstanceNormBackward& args))
