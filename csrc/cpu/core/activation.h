// Activations and their slopes on blocks, and the gradient through batch norm and activation.
#pragma once

#include "cpu/core/activation_spec.h"
#include "cpu/core/vector_math.h"

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
// Called and not written out: they are long and would stand in every loop, for the few blocks that end in them.
__attribute__((noinline)) inline Block tanh_block(Block v) {
  return on_registers(v, [](Vec x) { return tanh(x); });
}
__attribute__((noinline)) inline Block sigmoid_block(Block v) {
  return on_registers(v, [](Vec x) { return sigmoid(x); });
}

// The three shapes that the five activations have: of the piecewise linear ones the slope below zero is 0, what the
// user says, or 1. A loop checks the shape at each block: a branch that always goes the same way costs nothing beside
// the block's memory; loops written out for each shape and storage type took up to twice as long to compile.
struct Curve {
  enum class Shape { linear, tanh, sigmoid } shape;
  float below;
};

GK_INLINE Curve curve_of(const ActivationSpec& a) {
  switch (a.kind) {
    case Activation::none: return {Curve::Shape::linear, 1.0f};
    case Activation::relu: return {Curve::Shape::linear, 0.0f};
    case Activation::leaky_relu: return {Curve::Shape::linear, a.negative_slope};
    case Activation::tanh: return {Curve::Shape::tanh, 0.0f};
    case Activation::sigmoid: return {Curve::Shape::sigmoid, 0.0f};
  }
  return {};
}

// v * below, zero for infinite v too where below is.
GK_INLINE Block times(Block v, float below) { return below == 0 ? Block{} : v * below; }

GK_INLINE Block activate(Block u, Curve curve) {
  if (curve.shape == Curve::Shape::tanh) return tanh_block(u);
  if (curve.shape == Curve::Shape::sigmoid) return sigmoid_block(u);
  return u < Block{} ? times(u, curve.below) : u;
}

// grad times the slope where the result is y (of the linear ones: or where the argument is y, the sign is the same).
GK_INLINE Block times_slope(Block grad, Block y, Curve curve) {
  if (curve.shape == Curve::Shape::tanh) return grad * (1.0f - y * y);
  if (curve.shape == Curve::Shape::sigmoid) return grad * (y * (1.0f - y));
  return y > Block{} ? grad : times(grad, curve.below);
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
template <bool NORM>
GK_INLINE Block through_activation(Block grad, Block other, const NormBlock& n, Curve curve, Block* zhat) {
  if constexpr (!NORM) return times_slope(grad, other, curve);
  *zhat = normalised(other, n);
  const Block u = *zhat * n.gamma + n.beta;
  return times_slope(grad, curve.shape == Curve::Shape::linear ? u : activate(u, curve), curve);
}

// The gradient of the convolution's result.
template <bool NORM>
GK_INLINE Block through_norm(Block grad, Block other, const NormBlock& n, Curve curve) {
  Block zhat{};
  const Block g = through_activation<NORM>(grad, other, n, curve, &zhat);
  return NORM ? n.factor * (g - n.mean_g - zhat * n.mean_g_zhat) : g;
}

}  // namespace gk::GK_ISA
