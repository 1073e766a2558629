// Drawing a level from a mixture of discretized logistics, as genkernels/distributions/logistic_mixture.py defines it.
//
// The sum over the components is a monotonic function of the level, so the level is found by bisection: in float32 on
// vectors of components, 8 times for 256 levels. From there the definition's float64 decides, level by level; most often
// it confirms what was found with two sums. The weights are float64 from the start, some eight functions for a component
// and earlier colour.
#include "sampler_logistic_mixture.h"

#include <float.h>

#include "cpu/core/vector_math.h"
#include "cpu/sampler/interpreter.h"

namespace gk::GK_ISA::sampler {

int64_t Interpreter::draw_from_mixture(const float* parameters, int64_t colour, int64_t sub_pixel) {
  const SamplerSizes& sizes = p_.sizes;
  const int64_t area = sizes.height * sizes.width;
  const int components = static_cast<int>(sizes.components), here = static_cast<int>(colour);
  const LogisticMixture mixture{parameters,
                                call_.run.levels + sub_pixel - colour * area,
                                area,
                                static_cast<int>(sizes.levels),
                                static_cast<int>(sizes.colours),
                                components,
                                call_.run.temperature};
  for (int64_t k = 0; k < sizes.channels; ++k)
    if (!(fabsf(parameters[k]) <= FLT_MAX)) return NO_LEVEL;

  auto* const weights = reinterpret_cast<double*>(scratch_);
  auto* const logistics = reinterpret_cast<LogisticMixture::Logistic*>(weights + components);
  const int64_t lanes = ceil_div(components, VL) * VL;  // of the copies in float32
  float* const near_weights = reinterpret_cast<float*>(logistics + components);
  float *const near_means = near_weights + lanes, *const near_sharpness = near_means + lanes;
  memset(near_weights, 0, 3 * lanes * sizeof(float));
  double highest = parameters[0], most = -INFINITY, total = 0;
  for (int k = 1; k < components; ++k) highest = parameters[k] > highest ? parameters[k] : highest;
  for (int k = 0; k < components; ++k) {
    weights[k] = mixture.log_weight(here, k, highest);
    logistics[k] = mixture.logistic(here, k);
    most = weights[k] > most ? weights[k] : most;
  }
  for (int k = 0; k < components; ++k) {
    total += weights[k] = ::exp(weights[k] - most);
    near_weights[k] = static_cast<float>(weights[k]);
    near_means[k] = static_cast<float>(logistics[k].mean);
    near_sharpness[k] = static_cast<float>(logistics[k].sharpness < 1e30 ? logistics[k].sharpness : 1e30);
  }

  const double wanted = call_.run.uniforms[sub_pixel] * total;
  int first = 0, last = mixture.levels - 1;
  while (first < last) {
    const int middle = (first + last) / 2;
    const Vec edge = broadcast(static_cast<float>(mixture.position(middle + 0.5)));
    Vec sum{};
    for (int64_t k = 0; k < lanes; k += VL)
      sum += load(near_weights + k) * sigmoid((edge - load(near_means + k)) * load(near_sharpness + k));
    float each[VL], cdf = 0;
    store(each, sum);
    for (const float x : each) cdf += x;
    if (cdf <= wanted)
      first = middle + 1;
    else
      last = middle;
  }
  const auto is_above = [&](int level) {  // whether the level drawn is above this one
    double cdf = 0;
    for (int k = 0; k < components; ++k) cdf += weights[k] * mixture.cdf(logistics[k], level);
    return cdf <= wanted;
  };
  while (first > 0 && !is_above(first - 1)) --first;
  while (first < mixture.levels - 1 && is_above(first)) ++first;
  return first;
}

}  // namespace gk::GK_ISA::sampler
