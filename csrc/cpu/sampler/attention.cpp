// Attention of a pixel over those that it sees: scores, their softmax, and the weighted mean of the values.
//
// Keys and values of all pixels drawn so far are kept, a pixel's side by side. For each head they are read once: four
// keys at a time against the query, whose registers are the only thing that is shared; then the exponentials; then the
// values in blocks of four registers, which take a pixel's weight at a time. Floor: pixel t reads t (d_k + d_v) floats
// a head, in the mean over an image of T pixels T / 2 times those of one pixel: 28 x 28 with 64 channels 200 KB, from
// L2 some 5 us.
#include <string.h>

#include "cpu/sampler/functions.h"
#include "cpu/sampler/interpreter.h"

namespace gk::GK_ISA::sampler {

namespace {

// Channels of every pixel of an image: those of pixel (y, x) at from + y * row + x * column.
struct Kept {
  const float* from;
  int64_t row, column;
  GK_INLINE const float* at(int64_t y, int64_t x) const { return from + y * row + x * column; }
};

// <query, key> of `count` pixels that follow each other in a row.
void products(const float* query, int64_t depth, const float* keys, int64_t stride, int64_t count, float* out) {
  const int64_t whole = depth / VL * VL;
  const auto tail = [&](const float* key) {
    float sum = 0;
    for (int64_t j = whole; j < depth; ++j) sum += query[j] * key[j];
    return sum;
  };
  int64_t s = 0;
  for (; s + 4 <= count; s += 4) {
    const float* const key = keys + s * stride;
    Vec sums[4] = {};
    for (int64_t j = 0; j < whole; j += VL) {
      const Vec q = load(query + j);
      for (int i = 0; i < 4; ++i) sums[i] += q * load(key + i * stride + j);
    }
    for (int i = 0; i < 4; ++i) out[s + i] = sum_of_lanes(sums[i]) + tail(key + i * stride);
  }
  for (; s < count; ++s) {
    const float* const key = keys + s * stride;
    Vec sum = {};
    for (int64_t j = 0; j < whole; j += VL) sum += load(query + j) * load(key + j);
    out[s] = sum_of_lanes(sum) + tail(key);
  }
}

// Pixels (0, 0) .. (y, x), the last one left out.
template <class Row>
GK_INLINE void for_rows(int64_t y, int64_t x, int64_t width, const Row& row) {
  for (int64_t i = 0; i < y; ++i) row(i, i * width, width);
  if (x > 0) row(y, y * width, x);
}

}  // namespace

void Interpreter::attention(const SamplerInstruction& in) {
  const int64_t width = p_.sizes.width, pixels = p_.sizes.height * width, heads = in.number, k = in.places;
  const int64_t depth = in.rows / heads, wide = in.reductions / heads;
  const float scale = p_.floats[in.parameters];
  const auto kept = [&](int64_t place, int64_t image) {
    const SamplerPlace& p = p_.places[place];
    const SamplerBuffer& b = p_.buffers[p.value];
    const float* const own = arena_ + image * p_.sizes.image_floats + b.offset;
    return Kept{own + p.channel - b.first_column * b.column_stride, b.row_stride, b.column_stride};
  };
  float* const scores = scratch_;
  for (int64_t r = 0; r < rows_count_; ++r) {
    const int64_t x = column_[r], pixel = y_ * width + x;
    const int64_t beyond = x + (in.function == SamplerFunction::less ? 0 : 1), count = y_ * width + beyond;
    const Kept keys = kept(k + 2, image_[r]), values = kept(k + 3, image_[r]);
    for (int64_t head = 0; head < heads; ++head) {
      const float* const query = map_at(k + 1, r) + head * depth;
      const float* const table =
          in.count == 0 ? nullptr : p_.floats + in.weight + ((in.count > 1 ? head : 0) * pixels + pixel) * pixels;
      for_rows(y_, beyond, width, [&](int64_t y, int64_t first, int64_t columns) {
        products(query, depth, keys.at(y, 0) + head * depth, keys.column, columns, scores + first);
      });
      Vec most = broadcast(-INFINITY);
      for (int64_t s = count; s < count + VL; ++s) scores[s] = -INFINITY;
      for (int64_t s = 0; s < count; s += VL) {
        Vec v = load(scores + s) * scale;
        if (table) v += load(table + s);  // beyond the end -inf stays
        if (s + VL > count) {
          store_part(scores + s, v, count - s);
          v = load(scores + s);
        } else {
          store(scores + s, v);
        }
        most = larger(most, v);
      }
      const float highest = max_of_lanes(most);
      float* const out = at(k, stride(k), r) + head * wide;
      if (highest == -INFINITY) {  // it sees none
        memset(out, 0, wide * sizeof(float));
        continue;
      }
      Vec totals = {};
      for (int64_t s = 0; s < count; s += VL) {
        const Vec e = exp_to_zero(load(scores + s) - highest);
        store(scores + s, e);
        totals += e;  // e^-inf is 0
      }
      const float share = 1.0f / sum_of_lanes(totals);
      constexpr int BLOCK = 4;
      for (int64_t j = 0; j < wide; j += BLOCK * VL) {
        const int vectors = static_cast<int>(min64(ceil_div(wide - j, VL), BLOCK));
        Vec sums[BLOCK] = {};
        for_rows(y_, beyond, width, [&](int64_t y, int64_t first, int64_t columns) {
          const float* value = values.at(y, 0) + head * wide + j;
          for (int64_t s = 0; s < columns; ++s, value += values.column) {
            const float weight = scores[first + s];
            for (int i = 0; i < vectors; ++i) sums[i] += load(value + i * VL) * weight;
          }
        });
        for (int i = 0; i < vectors; ++i) store_up_to(out + j + i * VL, sums[i] * share, wide - j - i * VL);
      }
    }
  }
}

}  // namespace gk::GK_ISA::sampler
