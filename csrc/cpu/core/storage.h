// Storage types: float32, bfloat16 and float16 in memory, float32 in registers. Conversions are integer arithmetic on
// vectors, so that every instruction set has them; they move data between passes and bound nothing.
//
// Data is moved in blocks of IO lanes (8, or 4 where registers are that short), the side of the square that
// transpose() turns around.
#pragma once

#include "cpu/core/simd.h"
#include "cpu/core/tensor_view.h"

namespace gk {

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

}  // namespace gk

namespace gk::GK_ISA {

constexpr int IO = VL < 8 ? VL : 8;
typedef float Block __attribute__((vector_size(IO * sizeof(float))));
typedef uint32_t BlockBits __attribute__((vector_size(IO * sizeof(uint32_t))));
typedef uint16_t HalfBits __attribute__((vector_size(IO * sizeof(uint16_t))));

template <class To, class From>
GK_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

GK_INLINE BlockBits select(BlockBits mask, BlockBits yes, BlockBits no) { return (mask & yes) | (~mask & no); }
GK_INLINE Block relu(Block v) { return v < Block{} ? Block{} : v; }  // NaN stays NaN, as in torch

GK_INLINE Block widen(HalfBits h, BFloat16) { return bit_cast<Block>(__builtin_convertvector(h, BlockBits) << 16); }

GK_INLINE HalfBits narrow(Block v, BFloat16) {
  const BlockBits bits = bit_cast<BlockBits>(v);
  const BlockBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  const BlockBits is_nan = bit_cast<BlockBits>(v != v);
  return __builtin_convertvector(select(is_nan, BlockBits{} + 0x7fc0, rounded), HalfBits);
}

GK_INLINE Block widen(HalfBits h, Float16) {
  const BlockBits wide = __builtin_convertvector(h, BlockBits);
  const BlockBits exponent = wide & 0x7c00;
  const BlockBits magnitude = (wide & 0x7fff) << 13;
  const BlockBits normal = magnitude + ((127u - 15u) << 23);
  const BlockBits infinite = magnitude + ((255u - 31u) << 23);
  // A subnormal is mantissa * 2^-24: put it under the exponent of 2^-14 and take that away again.
  const Block offset = bit_cast<Block>(BlockBits{} + (113u << 23));
  const BlockBits subnormal = bit_cast<BlockBits>(bit_cast<Block>(magnitude + (113u << 23)) - offset);
  BlockBits bits = select(bit_cast<BlockBits>(exponent == 0), subnormal, normal);
  bits = select(bit_cast<BlockBits>(exponent == 0x7c00), infinite, bits);
  return bit_cast<Block>(bits | ((wide & 0x8000) << 16));
}

GK_INLINE HalfBits narrow(Block v, Float16) {
  const BlockBits bits = bit_cast<BlockBits>(v);
  const BlockBits sign = bits & 0x80000000u;
  const BlockBits magnitude = bits ^ sign;
  const BlockBits odd = (magnitude >> 13) & 1;
  const BlockBits normal = (magnitude - ((127u - 15u) << 23) + 0xfff + odd) >> 13;  // to nearest, ties to even
  // Adding 0.5 lets the adder round a subnormal to a multiple of 2^-24, left in the low bits.
  const Block half = bit_cast<Block>(BlockBits{} + (126u << 23));
  const BlockBits subnormal = bit_cast<BlockBits>(bit_cast<Block>(magnitude) + half) - (126u << 23);
  BlockBits result = select(bit_cast<BlockBits>(magnitude < (113u << 23)), subnormal, normal);
  result = select(bit_cast<BlockBits>(magnitude >= (143u << 23)), BlockBits{} + 0x7c00, result);
  result = select(bit_cast<BlockBits>(magnitude > (255u << 23)), BlockBits{} + 0x7e00, result);
  return __builtin_convertvector(result | (sign >> 16), HalfBits);
}

GK_INLINE Block load_block(const float* p) {
  Block v;
  memcpy(&v, p, sizeof(v));
  return v;
}
GK_INLINE void store_block(float* p, Block v) { memcpy(p, &v, sizeof(v)); }

template <class T>
GK_INLINE Block load_block(const T* p) {
  HalfBits h;
  memcpy(&h, p, sizeof(h));
  return widen(h, T{});
}
template <class T>
GK_INLINE void store_block(T* p, Block v) {
  const HalfBits h = narrow(v, T{});
  memcpy(p, &h, sizeof(h));
}

GK_INLINE float load_one(const float* p) { return *p; }
GK_INLINE void store_one(float* p, float v) { *p = v; }
template <class T>
GK_INLINE float load_one(const T* p) {
  return widen(HalfBits{} + p->bits, T{})[0];
}
template <class T>
GK_INLINE void store_one(T* p, float v) {
  p->bits = narrow(v - Block{}, T{})[0];
}

// A block of `count` <= IO values that may end before IO: the rest reads as zero.
template <class T>
GK_INLINE Block load_some(const T* p, int64_t count) {
  if (count >= IO) return load_block(p);
  Block v{};
  for (int64_t i = 0; i < count; ++i) v[i] = load_one(p + i);
  return v;
}
template <class T>
GK_INLINE void store_some(T* p, Block v, int64_t count) {
  if (count >= IO) return store_block(p, v);
  for (int64_t i = 0; i < count; ++i) store_one(p + i, v[i]);
}

#if GK_ISA_LEVEL == 0
GK_INLINE void transpose(Block (&v)[IO]) {
  const Block a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5), b = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
  const Block c = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5), d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
  v[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  v[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  v[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  v[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}
#else
GK_INLINE void transpose(Block (&v)[IO]) {
  Block pair[8], quad[8];
  GK_UNROLL for (int i = 0; i < 8; i += 2) {
    pair[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pair[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  GK_UNROLL for (int i = 0; i < 8; i += 4)
    GK_UNROLL for (int j = 0; j < 2; ++j) {
      quad[i + 2 * j] = __builtin_shufflevector(pair[i + j], pair[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      quad[i + 2 * j + 1] = __builtin_shufflevector(pair[i + j], pair[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  GK_UNROLL for (int i = 0; i < 4; ++i) {
    v[i] = __builtin_shufflevector(quad[i], quad[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    v[i + 4] = __builtin_shufflevector(quad[i], quad[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
#endif

}  // namespace gk::GK_ISA
