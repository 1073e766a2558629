// Sums over taps: tiles of the product, and what is applied to them before they are stored.
#include <string.h>

#include "cpu/sampler/few_rows.h"
#include "cpu/sampler/functions.h"
#include "cpu/sampler/interpreter.h"

namespace gk::GK_ISA::sampler {

void Interpreter::affine(const SamplerInstruction& in, int64_t x0) {
  const bool one_column = rows_count_ == images_;
  const int64_t first_segment = in.places + 1 + in.operands;
  for (int64_t s = 0; s < in.segments; ++s) {
    const int64_t k = first_segment + s;
    segments_[s] = {position_[k] + x0 * stride(k), p_.places[k].length};
  }
  // Within one column all that an image has itself is reached from one pointer.
  SamplerGroup joined[1];
  const SamplerGroup* groups = p_.groups + in.groups;
  int64_t group_count = in.group_count;
  if (one_column && group_count > 1 && in.arena_groups == group_count) {
    joined[0] = {0, in.segments, 0, -1};
    groups = joined;
    group_count = 1;
  }
  for (int64_t g = 0; g < group_count; ++g) {
    const int64_t external = groups[g].external;
    const float* base = arena_;
    int64_t image_stride = p_.sizes.image_floats;
    if (external >= 0) {
      image_stride = call_.maps[external].image_stride;
      base = call_.maps[external].data + first_ * image_stride;
    }
    for (int64_t r = 0; r < rows_count_; ++r)
      rows_[g * MOST_ROWS + r] = base + image_[r] * image_stride + (column_[r] - x0) * groups[g].column_stride;
  }
  if (rows_count_ <= FEW_ROWS)
    affine_few_rows(in, groups, group_count);
  else
    affine_tiles(in, groups, group_count);
}

void Interpreter::affine_tiles(const SamplerInstruction& in, const SamplerGroup* groups, int64_t group_count) {
  int64_t span = in.spans;
  for (int64_t column = 0; column < in.rows; column += PANEL_MAX) {
    const int nr = static_cast<int>(ceil_div(min64(in.rows - column, PANEL_MAX), VL));
    const int64_t last_span = spans_before(in, span, column + nr * VL);
    const float* const panel = p_.floats + in.weight + column * in.reductions;
    for_row_tiles(rows_count_, [&](int64_t first, int64_t count) {
      const int mr = static_cast<int>(count);
      const float* weights = panel;
      if (group_count == 0) memset(staging_, 0, count * nr * VL * sizeof(float));
      for (int64_t g = 0; g < group_count; ++g) {
        const SamplerGroup& group = groups[g];
        const auto tile = tile_function(g == 0 ? TileMode::write : TileMode::add, mr, nr);
        tile(rows_ + g * MOST_ROWS + first, segments_ + group.first, group.last - group.first, weights, staging_,
             nr * VL);
        for (int64_t s = group.first; s < group.last && g + 1 < group_count; ++s)
          weights += segments_[s].length * nr * VL;
      }
      finish(in, span, last_span, column, first, count, nr * VL);
    });
    span = last_span;
  }
}

void Interpreter::affine_few_rows(const SamplerInstruction& in, const SamplerGroup* groups, int64_t group_count) {
  int64_t span = in.spans;
  const int64_t at_once = few_rows_panels(rows_count_);
  for (int64_t column = 0; column < in.rows;) {
    const int64_t whole = min64((in.rows - column) / PANEL_MAX, at_once), panels = max64(whole, 1);
    const int nr = whole ? NR_MAX : static_cast<int>(ceil_div(in.rows - column, VL));
    const int64_t width = panels * nr * VL, last_span = spans_before(in, span, column + width);
    const float* weights = p_.floats + in.weight + column * in.reductions;
    if (group_count == 0) memset(staging_, 0, rows_count_ * width * sizeof(float));
    for (int64_t g = 0; g < group_count; ++g) {
      const SamplerGroup& group = groups[g];
      multiply_few_rows(rows_count_, panels, nr, rows_ + g * MOST_ROWS, segments_ + group.first,
                        group.last - group.first, weights, in.reductions * PANEL_MAX, staging_, width, g > 0);
      for (int64_t s = group.first; s < group.last && g + 1 < group_count; ++s)
        weights += segments_[s].length * nr * VL;
    }
    finish(in, span, last_span, column, 0, rows_count_, width);
    span = last_span;
    column += width;
  }
}

int64_t Interpreter::spans_before(const SamplerInstruction& in, int64_t span, int64_t column) const {
  while (span < in.spans + in.span_count && p_.spans[span].at < column) ++span;
  return span;
}

// Stores `staging_`, [count][width] for rows of the weight from `column` on, into the value, after bias, terms, partial
// sum and activation.
void Interpreter::finish(const SamplerInstruction& in, int64_t span, int64_t last_span, int64_t column, int64_t first,
            int64_t count, int64_t width) {
  const auto function = in.function;
  const bool plain = function == SamplerFunction::copy || function == SamplerFunction::relu;
  const bool clip = function == SamplerFunction::relu;
  const float* const parameters = p_.floats + in.parameters;
  const int64_t out_stride = stride(in.places);
  for (; span < last_span; ++span) {
    const SamplerSpan& part = p_.spans[span];
    const float* const bias = p_.floats + in.bias + part.at;
    for (int64_t i = 0; i < count; ++i) {
      const float* const sum = staging_ + i * width + part.at - column;
      float* const out = at(in.places, out_stride, first + i) + part.channel;
      const float* terms[SAMPLER_OPERANDS];
      for (int64_t t = 0; t < in.operands; ++t)
        terms[t] = map_at(in.places + 1 + t, first + i) + part.operand[t];
      for (int64_t j = 0; j < part.length; j += VL) {
        Vec v = load(sum + j) + load(bias + j);
        for (int64_t t = 0; t < in.operands; ++t) v += load_operand(terms[t], part.step[t], j);
        if (in.accumulate) v += load(out + j);
        if (!plain) v = unary(function, parameters, v);
        if (clip) v = v < Vec{} ? Vec{} : v;
        store_up_to(out + j, v, part.length - j);
      }
    }
  }
}

}  // namespace gk::GK_ISA::sampler
