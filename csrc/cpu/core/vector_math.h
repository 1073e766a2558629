// exp, sigmoid and tanh on vectors, to 2.5 units in the last place where the result is a normal number. NaN stays NaN;
// arguments beyond the range of exp are moved to its ends.
#pragma once

#include "cpu/core/storage.h"

namespace gk::GK_ISA {

typedef int32_t VecInt __attribute__((vector_size(VL * sizeof(int32_t))));

// e^x = scale * (1 + rest), |rest| < 0.42, scale a power of two. In two parts, so that e^x - 1 keeps its accuracy
// around zero.
struct ExpParts { Vec scale, rest; };

GK_INLINE ExpParts exp_parts(Vec x) {
  constexpr float lowest = -87.0f, highest = 88.0f;
  x = x < broadcast(lowest) ? broadcast(lowest) : x;  // in this order a NaN stays
  x = x > broadcast(highest) ? broadcast(highest) : x;
  // Added to 1.5 * 2^23, the rounded exponent and its bias come to stand in the low bits.
  constexpr float shifter = 12582912.0f + 127.0f;
  const Vec shifted = x * 1.44269504f + shifter;
  const Vec n = shifted - shifter;
  const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts, n times the first is exact
  // (e^r - 1 - r) / r^2, minimax over |r| <= ln 2 / 2: 1.3e-8 of e^r - 1.
  Vec p = r * 0.00138825108f + 0.00836654473f;
  p = p * r + 0.0416672006f;
  p = p * r + 0.166665435f;
  p = p * r + 0.49999997f;
  return {bit_cast<Vec>(bit_cast<VecInt>(shifted) << 23), p * (r * r) + r};
}

GK_INLINE Vec exp(Vec x) {
  const ExpParts e = exp_parts(x);
  return e.scale * e.rest + e.scale;
}

GK_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

GK_INLINE Vec tanh(Vec x) {
  const ExpParts e = exp_parts(x + x);
  const Vec exp_minus_1 = e.scale * e.rest + (e.scale - 1.0f);
  return exp_minus_1 / (exp_minus_1 + 2.0f);
}

}  // namespace gk::GK_ISA
