// A sampling program as flat records: what genkernels/sampling/executors/records.py packs and both native executors walk
// (genkernels/sampling/program/instructions.py says what a program means). Indices into arrays that the plan owns, counted in
// floats.
#pragma once

#include <cstdint>

namespace gk {

// A value in memory: (y, x) of an image stands at offset + (y mod rows) * row_stride + (x - first_column) *
// column_stride, in the image's own memory or, external >= 0, in a constant that came from outside.
// `columns` are kept; at the start of the walk all pixels hold the `channels` floats at `outside`, or zero where that is -1.
struct SamplerBuffer {
  int64_t offset, rows, row_stride, column_stride, first_column, columns, channels, outside, external;
};

// Channels [channel, channel + length) of a value at (y + dy, x + dx).
struct SamplerPlace {
  int64_t value, dy, dx, channel, length;
};

// Segments [first, last) of an instruction, which move by the same stride from column to column.
struct SamplerGroup {
  int64_t first, last, column_stride, external;
};

constexpr int SAMPLER_OPERANDS = 4;

// `length` channels that lie side by side in the result and in every operand. `at` counts rows of the weight; a run
// does not reach from one panel into the next.
struct SamplerRun {
  int64_t at, length, channel, operand[SAMPLER_OPERANDS];
};

enum class SamplerKind : int64_t { affine, pointwise, cell, scan, draw };

// The order of UNARY and then BINARY in program.py.
enum class SamplerFunction : int64_t {
  copy, relu, tanh, sigmoid, exp, silu, gelu, gelu_tanh, elu, leaky_relu, softplus, clamp, scale,
  add, sub, mul, div, gate
};

// Its places stand one after the other: what is written, `operands` operands (terms), `segments` segments. A cell has
// hidden, state and memory, then previous and gates. A scan's body is instructions [body, body + count).
struct SamplerInstruction {
  int64_t kind;
  int64_t first_row, first_column, last_column;  // of the value written
  int64_t function, parameters;                  // where its parameters stand in `floats`
  int64_t accumulate;
  int64_t places, operands, segments;
  int64_t groups, arena_groups, group_count;  // those in the image's own memory come first
  int64_t runs, run_count;
  int64_t rows, reductions;  // of the weight
  int64_t weight, bias;      // in `floats`; the weight in panels, the bias filled up to whole panels
  int64_t body, count;
  int64_t number;  // a cell's units, the colour of a draw
};

// Instructions [first, last) of a phase.
struct SamplerPhase {
  int64_t first, last;
};

}  // namespace gk
