// Memory of the interpreter, and the order of a program's instructions.
#include "cpu/sampler/interpreter.h"

#include <string.h>

namespace gk::GK_ISA::sampler {

Interpreter::Layout::Layout(const SamplerProgram& p, int64_t images) {
  position = all.take<int64_t>(p.place_count);
  segments = all.take<Segment>(p.most_segments);
  rows = all.take<const float*>(p.most_groups * MOST_ROWS);
  image = all.take<int64_t>(MOST_ROWS);
  column = all.take<int64_t>(MOST_ROWS);
  staging = all.take<float>(STAGING);
  const int64_t for_draws = max64(p.sizes.levels + 2 * DRAW_BLOCK, 9 * p.sizes.components + 3 * VL);
  scratch = all.take<float>(max64(for_draws, p.has_attention ? p.sizes.height * p.sizes.width + 2 * VL : 0));
  arena = all.take<float>(images * p.sizes.image_floats + PANEL_MAX);  // whole vectors may be read beyond the last
}

Interpreter::Interpreter(const SamplerCall& call, int64_t images) : Interpreter(call, Layout(call.program, images)) {}

Interpreter::Interpreter(const SamplerCall& call, const Layout& layout)
    : call_(call),
      p_(call.program),
      memory_(layout.all),
      image_(memory_.at(layout.image)),
      column_(memory_.at(layout.column)),
      position_(memory_.at(layout.position)),
      segments_(memory_.at(layout.segments)),
      rows_(memory_.at(layout.rows)),
      staging_(memory_.at(layout.staging)),
      scratch_(memory_.at(layout.scratch)),
      arena_(memory_.at(layout.arena)) {}

void Interpreter::start(int64_t first, int64_t images, bool fresh) {
  first_ = first;
  images_ = images;
  for (int64_t i = 0; i < images; ++i) {
    float* const own = arena_ + i * p_.sizes.image_floats;
    if (!fresh) memset(own, 0, p_.sizes.image_floats * sizeof(float));
    for (int64_t b = 0; b < p_.buffer_count; ++b) {
      const SamplerBuffer& buffer = p_.buffers[b];
      for (int64_t k = 0; buffer.outside >= 0 && k < buffer.rows * buffer.columns; ++k)
        memcpy(own + buffer.offset + k * buffer.channels, p_.floats + buffer.outside, buffer.channels * sizeof(float));
    }
    for (int64_t v = 0; v < p_.vector_count; ++v) {
      const SamplerConstant& c = call_.vectors[v];
      memcpy(own + p_.vectors[v].offset, c.data + (first + i) * c.image_stride, p_.vectors[v].length * sizeof(float));
    }
  }
}

void Interpreter::start_row(int64_t y) {
  y_ = y;
  for (int64_t k = 0; k < p_.place_count; ++k) {
    const SamplerPlace& place = p_.places[k];
    const SamplerBuffer& b = p_.buffers[place.value];
    int64_t slot = (y + place.dy) % b.rows;
    if (slot < 0) slot += b.rows;
    position_[k] = b.offset + slot * b.row_stride + (place.dx - b.first_column) * b.column_stride + place.channel;
  }
  const SamplerPhase& row = p_.phases[0];
  for (int64_t k = row.first; k < row.last; ++k) {
    const SamplerInstruction& in = p_.instructions[k];
    if (y < in.first_row) continue;
    if (in.kind == SamplerKind::scan) {
      for (int64_t x = in.last_column - 1; x >= in.first_column; --x)
        for (int64_t part = in.body; part < in.body + in.count; ++part) apply(p_.instructions[part], x, x + 1);
    } else {
      apply(in, in.first_column, in.last_column);
    }
  }
}

void Interpreter::run_pixel(int64_t first, int64_t last, int64_t x) {
  for (int64_t k = first; k < last; ++k) {
    const SamplerInstruction& in = p_.instructions[k];
    if (x >= in.first_column && x < in.last_column && y_ >= in.first_row) apply(in, x, x + 1);
  }
}

void Interpreter::step(int64_t number, int64_t x) {
  const SamplerPhase& phase = p_.phases[1 + number];
  run_pixel(phase.first, phase.last, x);
}

void Interpreter::before_draw(int64_t number, int64_t x) {
  const SamplerPhase& phase = p_.phases[1 + number];
  run_pixel(phase.first, phase.last - 1, x);
}

void Interpreter::draw_alone(int64_t number, int64_t x) {
  const int64_t last = p_.phases[1 + number].last;
  run_pixel(last - 1, last, x);
}

void Interpreter::copy_predictions(int64_t number, int64_t x, bool all, float* out) const {
  const int64_t place = p_.instructions[p_.phases[1 + number].last - 1].places + 1;
  const int64_t count = all ? p_.sizes.predictions * p_.sizes.channels : p_.sizes.channels;
  const int64_t from = position_[place] - (all ? p_.places[place].channel : 0) + x * stride(place);
  for (int64_t i = 0; i < images_; ++i)
    memcpy(out + i * count, arena_ + i * p_.sizes.image_floats + from, count * sizeof(float));
}

void Interpreter::apply(const SamplerInstruction& in, int64_t x0, int64_t x1) {
  if (is_draw(in.kind)) return draw(in, x0);
  for (int64_t width = max64(MOST_ROWS / images_, 1); x0 < x1; x0 += width) {
    const int64_t end = min64(x0 + width, x1);
    int64_t r = 0;
    for (int64_t i = 0; i < images_; ++i)
      for (int64_t x = x0; x < end; ++x, ++r) image_[r] = i, column_[r] = x;
    rows_count_ = r;
    if (in.kind == SamplerKind::affine)
      affine(in, x0);
    else if (in.kind == SamplerKind::pointwise)
      pointwise(in);
    else if (in.kind == SamplerKind::lookup)
      lookup(in);
    else if (in.kind == SamplerKind::across)
      across(in);
    else if (in.kind == SamplerKind::attention)
      attention(in);
    else
      cell(in);
  }
}

}  // namespace gk::GK_ISA::sampler
