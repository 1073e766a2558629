// Negative log-likelihoods of levels under a softmax over x @ weight^T + bias: the last 1x1 convolution of an
// autoregressive model and its cross-entropy, without the logits in memory.
//
//     nll[p][c] = log sum_l exp(z[p][c][l]) - z[p][c][target[p][c]],   z[p][c][l] = bias[c][l] + sum_k x[p][k] w[c][l][k]
//
// Colour c reads the first live[c] features alone: with colours in blocks, a masked 1x1 convolution of type B.
#pragma once

#include <cstdint>

#include "cpu/core/isa.h"

namespace gk {

struct SoftmaxNllShape {
  int64_t rows, features, colours, levels;
  const int64_t* live;  // [colours]
};

struct SoftmaxNllForward {
  SoftmaxNllShape shape;
  const float *x, *weight, *bias;  // [rows][features], [colours][levels][features], [colours][levels] or nullptr
  const uint16_t* target;          // [rows][colours]
  float *nll, *log_sum_exp;        // [rows][colours]
  int threads;
};

// With g the gradient of nll and d[l] = g * (softmax(z)[l] - (l == target)): grad_x = d @ weight, grad_weight = d^T @ x,
// grad_bias = sum d. Logits are computed once more; or for the first time, where nll is asked for and log_sum_exp is
// not known: then g, which is known beforehand when nll is going to be summed, saves a product. nullptr: not needed.
struct SoftmaxNllBackward {
  SoftmaxNllShape shape;
  const float *x, *weight, *bias;
  const uint16_t* target;
  const float *log_sum_exp, *grad;  // [rows][colours]
  float* nll;
  float *grad_x, *grad_weight, *grad_bias;
  int threads;
};

}  // namespace gk

// False where there is no memory for scratch.
GK_DECLARE_PER_ISA(bool, softmax_nll_forward, (const SoftmaxNllForward& args))
GK_DECLARE_PER_ISA(bool, softmax_nll_backward, (const SoftmaxNllBackward& args))
