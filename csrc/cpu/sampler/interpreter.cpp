// The instructions of a sampling program on a chunk of images, one thread.
//
// Rows of every product are (image, column) pairs: all columns of the row for all images of the chunk in the row phase,
// the images at one pixel in a step. They are read where they lie, through one pointer each; segments are the taps, those
// that lie side by side joined. A tile of results goes through L1, where bias, terms, partial sum and activation are put
// to it on its way into the value's memory.

#include "cpu/sampler/draw.cpp"
#include "cpu/sampler/few_rows.cpp"

namespace gk::GK_ISA {

constexpr int64_t WALK_ROWS = 384;  // of a product at a time: their pointers stay in L1

class SamplerWalk {
 public:
  // Floats of memory for a chunk of `images`, their own included.
  static int64_t floats(const SamplerProgram& p, int64_t images) {
    const int64_t doubles = p.place_count + p.most_segments * 2 + (p.most_groups + 2) * WALK_ROWS;
    return images * p.sizes.image_floats + doubles * 2 + STAGING + p.sizes.levels + 4 * PANEL_MAX;
  }

  SamplerWalk(const SamplerCall& call, float* memory) : call_(call), p_(call.program) {
    auto* words = reinterpret_cast<int64_t*>(memory);
    position_ = words;
    segments_ = reinterpret_cast<Segment*>(position_ + p_.place_count);
    rows_ = reinterpret_cast<const float**>(segments_ + p_.most_segments);
    image_ = reinterpret_cast<int64_t*>(rows_ + p_.most_groups * WALK_ROWS);
    column_ = image_ + WALK_ROWS;
    staging_ = reinterpret_cast<float*>(column_ + WALK_ROWS);
    scratch_ = staging_ + STAGING;
    const auto end = reinterpret_cast<uintptr_t>(scratch_ + p_.sizes.levels + 2 * PANEL_MAX);
    arena_ = reinterpret_cast<float*>((end + 63) / 64 * 64);
  }

  // Forgets everything and takes images [first, first + images). Memory that is zero already (`fresh`) is not touched
  // before it is needed: the caches of long images are large.
  void start(int64_t first, int64_t images, bool fresh) {
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

  void start_row(int64_t y) {
    y_ = y;
    for (int64_t k = 0; k < p_.place_count; ++k) {
      const SamplerPlace& place = p_.places[k];
      const SamplerBuffer& b = p_.buffers[place.value];
      int64_t slot = (y + place.dy) % b.rows;
      if (slot < 0) slot += b.rows;
      position_[k] =
          b.offset + slot * b.row_stride + (place.dx - b.first_column) * b.column_stride + place.channel;
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

  void step(int64_t number, int64_t x) {
    const SamplerPhase& phase = p_.phases[1 + number];
    for (int64_t k = phase.first; k < phase.last; ++k) {
      const SamplerInstruction& in = p_.instructions[k];
      if (x >= in.first_column && x < in.last_column && y_ >= in.first_row) apply(in, x, x + 1);
    }
  }

 private:
  static constexpr int64_t STAGING = MR_MAX * PANEL_MAX * 4;

  void apply(const SamplerInstruction& in, int64_t x0, int64_t x1) {
    const auto kind = in.kind;
    if (kind == SamplerKind::draw) return draw(in, x0);
    for (int64_t width = max64(WALK_ROWS / images_, 1); x0 < x1; x0 += width) {
      const int64_t end = min64(x0 + width, x1);
      int64_t r = 0;
      for (int64_t i = 0; i < images_; ++i)
        for (int64_t x = x0; x < end; ++x, ++r) image_[r] = i, column_[r] = x;
      rows_count_ = r;
      if (kind == SamplerKind::affine)
        affine(in, x0);
      else if (kind == SamplerKind::pointwise)
        pointwise(in);
      else
        cell(in);
    }
  }

  int64_t stride(int64_t place) const { return p_.buffers[p_.places[place].value].column_stride; }

  // Where row r reads or writes place k, which a constant map has outside the image's own memory.
  GK_INLINE float* at(int64_t k, int64_t column_stride, int64_t r) const {
    return arena_ + image_[r] * p_.sizes.image_floats + position_[k] + column_[r] * column_stride;
  }
  const float* map_at(int64_t k, int64_t r) const {
    const SamplerBuffer& b = p_.buffers[p_.places[k].value];
    if (b.external < 0) return at(k, b.column_stride, r);
    const SamplerConstant& map = call_.maps[b.external];
    return map.data + (first_ + image_[r]) * map.image_stride + position_[k] + column_[r] * b.column_stride;
  }

  // --- sums over taps ---

  void affine(const SamplerInstruction& in, int64_t x0) {
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
        rows_[g * WALK_ROWS + r] = base + image_[r] * image_stride + (column_[r] - x0) * groups[g].column_stride;
    }
    if (rows_count_ <= FEW_ROWS)
      affine_few_rows(in, groups, group_count);
    else
      affine_tiles(in, groups, group_count);
  }

  void affine_tiles(const SamplerInstruction& in, const SamplerGroup* groups, int64_t group_count) {
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
          tile(rows_ + g * WALK_ROWS + first, segments_ + group.first, group.last - group.first, weights, staging_,
               nr * VL);
          for (int64_t s = group.first; s < group.last && g + 1 < group_count; ++s)
            weights += segments_[s].length * nr * VL;
        }
        finish(in, span, last_span, column, first, count, nr * VL);
      });
      span = last_span;
    }
  }

  void affine_few_rows(const SamplerInstruction& in, const SamplerGroup* groups, int64_t group_count) {
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
        multiply_few_rows(rows_count_, panels, nr, rows_ + g * WALK_ROWS, segments_ + group.first,
                          group.last - group.first, weights, in.reductions * PANEL_MAX, staging_, width, g > 0);
        for (int64_t s = group.first; s < group.last && g + 1 < group_count; ++s)
          weights += segments_[s].length * nr * VL;
      }
      finish(in, span, last_span, column, 0, rows_count_, width);
      span = last_span;
      column += width;
    }
  }

  int64_t spans_before(const SamplerInstruction& in, int64_t span, int64_t column) const {
    while (span < in.spans + in.span_count && p_.spans[span].at < column) ++span;
    return span;
  }

  // What is in `staging_`, [count][width] for columns of the weight's rows from `column` on, into the value.
  void finish(const SamplerInstruction& in, int64_t span, int64_t last_span, int64_t column, int64_t first,
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
          for (int64_t t = 0; t < in.operands; ++t) v += load(terms[t] + j);
          if (in.accumulate) v += load(out + j);
          if (!plain) v = unary(function, parameters, v);
          if (clip) v = v < Vec{} ? Vec{} : v;
          store_up_to(out + j, v, part.length - j);
        }
      }
    }
  }

  // --- one by one ---

  void pointwise(const SamplerInstruction& in) {
    const auto function = in.function;
    const float* const parameters = p_.floats + in.parameters;
    const int64_t out_stride = stride(in.places);
    for (int64_t r = 0; r < rows_count_; ++r) {
      float* const target = at(in.places, out_stride, r);
      const float* const first = map_at(in.places + 1, r);
      const float* const second = in.operands > 1 ? map_at(in.places + 2, r) : nullptr;
      for (int64_t span = in.spans; span < in.spans + in.span_count; ++span) {
        const SamplerSpan& part = p_.spans[span];
        for (int64_t j = 0; j < part.length; j += VL) {
          const Vec a = load(first + part.operand[0] + j);
          const Vec v = second ? binary(function, a, load(second + part.operand[1] + j)) : unary(function, parameters, a);
          store_up_to(target + part.channel + j, v, part.length - j);
        }
      }
    }
  }

  void cell(const SamplerInstruction& in) {
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

  void draw(const SamplerInstruction& in, int64_t x) {
    if (x >= p_.sizes.width) return;
    const int64_t colour = in.number, area = p_.sizes.height * p_.sizes.width, k = in.places;
    for (int64_t i = 0; i < images_; ++i) {
      float* const own = arena_ + i * p_.sizes.image_floats;
      const float* const logits = own + position_[k + 1] + x * stride(k + 1);
      const int64_t image = first_ + i, pixel = y_ * p_.sizes.width + x, sub_pixel = (image * p_.sizes.colours + colour) * area + pixel;
      if (call_.run.logits)
        for (int64_t level = 0; level < p_.sizes.levels; ++level)
          call_.run.logits[((image * p_.sizes.levels + level) * p_.sizes.colours + colour) * area + pixel] = logits[level];
      if (call_.run.free[sub_pixel]) {
        const int64_t level =
            draw_level(logits, p_.sizes.levels, call_.run.uniforms[sub_pixel], call_.run.temperature, call_.run.top_k, scratch_);
        if (level == NO_LEVEL) {
          __atomic_store_n(call_.undrawable, sub_pixel, __ATOMIC_RELAXED);
          return;
        }
        call_.run.levels[sub_pixel] = static_cast<uint8_t>(level);
      }
      own[position_[k] + x * stride(k)] = p_.floats[p_.sizes.table + call_.run.levels[sub_pixel]];
    }
  }

  const SamplerCall& call_;
  const SamplerProgram& p_;
  int64_t first_ = 0, images_ = 0, y_ = 0, rows_count_ = 0;
  int64_t* position_;       // of every place, at column 0 of this row
  Segment* segments_;       // of the instruction at hand
  const float** rows_;      // [group][WALK_ROWS]
  int64_t *image_, *column_;  // of each row of the product at hand
  float *staging_, *scratch_, *arena_;
};

}  // namespace gk::GK_ISA
