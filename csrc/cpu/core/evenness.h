// Evenness of numbers: the condition under which Winograd's error bound holds.
//
// An implementation that multiplies differences mixes neighbours: the rounding of a large number, or a NaN, reaches
// results that never read it. So packed weights, and each image that is brought into scratch, are looked at, and a call
// takes the direct implementation, with PyTorch's footprint, where
//   a number is not finite, or so large that sums of products might not be,
//   the largest is over 512 times the (geometric) mean of those that are not zero: of normally distributed numbers it
//   is 10 times that, of the gradients in a DCGAN's training 20 times, and 280 times at most of 10,800 looked at,
//   nearly all are zero: gradients that start at a few pixels, by which receptive fields are looked at, stay exactly
//   zero elsewhere.
// All of it is read off the exponents: a few integer operations for each number, in a pass over L2.
#pragma once

#include "cpu/core/implementation.h"
#include "cpu/core/simd.h"

namespace gk::GK_ISA {

// What exponents tell: 0 stands for zero and denormals, 255 for what is not finite.
struct Exponents {
  int64_t sum, nonzero;
  int32_t largest;
};

inline Exponents exponents_of(const float* numbers, int64_t count) {
  typedef int32_t Ints __attribute__((vector_size(VL * sizeof(int32_t))));
  typedef int32_t IntsUnaligned __attribute__((vector_size(VL * sizeof(int32_t)), aligned(4), may_alias));
  constexpr int LANES = 2;
  constexpr int64_t BLOCK = int64_t{1} << 22;  // of which a lane of 32 bits can hold the sum
  Exponents all{0, 0, 0};
  const auto take = [&](int32_t sum, int32_t nonzero, int32_t largest) {
    all.sum += sum;
    all.nonzero += nonzero;
    all.largest = largest > all.largest ? largest : all.largest;
  };
  for (int64_t first = 0; first < count; first += BLOCK) {
    Ints sum[LANES] = {}, zeros[LANES] = {}, largest[LANES] = {};
    const int64_t end = min64(count, first + BLOCK), whole = first + (end - first) / (LANES * VL) * (LANES * VL);
    for (int64_t i = first; i < whole; i += LANES * VL)
      GK_UNROLL for (int lane = 0; lane < LANES; ++lane) {
        const Ints bits = *reinterpret_cast<const IntsUnaligned*>(numbers + i + lane * VL);
        const Ints exponent = (bits >> 23) & 255;
        sum[lane] += exponent;
        zeros[lane] += exponent == 0;  // -1 where it holds
        largest[lane] = exponent > largest[lane] ? exponent : largest[lane];
      }
    for (int lane = 0; lane < LANES; ++lane)
      for (int j = 0; j < VL; ++j)
        take(sum[lane][j], static_cast<int32_t>((whole - first) / (LANES * VL)) + zeros[lane][j], largest[lane][j]);
    for (int64_t i = whole; i < end; ++i) {
      int32_t bits;
      memcpy(&bits, numbers + i, sizeof(bits));
      const int32_t exponent = (bits >> 23) & 255;
      take(exponent, exponent != 0, exponent);
    }
  }
  return all;
}

constexpr int32_t MOST_EXPONENT = 127 + 40;  // 1e12
constexpr int64_t MOST_OVER_MEAN = 9;        // powers of two
constexpr int64_t LEAST_NONZERO = 8;         // one in so many

// Whether no number is so large that products with it, or their sums, might not be finite.
inline bool are_small(const float* numbers, int64_t count) {
  return exponents_of(numbers, count).largest < MOST_EXPONENT;
}

// `count` numbers among `floats`, the others being zero.
inline bool are_even(const float* numbers, int64_t floats, int64_t count) {
  const Exponents found = exponents_of(numbers, floats);
  if (found.nonzero == 0) return true;
  return found.largest < MOST_EXPONENT && found.nonzero * LEAST_NONZERO >= count &&
         (found.largest - MOST_OVER_MEAN) * found.nonzero <= found.sum;
}

// Whether one of the tensors that a call reads is uneven: one answer, written and read by all threads.
class Evenness {
 public:
  void look_at(const float* numbers, int64_t floats, int64_t count) {
    if (!are_even(numbers, floats, count)) refuse();
  }
  // Where every result reads all that is mixed into it: only that sums stay finite.
  void look_for_large(const float* numbers, int64_t count) {
    if (!are_small(numbers, count)) refuse();
  }
  bool refused() const {
    int uneven;
#pragma omp atomic read
    uneven = uneven_;
    return uneven != 0;
  }

 private:
  void refuse() {
#pragma omp atomic write
    uneven_ = 1;
  }

  int uneven_ = 0;
};

}  // namespace gk::GK_ISA
