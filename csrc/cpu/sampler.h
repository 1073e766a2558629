// Runs a sampling program (genkernels/ops/sampler/program.py says what one means) on the CPU in float32. See
// sampler.cpp for how it works. Everything here is flat: indices into arrays that the plan owns, counted in floats.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

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

struct SamplerProgram {
  int64_t height, width, grid_width, colours, levels;
  int64_t image_floats;  // what an image keeps
  int64_t table;         // in `floats`: [levels]
  const float* floats;
  const SamplerBuffer* buffers;
  int64_t buffer_count;
  const SamplerPlace* places;
  int64_t place_count;
  const SamplerInstruction* instructions;
  const SamplerGroup* groups;
  const SamplerRun* runs;
  const SamplerPhase* phases;  // the row's, then those of steps 0 .. colours
  int64_t most_segments, most_groups;
};

// A constant: one for each image, or image_stride 0. A vector is copied to `offset` of the image's memory.
struct SamplerConstant {
  const float* data;
  int64_t image_stride, offset, length;
};

struct SamplerCall {
  SamplerProgram program;
  int64_t images;
  uint8_t* levels;         // [images, C, H, W], read where known, written where free
  const uint8_t* free;     // the same shape
  const double* uniforms;  // the same shape
  float* logits;           // [images, levels, C, H, W], or nullptr
  double temperature;
  int64_t top_k;           // 0 for all
  int64_t last_row, last_column, last_colour;
  const SamplerConstant *maps, *vectors;
  int64_t vector_count;
  int threads;
  // Called by the calling thread now and then with the number of rows that all images have finished; false ends the
  // run early.
  bool (*poll)(void* context, int64_t rows);
  void* context;
};

}  // namespace gk

// False when there is no memory.
GK_DECLARE_PER_ISA(bool, sampler_run, (const gk::SamplerCall& call))
// Columns of a panel of weights, and lanes of a register: the last panel of a weight is a whole number of these wide.
GK_DECLARE_PER_ISA(void, sampler_panel, (int64_t* columns, int64_t* lanes))
