// Records of a packed sampling program, and what one run of it is given: the common ground of both native executors.
//
// genkernels/sampling/executors/packing.py makes the records (genkernels/sampling/program/instructions.py says what a
// program means). Every record lists its fields once, here: the struct follows from the list, and so does the reading of
// a record by the names of its fields in bindings/sampler_plan.h, so their order means nothing outside of this file.
// Fields that point into another list, or into the plan's floats, count its elements from 0.
#pragma once

#include <cstdint>

namespace gk {

#define GK_SAMPLER_MEMBER(type, name) type name;
#define GK_SAMPLER_VISIT(type, name) visit(#name, name);
#define GK_SAMPLER_ENUMERATOR(name) name,
#define GK_SAMPLER_RECORD(Record, FIELDS)     \
  struct Record {                             \
    FIELDS(GK_SAMPLER_MEMBER)                 \
    template <class Visit>                    \
    void for_each_field(const Visit& visit) { \
      FIELDS(GK_SAMPLER_VISIT)                \
    }                                         \
  };

#define GK_SAMPLER_SIZES(FIELD)                                                                      \
  FIELD(int64_t, height) FIELD(int64_t, width)                                                       \
  FIELD(int64_t, grid_width)   /* columns of the sweep over a row */                                 \
  FIELD(int64_t, colours) FIELD(int64_t, levels)                                                     \
  FIELD(int64_t, channels)     /* numbers that a level is drawn from */                              \
  FIELD(int64_t, predictions)  /* how many times a pixel has them: once, or once for each colour */  \
  FIELD(int64_t, components)   /* of a mixture */                                                    \
  FIELD(int64_t, image_floats) /* what an image keeps */                                             \
  FIELD(int64_t, table)        /* in `floats`: [levels], the image as the model sees it */
GK_SAMPLER_RECORD(SamplerSizes, GK_SAMPLER_SIZES)

// A value in memory: (y, x) of an image stands at offset + (y mod rows) * row_stride + (x - first_column) *
// column_stride, in the image's own memory or, external >= 0, in the constant map of that number. `columns` are kept; before
// the first row all pixels hold the `channels` floats at `outside`, or zero where that is -1.
#define GK_SAMPLER_BUFFER(FIELD)                                                                     \
  FIELD(int64_t, offset) FIELD(int64_t, rows) FIELD(int64_t, row_stride) FIELD(int64_t, column_stride) \
  FIELD(int64_t, first_column) FIELD(int64_t, columns) FIELD(int64_t, channels)                      \
  FIELD(int64_t, outside) FIELD(int64_t, external)
GK_SAMPLER_RECORD(SamplerBuffer, GK_SAMPLER_BUFFER)

// A constant vector: `length` floats at `offset` of every image's memory, written before the first row.
#define GK_SAMPLER_VECTOR(FIELD) FIELD(int64_t, offset) FIELD(int64_t, length)
GK_SAMPLER_RECORD(SamplerVector, GK_SAMPLER_VECTOR)

// Channels [channel, channel + length) of a value at (y + dy, x + dx).
#define GK_SAMPLER_PLACE(FIELD) \
  FIELD(int64_t, value) FIELD(int64_t, dy) FIELD(int64_t, dx) FIELD(int64_t, channel) FIELD(int64_t, length)
GK_SAMPLER_RECORD(SamplerPlace, GK_SAMPLER_PLACE)

// Segments [first, last) of an instruction, which move by the same stride from column to column.
#define GK_SAMPLER_GROUP(FIELD) \
  FIELD(int64_t, first) FIELD(int64_t, last) FIELD(int64_t, column_stride) FIELD(int64_t, external)
GK_SAMPLER_RECORD(SamplerGroup, GK_SAMPLER_GROUP)

constexpr int SAMPLER_OPERANDS = 4;
using SamplerOperands = int64_t[SAMPLER_OPERANDS];

// `length` channels that lie side by side in the result, from `channel` on, and in every operand, from its entry of
// `operand` on: its entry of `step` is 1, or 0 where one channel of the operand is meant throughout. `at` counts rows
// of the weight; a span does not reach from one panel into the next.
#define GK_SAMPLER_SPAN(FIELD) \
  FIELD(int64_t, at) FIELD(int64_t, length) FIELD(int64_t, channel) FIELD(SamplerOperands, operand) \
  FIELD(SamplerOperands, step)
GK_SAMPLER_RECORD(SamplerSpan, GK_SAMPLER_SPAN)

#define GK_SAMPLER_KINDS(NAME) \
  NAME(affine) NAME(pointwise) NAME(lookup) NAME(cell) NAME(scan) NAME(draw_categorical) NAME(draw_logistic_mixture) \
  NAME(across) NAME(attention)
enum class SamplerKind : int64_t { GK_SAMPLER_KINDS(GK_SAMPLER_ENUMERATOR) };

// UNARY, BINARY, TERNARY, ACROSS and REDUCE of genkernels/sampling/program/instructions.py.
#define GK_SAMPLER_FUNCTIONS(NAME)                                                                   \
  NAME(copy) NAME(relu) NAME(tanh) NAME(sigmoid) NAME(exp) NAME(silu) NAME(gelu) NAME(gelu_tanh)     \
  NAME(elu) NAME(leaky_relu) NAME(softplus) NAME(clamp) NAME(scale)                                  \
  NAME(add) NAME(sub) NAME(mul) NAME(div) NAME(gate)                                                 \
  NAME(abs) NAME(sign) NAME(sqrt) NAME(rsqrt) NAME(log) NAME(log1p) NAME(expm1) NAME(sin) NAME(cos)  \
  NAME(erf)                                                                                          \
  NAME(maximum) NAME(minimum) NAME(power) NAME(less) NAME(less_equal) NAME(equal) NAME(unequal)      \
  NAME(where) NAME(multiply_add)                                                                     \
  NAME(softmax) NAME(log_softmax) NAME(standardise)                                                  \
  NAME(sum) NAME(mean) NAME(max) NAME(logsumexp) NAME(variance)
enum class SamplerFunction : int64_t { GK_SAMPLER_FUNCTIONS(GK_SAMPLER_ENUMERATOR) };

// Its places stand one after the other: what is written, `operands` operands (terms), `segments` segments. A cell has
// hidden, state and memory, then previous and gates. A lookup's `weight` is a table [number, rows] in `floats`.
// A span of a function across channels is a group of channels of the operand; its result stands at `channel`, one
// number or `length`.
// Attention has a query, keys and values, of `rows`, `rows` and `reductions` channels, in `number` heads. A pixel sees
// those before it (function `less`), itself too (`less_equal`), or, with `count` tables [pixels, pixels] at `weight`,
// one for all heads or one for each, those where the number added to the score is not -inf.
#define GK_SAMPLER_INSTRUCTION(FIELD)                                                                \
  FIELD(SamplerKind, kind)                                                                           \
  FIELD(int64_t, first_row) FIELD(int64_t, first_column) FIELD(int64_t, last_column) /* of the value written */ \
  FIELD(SamplerFunction, function) FIELD(int64_t, parameters) /* where they stand in `floats` */     \
  FIELD(int64_t, accumulate)                                                                         \
  FIELD(int64_t, places) FIELD(int64_t, operands) FIELD(int64_t, segments)                           \
  FIELD(int64_t, groups) FIELD(int64_t, group_count)                                                 \
  FIELD(int64_t, arena_groups) /* those in the image's own memory, which come first */               \
  FIELD(int64_t, spans) FIELD(int64_t, span_count)                                                   \
  FIELD(int64_t, rows) FIELD(int64_t, reductions) /* of the weight */                                \
  FIELD(int64_t, weight) FIELD(int64_t, bias)     /* where they start; packed as the executor reads them */ \
  FIELD(int64_t, body) FIELD(int64_t, count)      /* of a scan: instructions [body, body + count) */ \
  FIELD(int64_t, number)          /* a cell's units, the colour of a draw, the numbers that a table is for */
GK_SAMPLER_RECORD(SamplerInstruction, GK_SAMPLER_INSTRUCTION)

// Instructions [first, last) of a phase.
#define GK_SAMPLER_PHASE(FIELD) FIELD(int64_t, first) FIELD(int64_t, last)
GK_SAMPLER_RECORD(SamplerPhase, GK_SAMPLER_PHASE)

#undef GK_SAMPLER_MEMBER
#undef GK_SAMPLER_VISIT
#undef GK_SAMPLER_ENUMERATOR
#undef GK_SAMPLER_RECORD

constexpr bool is_draw(SamplerKind kind) {
  return kind == SamplerKind::draw_categorical || kind == SamplerKind::draw_logistic_mixture;
}

// Images to draw, up to the last open sub-pixel of any.
struct SamplerRun {
  int64_t images;
  int32_t* levels;         // [images, C, H, W], read where known, written where free
  const uint8_t* free;     // the same shape
  const double* uniforms;  // the same shape
  float* logits;           // [images, channels, predictions, H, W], or nullptr
  double temperature;
  int64_t top_k;           // 0 for all
  int64_t last_row, last_column, last_colour;
};

// A constant map or vector: one for each image, or image_stride 0 where one serves all.
struct SamplerConstant {
  const float* data;
  int64_t image_stride;
};

}  // namespace gk
