// State of a block that draws images: its program in shared memory, and where every value lies.
#pragma once

#include "cuda/core/common.h"
#include "cuda/sampler/sampler.h"
#include "sampler_records.h"

namespace gk::cuda {

constexpr int QUAD = 4;
constexpr int NO_LEVEL = -1;      // what is no distribution: logits with a NaN, +inf, or -inf alone
constexpr int ROW_TILE = 32;      // rows of a product in the row phase that a block multiplies at once
constexpr int ROW_CHUNK = 64;     // reductions, likewise
constexpr int ROW_STRIDE = ROW_CHUNK + QUAD;  // floats: eight rows at a time are read from all banks

struct SamplerRegions {
  Region weights;  // of the pixel phase, the first `resident` floats
  Region operands;  // of the product at hand
  Region tables;   // instructions, runs, phases
  Region places;   // a quad each: where it stands in this row at column 0, column_stride, external, span
  int64_t bytes;
};

__host__ __device__ inline int phase_ints(const SamplerShape& s) { return round_up(2 * (s.colours + 2), QUAD); }
__host__ __device__ inline int table_ints(const SamplerShape& s) {
  return s.instructions * static_cast<int>(sizeof(DeviceInstruction) / sizeof(int)) +
         s.spans * static_cast<int>(sizeof(DeviceSpan) / sizeof(int)) + phase_ints(s);
}

__host__ __device__ inline SamplerRegions regions_of(const SamplerShape& s, const SamplerDivision& d) {
  const int pixel = d.images * s.most_columns, row = ROW_TILE * ROW_STRIDE;
  SharedLayout layout;
  SamplerRegions r;
  r.weights = layout.take<float>(d.resident);
  r.operands = layout.take<float>(pixel > row ? pixel : row);
  r.tables = layout.take<int>(table_ints(s));
  r.places = layout.take<int>(static_cast<int64_t>(s.places) * QUAD);
  r.bytes = layout.bytes();
  return r;
}

// A record of 16-byte parts.
template <class Record>
__device__ __forceinline__ Record fetch(const Shared<int>& memory, int first) {
  constexpr int PARTS = sizeof(Record) / 16;
  Quad<int> parts[PARTS];
#pragma unroll
  for (int i = 0; i < PARTS; ++i) parts[i] = memory.get<Quad<int>>(first + QUAD * i);
  Record record;
  memcpy(&record, parts, sizeof(Record));
  return record;
}

struct Standing {
  int position, column_stride, external, span;
  __device__ int first() const { return span >> 6; }  // reduction of a segment
  __device__ int length() const { return span & 63; }
};

class SamplerBlock {
 public:
  __device__ SamplerBlock(const SamplerLaunch& call, const SamplerRegions& regions)
      : call(call),
        shape(call.shape),
        threads(static_cast<int>(blockDim.x)),
        warps(threads / WARP),
        thread(static_cast<int>(threadIdx.x)),
        warp(thread / WARP),
        lane(thread % WARP),
        first_image(static_cast<int>(blockIdx.x) * call.division.images),
        images(call.images - first_image < call.division.images ? call.images - first_image : call.division.images),
        weights(regions.weights),
        operands(regions.operands),
        tables_(regions.tables),
        places_(regions.places),
        memory_(call.memory + static_cast<int64_t>(first_image) * shape.image_floats) {}

  // To be called by the whole block; __syncthreads before the first use.
  __device__ __forceinline__ void load() const {
    const auto* const from = reinterpret_cast<const Quad<float>*>(call.weights);
    for (int i = thread; i < call.division.resident / QUAD; i += threads) weights.put(QUAD * i, from[i]);
    for (int i = thread; i < table_ints(shape); i += threads) tables_.put(i, call.tables[i]);
    for (int i = thread; i < shape.places; i += threads) {
      const DevicePlace place = static_place(i);
      places_.put(QUAD * i, Quad<int>{{0, place.column_stride, place.external, place.span}});
    }
  }
  // Likewise, for every row.
  __device__ __forceinline__ void start_row(int y) const {
    for (int i = thread; i < shape.places; i += threads) {
      const DevicePlace place = static_place(i);
      int slot = (y + place.dy) % place.rows;
      if (slot < 0) slot += place.rows;
      places_.put(QUAD * i, place.base + slot * place.row_stride);
    }
  }

  __device__ __forceinline__ DeviceInstruction instruction(int k) const {
    return fetch<DeviceInstruction>(tables_, k * static_cast<int>(sizeof(DeviceInstruction) / sizeof(int)));
  }
  // Instructions [x, y) of a phase: the row's, then those of the steps.
  __device__ __forceinline__ Pair<int> phase(int number) const {
    return tables_.get<Pair<int>>(table_ints(shape) - phase_ints(shape) + 2 * number);
  }
  __device__ __forceinline__ Standing place(int k) const { return fetch<Standing>(places_, QUAD * k); }

  // A place as it is in every row.
  __device__ __forceinline__ DevicePlace static_place(int k) const {
    return reinterpret_cast<const DevicePlace*>(call.tables + table_ints(shape))[k];
  }
  // The memory of an image.
  __device__ __forceinline__ float* memory_of(int image) const {
    return memory_ + static_cast<int64_t>(image) * shape.image_floats;
  }

  // Where an image has a place: what is written never lies in a map.
  __device__ __forceinline__ float* own(const Standing& p, int image, int x) const {
    return memory_of(image) + p.position + x * p.column_stride;
  }
  __device__ __forceinline__ const float* at(const Standing& p, int image, int x) const {
    if (p.external < 0) return own(p, image, x);
    const SamplerConstant& map = call.maps[p.external];
    return map.data + (first_image + image) * map.image_stride + p.position + x * p.column_stride;
  }

  // The channels that row n of an instruction means, in the value that it writes and in its operands.
  struct Channels {
    int value, operand[SAMPLER_OPERANDS];
  };
  __device__ __forceinline__ Channels channels(const DeviceInstruction& in, int n) const {
    constexpr int SPAN = sizeof(DeviceSpan) / sizeof(int);
    int at = shape.instructions * static_cast<int>(sizeof(DeviceInstruction) / sizeof(int)) + in.spans * SPAN;
    Quad<int> span = tables_.get<Quad<int>>(at);
    while (n >= span.v[0] + span.v[1]) span = tables_.get<Quad<int>>(at += SPAN);
    const int further = n - span.v[0];
    Channels found = {span.v[2] + further, {span.v[3], 0, 0, 0}};
    if (in.operands > 0) {
      const Quad<int> others = tables_.get<Quad<int>>(at + QUAD);
      found.operand[0] += others.v[QUAD - 1] & 1 ? further : 0;
#pragma unroll
      for (int i = 1; i < SAMPLER_OPERANDS; ++i)
        found.operand[i] = others.v[i - 1] + (others.v[QUAD - 1] >> i & 1 ? further : 0);
    }
    return found;
  }
  // A span of an instruction: `operand` is that of its first channel.
  struct Group {
    int length, value, operand;
  };
  __device__ __forceinline__ Group group(const DeviceInstruction& in, int number) const {
    constexpr int SPAN = sizeof(DeviceSpan) / sizeof(int);
    const int instructions = shape.instructions * static_cast<int>(sizeof(DeviceInstruction) / sizeof(int));
    const Quad<int> span = tables_.get<Quad<int>>(instructions + (in.spans + number) * SPAN);
    return {span.v[1], span.v[2], span.v[3]};
  }

  // Summands of row n of an affine instruction besides the product: terms, and the sum that is there already.
  __device__ __forceinline__ float extra(const DeviceInstruction& in, const Channels& channels, int image, int x,
                                         const float* target) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < SAMPLER_OPERANDS; ++i) {
      if (i < in.operands) sum += at(place(in.places + 1 + i), image, x)[channels.operand[i]];
    }
    return in.accumulate ? sum + *target : sum;
  }

  const SamplerLaunch& call;
  const SamplerShape& shape;
  const int threads, warps, thread, warp, lane;
  const int first_image, images;  // of this block
  const Shared<float> weights, operands;

 private:
  const Shared<int> tables_, places_;
  float* const memory_;
};

// --- functions (UNARY, BINARY and TERNARY in genkernels/sampling/program/instructions.py) ---

// Those that models use seldom, out of the way. p: the function's parameters.
GK_NOINLINE inline __device__ float seldom_function(SamplerFunction function, const float* p, float x) {
  switch (function) {
    case SamplerFunction::tanh: return MathFloat32::tanh(x);
    case SamplerFunction::sigmoid: return MathFloat32::sigmoid(x);
    case SamplerFunction::exp: return expf(x);
    case SamplerFunction::silu: return x * MathFloat32::sigmoid(x);
    case SamplerFunction::gelu: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case SamplerFunction::gelu_tanh:
      return 0.5f * x * (1.0f + MathFloat32::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case SamplerFunction::elu: return x > 0.0f ? x * p[1] : expm1f(x * p[2]) * (p[0] * p[1]);
    case SamplerFunction::leaky_relu: return x > 0.0f ? x : x * p[0];
    case SamplerFunction::softplus: return x * p[0] > p[1] ? x : log1pf(expf(x * p[0])) / p[0];
    case SamplerFunction::clamp: {
      const float above = x < p[0] ? p[0] : x;
      return above > p[1] ? p[1] : above;
    }
    case SamplerFunction::scale: return x * p[0] + p[1];
    case SamplerFunction::abs: return fabsf(x);
    case SamplerFunction::sign: return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f;
    case SamplerFunction::sqrt: return sqrtf(x);
    case SamplerFunction::rsqrt: return 1.0f / sqrtf(x);
    case SamplerFunction::log: return logf(x);
    case SamplerFunction::log1p: return log1pf(x);
    case SamplerFunction::expm1: return expm1f(x);
    case SamplerFunction::sin: return sinf(x);
    case SamplerFunction::cos: return cosf(x);
    case SamplerFunction::erf: return erff(x);
    default: return x;
  }
}

__device__ __forceinline__ float unary(const SamplerBlock& b, const DeviceInstruction& in, float x) {
  const auto function = static_cast<SamplerFunction>(in.function);
  if (function == SamplerFunction::copy) return x;
  if (function == SamplerFunction::relu) return x < 0.0f ? 0.0f : x;  // NaN stays NaN
  return seldom_function(function, b.call.floats + in.parameters, x);
}

GK_NOINLINE inline __device__ float seldom_function(SamplerFunction function, float a, float b) {
  switch (function) {
    case SamplerFunction::maximum: return a > b || a != a ? a : b;  // NaN of either stays
    case SamplerFunction::minimum: return a < b || a != a ? a : b;
    case SamplerFunction::power: return powf(a, b);
    case SamplerFunction::less: return a < b ? 1.0f : 0.0f;
    case SamplerFunction::less_equal: return a <= b ? 1.0f : 0.0f;
    case SamplerFunction::equal: return a == b ? 1.0f : 0.0f;
    default: return a != b ? 1.0f : 0.0f;
  }
}

__device__ __forceinline__ float binary(SamplerFunction function, float a, float b) {
  switch (function) {
    case SamplerFunction::add: return a + b;
    case SamplerFunction::sub: return a - b;
    case SamplerFunction::mul: return a * b;
    case SamplerFunction::div: return a / b;
    case SamplerFunction::gate: return MathFloat32::tanh(a) * MathFloat32::sigmoid(b);
    default: return seldom_function(function, a, b);
  }
}

__device__ __forceinline__ float ternary(SamplerFunction function, float a, float b, float c) {
  return function == SamplerFunction::where ? (a != 0.0f ? b : c) : a * b + c;
}

}  // namespace gk::cuda
