// Activations and norms as they cross the border: their kinds and parameters, no arithmetic (activation.h has that).
#pragma once

#include <cstdint>

namespace gk {

enum class Activation : int { none = 0, relu = 1, leaky_relu = 2, tanh = 3, sigmoid = 4 };

struct ActivationSpec {
  Activation kind;
  float negative_slope;
};

// The numbers of each channel of a batch norm, [channels] each and in this order in memory.
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

}  // namespace gk
