// Drawing a level from a mixture of discretized logistics, as genkernels/distributions/logistic_mixture.py defines it,
// in float64. The sum over the components is a monotonic function of the level, so the level is found by bisection: 8
// times K exponentials for 256 levels, and for the weights 5 functions a component and earlier colour.
#include "sampler_logistic_mixture.h"

#include <float.h>

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
  double highest = parameters[0], most = -INFINITY, total = 0;
  for (int k = 1; k < components; ++k) highest = parameters[k] > highest ? parameters[k] : highest;
  for (int k = 0; k < components; ++k) {
    weights[k] = mixture.log_weight(here, k, highest);
    logistics[k] = mixture.logistic(here, k);
    most = weights[k] > most ? weights[k] : most;
  }
  for (int k = 0; k < components; ++k) total += weights[k] = ::exp(weights[k] - most);

  const double wanted = call_.run.uniforms[sub_pixel] * total;
  int first = 0, last = mixture.levels - 1;
  while (first < last) {
    const int middle = (first + last) / 2;
    double cdf = 0;
    for (int k = 0; k < components; ++k) cdf += weights[k] * mixture.cdf(logistics[k], middle);
    if (cdf <= wanted)
      first = middle + 1;
    else
      last = middle;
  }
  return first;
}

}  // namespace gk::GK_ISA::sampler
