// A mixture of discretized logistics in float64, as genkernels/distributions/logistic_mixture.py defines it: what the
// draws of both native executors stand on. Included by CUDA after cuda/core/common.h. Everything has internal linkage,
// so that each instruction set keeps its own.
#pragma once

#include <math.h>

#include <cstdint>

#ifdef __device__
#define GK_MIXTURE_FUNCTION __device__
#else
#define GK_MIXTURE_FUNCTION
#endif

namespace gk {
namespace {

GK_MIXTURE_FUNCTION inline double mixture_log_sigmoid(double x) { return x < 0 ? x - log1p(exp(x)) : -log1p(exp(-x)); }

// The components of one pixel. `drawn[e * stride]` is the level of its colour e.
struct LogisticMixture {
  const float* parameters;
  const int32_t* drawn;
  int64_t stride;
  int levels, colours, components;
  double temperature;

  // A logistic, or rather 1 / scale with its mean.
  struct Logistic {
    double mean, sharpness;
  };

  GK_MIXTURE_FUNCTION double position(double level) const { return level * (2.0 / (levels - 1)) - 1; }
  GK_MIXTURE_FUNCTION double at(int block, int k) const { return parameters[block * components + k]; }
  GK_MIXTURE_FUNCTION int first_block(int colour) const {
    const int coefficients = colours * (colours - 1) / 2, left = coefficients % colours;
    return 1 + (2 + coefficients / colours) * colour + (colour < left ? colour : left);
  }
  GK_MIXTURE_FUNCTION double log_scale(int colour, int k) const {
    const double given = at(first_block(colour) + 1, k);
    return given < -7 ? -7 : given;
  }
  GK_MIXTURE_FUNCTION Logistic logistic(int colour, int k) const {
    double mean = at(first_block(colour), k);
    for (int e = 0; e < colour; ++e) {
      const int index = colour * (colour - 1) / 2 + e;
      mean += tanh(at(first_block(index % colours) + 2 + index / colours, k)) * position(drawn[e * stride]);
    }
    const double sharpness = exp(-log_scale(colour, k)) / temperature;
    return {mean, sharpness < 1e200 ? sharpness : 1e200};
  }
  // The logarithm of the probability of a drawn colour's level in component k.
  GK_MIXTURE_FUNCTION double log_mass(int colour, int k) const {
    const Logistic l = logistic(colour, k);
    const int level = drawn[colour * stride];
    const double half = 1.0 / (levels - 1), centred = position(level) - l.mean, width = 2 * half * l.sharpness;
    double sum = 0;
    if (level < levels - 1) sum += mixture_log_sigmoid((centred + half) * l.sharpness);
    if (level > 0) sum += mixture_log_sigmoid((half - centred) * l.sharpness);
    if (level > 0 && level < levels - 1)
      sum += width < 1e-7 ? log(2 * half) - (log_scale(colour, k) + log(temperature)) - width / 2 : log(-expm1(-width));
    return sum;
  }
  // Of component k's weight for a colour, given those before it, the logarithm; `highest`: of the logits.
  GK_MIXTURE_FUNCTION double log_weight(int colour, int k, double highest) const {
    double sum = (at(0, k) - highest) / temperature;
    for (int earlier = 0; earlier < colour; ++earlier) sum += log_mass(earlier, k);
    return sum;
  }
  // How much of a logistic lies at a level or below it; not for the highest level.
  GK_MIXTURE_FUNCTION double cdf(const Logistic& l, int level) const {
    return 1 / (1 + exp((l.mean - position(level + 0.5)) * l.sharpness));
  }
};

}  // namespace
}  // namespace gk

#undef GK_MIXTURE_FUNCTION
