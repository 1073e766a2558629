// Activations and their slopes on blocks, and the gradient through batch norm and activation.
#pragma once

#include "cpu/conv_bn_act.h"
#include "cpu/vector_math.h"

namespace gk::GK_ISA {

// vector_math works on whole registers; a block is one, or half of one on AVX-512.
template <class Function>
GK_INLINE Block on_registers(Block v, const Function& function) {
  if constexpr (IO == VL) {
    return bit_cast<Block>(function(bit_cast<Vec>(v)));
  } else {
    float lanes[VL] = {};
    memcpy(lanes, &v, sizeof(v));
    const Vec result = function(load(lanes));
    Block out;
    memcpy(&out, &result, sizeof(out));
    return out;
  }
}
GK_INLINE Block tanh_block(Block v) {
  return on_registers(v, [](Vec x) { return tanh(x); });
}
GK_INLINE Block sigmoid_block(Block v) {
  return on_registers(v, [](Vec x) { return sigmoid(x); });
}

// The three shapes that the five activations have: of the piecewise linear ones the slope below zero is 0, what the
// user says, or 1.
enum class Curve { linear, tanh, sigmoid };

GK_INLINE Curve curve_of(const ActivationSpec& a) {
  return a.kind == Activation::tanh ? Curve::tanh : a.kind == Activation::sigmoid ? Curve::sigmoid : Curve::linear;
}
GK_INLINE float slope_below(const ActivationSpec& a) {
  return a.kind == Activation::none ? 1.0f : a.kind == Activation::relu ? 0.0f : a.negative_slope;
}

// v * below, zero for infinite v too where below is.
GK_INLINE Block times(Block v, float below) { return below == 0 ? Block{} : v * below; }

template <Curve CURVE>
GK_INLINE Block activate(Block u, float below) {
  if constexpr (CURVE == Curve::tanh) return tanh_block(u);
  if constexpr (CURVE == Curve::sigmoid) return sigmoid_block(u);
  return u < Block{} ? times(u, below) : u;
}

// grad times the slope where the result is y (of the linear ones: or where the argument is y, the sign is the same).
template <Curve CURVE>
GK_INLINE Block times_slope(Block grad, Block y, float below) {
  if constexpr (CURVE == Curve::tanh) return grad * (1.0f - y * y);
  if constexpr (CURVE == Curve::sigmoid) return grad * (y * (1.0f - y));
  return y > Block{} ? grad : times(grad, below);
}

// The coefficients of the channels of one block: one channel spread over it, or IO channels side by side.
struct NormBlock {
  Block mean, rstd, gamma, beta, factor, mean_g, mean_g_zhat;
};

GK_INLINE NormBlock norm_of_channel(const NormCoefficients& n, int64_t c) {
  const Block z{};
  return {z + n.mean[c], z + n.rstd()[c], z + n.gamma()[c], z + n.beta()[c], z + n.factor()[c], z + n.mean_g()[c],
          z + n.mean_g_zhat()[c]};
}
GK_INLINE NormBlock norm_of_channels(const NormCoefficients& n, int64_t c) {
  return {load_block(n.mean + c),     load_block(n.rstd() + c),   load_block(n.gamma() + c),
          load_block(n.beta() + c),   load_block(n.factor() + c), load_block(n.mean_g() + c),
          load_block(n.mean_g_zhat() + c)};
}

GK_INLINE Block normalised(Block z, const NormBlock& n) { return (z - n.mean) * n.rstd; }

// g: the gradient before the activation; `zhat` is set under batch norm.
template <Curve CURVE, bool NORM>
GK_INLINE Block through_activation(Block grad, Block other, const NormBlock& n, float below, Block* zhat) {
  if constexpr (!NORM) return times_slope<CURVE>(grad, other, below);
  *zhat = normalised(other, n);
  const Block u = *zhat * n.gamma + n.beta;
  if constexpr (CURVE == Curve::linear) return times_slope<CURVE>(grad, u, below);
  return times_slope<CURVE>(grad, activate<CURVE>(u, below), below);
}

// The gradient of the convolution's result.
template <Curve CURVE, bool NORM>
GK_INLINE Block through_norm(Block grad, Block other, const NormBlock& n, float below) {
  Block zhat{};
  const Block g = through_activation<CURVE, NORM>(grad, other, n, below, &zhat);
  return NORM ? n.factor * (g - n.mean_g - zhat * n.mean_g_zhat) : g;
}

// Calls function.template operator()<CURVE, NORM>() for what the arguments say.
#define GK_BY_CURVE_AND_NORM(activation, has_norm, function, ...)                                             \
  do {                                                                                                        \
    switch (curve_of(activation)) {                                                                           \
      case Curve::linear:                                                                                     \
        (has_norm) ? function<Curve::linear, true>(__VA_ARGS__) : function<Curve::linear, false>(__VA_ARGS__);   \
        break;                                                                                                \
      case Curve::tanh:                                                                                       \
        (has_norm) ? function<Curve::tanh, true>(__VA_ARGS__) : function<Curve::tanh, false>(__VA_ARGS__);       \
        break;                                                                                                \
      case Curve::sigmoid:                                                                                    \
        (has_norm) ? function<Curve::sigmoid, true>(__VA_ARGS__) : function<Curve::sigmoid, false>(__VA_ARGS__); \
        break;                                                                                                \
    }                                                                                                         \
  } while (false)

}  // namespace gk::GK_ISA
