// Instructions that work channel by channel: functions of up to three numbers, rows of a table, the cell of an LSTM.
#include <string.h>

#include "cpu/sampler/functions.h"
#include "cpu/sampler/interpreter.h"

namespace gk::GK_ISA::sampler {

void Interpreter::pointwise(const SamplerInstruction& in) {
  const auto function = in.function;
  const float* const parameters = p_.floats + in.parameters;
  const int64_t out_stride = stride(in.places);
  for (int64_t r = 0; r < rows_count_; ++r) {
    float* const target = at(in.places, out_stride, r);
    const float* const first = map_at(in.places + 1, r);
    const float* const second = in.operands > 1 ? map_at(in.places + 2, r) : nullptr;
    const float* const third = in.operands > 2 ? map_at(in.places + 3, r) : nullptr;
    for (int64_t span = in.spans; span < in.spans + in.span_count; ++span) {
      const SamplerSpan& part = p_.spans[span];
      for (int64_t j = 0; j < part.length; j += VL) {
        const Vec a = load_operand(first + part.operand[0], part.step[0], j);
        Vec v;
        if (!second) {
          v = unary(function, parameters, a);
        } else {
          const Vec b = load_operand(second + part.operand[1], part.step[1], j);
          v = third ? ternary(function, a, b, load_operand(third + part.operand[2], part.step[2], j))
                    : binary(function, a, b);
        }
        store_up_to(target + part.channel + j, v, part.length - j);
      }
    }
  }
}

void Interpreter::lookup(const SamplerInstruction& in) {
  const int64_t out_stride = stride(in.places);
  for (int64_t r = 0; r < rows_count_; ++r) {
    const float number = *map_at(in.places + 1, r), last = static_cast<float>(in.number - 1);
    const int64_t row = number > 0 ? static_cast<int64_t>(number < last ? number : last) : 0;  // NaN is no number
    memcpy(at(in.places, out_stride, r), p_.floats + in.weight + row * in.rows, in.rows * sizeof(float));
  }
}

void Interpreter::cell(const SamplerInstruction& in) {
  const int64_t units = in.number, k = in.places;
  for (int64_t r = 0; r < rows_count_; ++r) {
    float *const hidden = at(k, stride(k), r), *const state = at(k + 1, stride(k + 1), r);
    float* const memory = at(k + 2, stride(k + 2), r);
    const float *const previous = at(k + 3, stride(k + 3), r), *const gates = at(k + 4, stride(k + 4), r);
    for (int64_t span = in.spans; span < in.spans + in.span_count; ++span) {
      const SamplerSpan& part = p_.spans[span];
      for (int64_t j = part.channel; j < part.channel + part.length; j += VL) {
        const int64_t left = part.channel + part.length - j;
        const Vec input = sigmoid(load(gates + j)), forget = sigmoid(load(gates + units + j));
        const Vec fresh = tanh(load(gates + 2 * units + j)), open = sigmoid(load(gates + 3 * units + j));
        const Vec c = forget * load(previous + j) + input * fresh, h = open * tanh(c);
        store_up_to(memory + j, c, left);
        store_up_to(hidden + j, h, left);
        if (state != hidden) store_up_to(state + j, h, left);
      }
    }
  }
}

}  // namespace gk::GK_ISA::sampler
