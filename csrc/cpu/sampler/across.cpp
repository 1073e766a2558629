// Functions across the channels of a pixel: softmax, layer norm's standardisation, sums, maxima; group by group.
//
// Tiling: a group at a time, a vector of its channels at a time. They lie side by side, at most a few KB: passes after
// the first find them in L1, and nothing is kept between passes but the result. Two read, for a maximum or a mean and
// then a sum, a third writes.
// Floor: one load for every vector and pass, and the exponentials. Groups of few channels are bound by the partial
// results of the lanes, which are put together once for each pass.
// Measured (one thread, AVX-512 Xeon, 64 channels, in a PixelCNN of 7 layers): a standardisation takes 37 ns, a softmax
// 40 to 77 ns in a batch of 16 images, up to twice that with one image.
#include "cpu/sampler/functions.h"
#include "cpu/sampler/interpreter.h"

namespace gk::GK_ISA::sampler {

namespace {

// Numbers of a group, at most its last VL - 1 of them beyond the end replaced.
struct Group {
  const float* from;
  int64_t count;

  GK_INLINE Vec at(int64_t j, float instead) const {
    const Vec v = load(from + j);
    if (j + VL <= count) return v;
    VecInt lane;
    for (int i = 0; i < VL; ++i) lane[i] = i;
    return lane < static_cast<int32_t>(count - j) ? v : broadcast(instead);
  }

  template <class Term>
  GK_INLINE float sum(const Term& term) const {
    Vec sums = {};
    for (int64_t j = 0; j < count; j += VL) sums += term(j);
    return sum_of_lanes(sums);
  }

  // NaN where there is one.
  GK_INLINE float max() const {
    Vec most = broadcast(-INFINITY);
    for (int64_t j = 0; j < count; j += VL) most = larger(most, at(j, -INFINITY));
    return max_of_lanes(most);
  }

  float mean() const {
    return sum([&](int64_t j) { return at(j, 0.0f); }) / static_cast<float>(count);
  }
  float squares_around(float mean) const {
    return sum([&](int64_t j) {
      const Vec v = at(j, mean) - mean;
      return v * v;
    });
  }
};

void write(float* to, int64_t count, const Group& group, float minus, float times) {
  for (int64_t j = 0; j < count; j += VL) store_up_to(to + j, (load(group.from + j) - minus) * times, count - j);
}

void softmax(const Group& group, float* to) {
  const float most = group.max();
  const float total = group.sum([&](int64_t j) {
    const Vec e = exp_to_zero(group.at(j, -INFINITY) - most);
    store_up_to(to + j, e, group.count - j);
    return j + VL <= group.count ? e : Group{to + j, group.count - j}.at(0, 0.0f);
  });
  for (int64_t j = 0; j < group.count; j += VL) store_up_to(to + j, load(to + j) / total, group.count - j);
}

// Of the numbers' exponentials; `most` is the largest number.
float logarithm_of_sum(const Group& group, float most) {
  return logf(group.sum([&](int64_t j) { return exp_to_zero(group.at(j, -INFINITY) - most); }));
}

}  // namespace

void Interpreter::across(const SamplerInstruction& in) {
  const float* const parameters = p_.floats + in.parameters;
  const int64_t out_stride = stride(in.places);
  for (int64_t r = 0; r < rows_count_; ++r) {
    float* const target = at(in.places, out_stride, r);
    const float* const source = map_at(in.places + 1, r);
    for (int64_t span = in.spans; span < in.spans + in.span_count; ++span) {
      const SamplerSpan& part = p_.spans[span];
      const Group group = {source + part.operand[0], part.length};
      float* const to = target + part.channel;
      const float count = static_cast<float>(part.length);
      switch (in.function) {
        case SamplerFunction::softmax: softmax(group, to); break;
        case SamplerFunction::log_softmax: {
          const float most = group.max(), rest = logarithm_of_sum(group, most);
          for (int64_t j = 0; j < part.length; j += VL)
            store_up_to(to + j, load(group.from + j) - most - rest, part.length - j);
          break;
        }
        case SamplerFunction::standardise: {
          const float mean = group.mean();
          write(to, part.length, group, mean, 1.0f / sqrtf(group.squares_around(mean) / count + parameters[0]));
          break;
        }
        case SamplerFunction::sum: *to = group.sum([&](int64_t j) { return group.at(j, 0.0f); }); break;
        case SamplerFunction::mean: *to = group.mean(); break;
        case SamplerFunction::max: *to = group.max(); break;
        case SamplerFunction::logsumexp: {
          const float most = group.max();
          *to = fabsf(most) == INFINITY ? most : logarithm_of_sum(group, most) + most;
          break;
        }
        default: *to = group.squares_around(group.mean()) / (count - parameters[0]); break;  // variance
      }
    }
  }
}

}  // namespace gk::GK_ISA::sampler
