// Functions of a sampling program on vectors (UNARY, BINARY and TERNARY in
// genkernels/sampling/program/instructions.py), sums and maxima of a vector's lanes, and stores of a part of it.
#pragma once

#include <cmath>

#include "cpu/core/vector_math.h"
#include "cpu/sampler/sampler.h"

namespace gk::GK_ISA::sampler {

GK_INLINE void store_part(float* p, Vec v, int64_t count) {
  float lanes[VL];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

GK_INLINE void store_up_to(float* p, Vec v, int64_t count) {
  if (count >= VL)
    store(p, v);
  else
    store_part(p, v, count);
}

GK_INLINE float sum_of_lanes(Vec v) {
  float lanes[VL];
  store(lanes, v);
  for (int width = VL / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// The largest number so far, NaN once there was one: a comparison with NaN is false, so that it stays.
GK_INLINE Vec larger(Vec most, Vec v) { return (v > most) | (v != v) ? v : most; }
GK_INLINE float max_of_lanes(Vec v) {
  float lanes[VL], most = -INFINITY;
  store(lanes, v);
  for (int i = 0; i < VL; ++i) most = lanes[i] > most || lanes[i] != lanes[i] ? lanes[i] : most;
  return most;
}

// e^x for x that is not above 0, down to zero: that of vector_math.h ends where numbers are no longer normal.
GK_INLINE Vec exp_to_zero(Vec x) {
  const auto tiny = x < broadcast(-87.0f);
  const Vec e = exp(tiny ? x + 44.3614196f : x);  // 64 ln 2
  return tiny ? e * 0x1p-64f : e;
}

// For functions that models use seldom: lane by lane, with the C library's accuracy and range.
template <class Scalar>
GK_INLINE Vec by_lanes(Vec v, const Scalar& scalar) {
  float lanes[VL];
  store(lanes, v);
  for (int i = 0; i < VL; ++i) lanes[i] = scalar(lanes[i]);
  return load(lanes);
}

// p: the function's parameters.
inline Vec unary(SamplerFunction function, const float* p, Vec x) {
  switch (function) {
    case SamplerFunction::relu: return x < Vec{} ? Vec{} : x;  // NaN stays NaN
    case SamplerFunction::tanh: return tanh(x);
    case SamplerFunction::sigmoid: return sigmoid(x);
    case SamplerFunction::exp: return by_lanes(x, [](float v) { return expf(v); });
    case SamplerFunction::silu: return x * sigmoid(x);
    case SamplerFunction::gelu:
      return by_lanes(x, [](float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678f)); });
    case SamplerFunction::gelu_tanh:
      return 0.5f * x * (1.0f + tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case SamplerFunction::elu: {
      const ExpParts e = exp_parts(x * p[2]);
      const Vec below = (e.scale * e.rest + (e.scale - 1.0f)) * (p[0] * p[1]);
      return x > Vec{} ? x * p[1] : below;
    }
    case SamplerFunction::leaky_relu: return x > Vec{} ? x : x * p[0];
    case SamplerFunction::softplus: {
      const float beta = p[0], threshold = p[1];
      return by_lanes(x, [&](float v) { return v * beta > threshold ? v : log1pf(expf(v * beta)) / beta; });
    }
    case SamplerFunction::clamp: {
      const Vec low = broadcast(p[0]), high = broadcast(p[1]);
      x = x < low ? low : x;
      return x > high ? high : x;
    }
    case SamplerFunction::scale: return x * p[0] + p[1];
    case SamplerFunction::abs: return bit_cast<Vec>(bit_cast<VecInt>(x) & 0x7fffffff);
    case SamplerFunction::sign: return x > Vec{} ? broadcast(1.0f) : x < Vec{} ? broadcast(-1.0f) : Vec{};
    case SamplerFunction::sqrt: return by_lanes(x, [](float v) { return sqrtf(v); });
    case SamplerFunction::rsqrt: return 1.0f / by_lanes(x, [](float v) { return sqrtf(v); });
    case SamplerFunction::log: return by_lanes(x, [](float v) { return logf(v); });
    case SamplerFunction::log1p: return by_lanes(x, [](float v) { return log1pf(v); });
    case SamplerFunction::expm1: return by_lanes(x, [](float v) { return expm1f(v); });
    case SamplerFunction::sin: return by_lanes(x, [](float v) { return sinf(v); });
    case SamplerFunction::cos: return by_lanes(x, [](float v) { return cosf(v); });
    case SamplerFunction::erf: return by_lanes(x, [](float v) { return erff(v); });
    default: return x;
  }
}

// What says yes is 1, what says no 0.
GK_INLINE Vec as_number(VecInt yes) { return yes ? broadcast(1.0f) : Vec{}; }

inline Vec binary(SamplerFunction function, Vec a, Vec b) {
  switch (function) {
    case SamplerFunction::add: return a + b;
    case SamplerFunction::sub: return a - b;
    case SamplerFunction::mul: return a * b;
    case SamplerFunction::div: return a / b;
    case SamplerFunction::maximum: return (a > b) | (a != a) ? a : b;  // NaN of either stays
    case SamplerFunction::minimum: return (a < b) | (a != a) ? a : b;
    case SamplerFunction::power: {
      float exponent[VL];
      store(exponent, b);
      const float* next = exponent;
      return by_lanes(a, [&](float v) { return powf(v, *next++); });
    }
    case SamplerFunction::less: return as_number(a < b);
    case SamplerFunction::less_equal: return as_number(a <= b);
    case SamplerFunction::equal: return as_number(a == b);
    case SamplerFunction::unequal: return as_number(a != b);
    default: return tanh(a) * sigmoid(b);
  }
}

inline Vec ternary(SamplerFunction function, Vec a, Vec b, Vec c) {
  return function == SamplerFunction::where ? (a != Vec{} ? b : c) : a * b + c;
}

// Channels from j on of an operand's span, or the one channel that it means.
GK_INLINE Vec load_operand(const float* span, int64_t step, int64_t j) {
  return step ? load(span + j) : broadcast(*span);
}

}  // namespace gk::GK_ISA::sampler
