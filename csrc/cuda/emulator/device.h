// The surface of core/common.h, and the CUDA names that kernels use, on the emulator.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "cuda/emulator/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__
#define GK_NOINLINE
#define threadIdx (gk::emulator::current->index)
#define blockIdx (gk::emulator::current->block->index)
#define blockDim (gk::emulator::block_size)
#define gridDim (gk::emulator::grid_size)
#define __syncthreads() gk::emulator::sync_block(__LINE__)

#include "cuda/core/memory.h"

struct alignas(16) uint4 { uint32_t x, y, z, w; };

inline void check_full_mask(unsigned mask) {
  if (mask != 0xffffffffu) gk::emulator::fault("warp-wide instructions are emulated for full warps alone");
}

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  check_full_mask(mask);
  gk::emulator::collective("__syncwarp", line, nullptr, 0, nullptr, 0, nullptr);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  check_full_mask(mask);
  unsigned result;
  gk::emulator::collective("__ballot_sync", line, &predicate, sizeof(int), &result, sizeof(unsigned),
                           [](gk::emulator::Warp& warp) {
                             unsigned bits = 0;
                             for (int lane = 0; lane < 32; ++lane) {
                               int value;
                               memcpy(&value, warp.in[lane], sizeof(int));
                               bits |= (value != 0 ? 1u : 0u) << lane;
                             }
                             for (auto& out : warp.out) memcpy(out, &bits, sizeof(unsigned));
                           });
  return result;
}

namespace gk::emulator {

template <class T>
T shuffle(const char* operation, int line, T value, int source) {
  struct Operand { T value; int source; };
  const Operand operand{value, source & 31};
  T result;
  collective(operation, line, &operand, sizeof(Operand), &result, sizeof(T), [](Warp& warp) {
    for (int lane = 0; lane < 32; ++lane) {
      Operand own, from;
      memcpy(&own, warp.in[lane], sizeof(Operand));
      memcpy(&from, warp.in[own.source], sizeof(Operand));
      memcpy(warp.out[lane], &from.value, sizeof(T));
    }
  });
  return result;
}

}  // namespace gk::emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int line = __builtin_LINE()) {
  check_full_mask(mask);
  return gk::emulator::shuffle("__shfl_sync", line, value, source);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int line = __builtin_LINE()) {
  check_full_mask(mask);
  return gk::emulator::shuffle("__shfl_xor_sync", line, value, gk::emulator::current->lane ^ bits);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// Fibers change place at barriers alone.
template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address = before + value;
  return before;
}

namespace gk::cuda {

// --- numbers ---

inline uint32_t float_as_word(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float word_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// To nearest, ties to even, in units of 2^shift of the bits.
inline uint32_t round_bits(uint32_t bits, int shift) {
  return (bits + (1u << (shift - 1)) - 1 + ((bits >> shift) & 1)) >> shift << shift;
}

inline BFloat16 to_bfloat16(float x) {
  if (std::isnan(x)) return {0x7fff};
  return {static_cast<uint16_t>(round_bits(float_as_word(x), 16) >> 16)};
}
inline float to_float(BFloat16 x) { return word_as_float(static_cast<uint32_t>(x.bits) << 16); }

inline Float16 to_float16(float x) {
  const uint32_t sign = float_as_word(x) >> 16 & 0x8000;
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return {0x7fff};
  if (magnitude < 0x1p-14f) return {static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f)))};
  const uint32_t bits = (round_bits(float_as_word(magnitude), 13) >> 13) - ((127 - 15) << 10);
  return {static_cast<uint16_t>(sign | (bits < 0x7c00 ? bits : 0x7c00))};
}
inline float to_float(Float16 x) {
  const uint32_t magnitude = x.bits & 0x7fff;
  const float sign = x.bits & 0x8000 ? -1.0f : 1.0f;
  if (magnitude < 0x400) return sign * magnitude * 0x1p-24f;
  if (magnitude < 0x7c00) return sign * word_as_float((magnitude << 13) + ((127u - 15u) << 23));
  return magnitude == 0x7c00 ? sign * INFINITY : NAN;
}

inline float to_tf32(float x) {  // to nearest, ties away from zero
  return std::isfinite(x) ? word_as_float((float_as_word(x) + 0x1000) & ~0x1fffu) : x;
}

inline float tanh_approximate(float x) {  // as far off as the instruction may be: 11 bits
  const float y = std::tanh(x);
  return std::isnan(y) ? y : word_as_float(round_bits(float_as_word(y), 13));
}
inline float exp_fast(float x) { return std::exp(x); }
inline float divide_fast(float x, float y) { return x / y; }

template <class T>
T load_streamed(const float* p) {
  T x;
  memcpy(&x, p, sizeof(T));
  return x;
}

// --- shared memory and clusters ---

template <class T>
class Shared {
 public:
  static_assert(sizeof(T) >= 2, "shared memory is watched by pairs of bytes");
  explicit Shared(Region region) : region_(region) {}

  template <class V = T>
  V get(int i) const {
    V value;
    memcpy(&value, at(*emulator::current->block, i, sizeof(V), false), sizeof(V));
    return value;
  }
  template <class V>
  void put(int i, V value) const {
    memcpy(at(*emulator::current->block, i, sizeof(V), true), &value, sizeof(V));
  }
  template <class V>
  void put_to(int rank, int i, V value) const {
    if (rank < 0 || rank >= static_cast<int>(emulator::cluster->blocks.size()))
      emulator::fault("no block " + std::to_string(rank) + " in this cluster");
    memcpy(at(emulator::cluster->blocks[rank], i, sizeof(V), true), &value, sizeof(V));
  }

 private:
  char* at(emulator::Block& block, int i, int size, bool write) const {
    return emulator::access(block, region_.offset, region_.bytes, static_cast<int64_t>(i) * sizeof(T), size, write);
  }
  Region region_;
};

inline int cluster_rank() { return emulator::current->block->rank; }

inline void cluster_sync(int blocks, int line = __builtin_LINE()) {
  if (blocks != static_cast<int>(emulator::cluster->blocks.size())) emulator::fault("cluster_sync: another size");
  emulator::sync_cluster(line);
}

// --- products ---

template <class T>
void load_rows(uint32_t (&a)[4], const Shared<T>& memory, int i, int line = __builtin_LINE()) {
  const uint4 half_row = memory.template get<uint4>(i);
  emulator::collective("load_rows", line, &half_row, sizeof(half_row), a, sizeof(a), [](emulator::Warp& warp) {
    for (int lane = 0; lane < 32; ++lane)
      for (int part = 0; part < 4; ++part)  // rows 0-7, 8-15 of the first half, then of the second
        memcpy(warp.out[lane] + 4 * part, warp.in[8 * part + lane / 4] + 4 * (lane % 4), 4);
  });
}

// A 4-byte word as the numbers in it.
inline void unpack(uint32_t word, float (&x)[2], BFloat16) {
  x[0] = word_as_float(word << 16), x[1] = word_as_float(word & 0xffff0000u);
}
inline void unpack(uint32_t word, float (&x)[2], Float16) {
  x[0] = to_float(Float16{static_cast<uint16_t>(word)}), x[1] = to_float(Float16{static_cast<uint16_t>(word >> 16)});
}
inline void unpack(uint32_t word, float (&x)[1], float) { x[0] = word_as_float(word & ~0x1fffu); }  // the unit's view

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T, int line = __builtin_LINE()) {
  struct Operand { float d[4]; uint32_t a[4], b[2]; } operand;
  memcpy(operand.d, d, sizeof(d));
  memcpy(operand.a, a, sizeof(a));
  memcpy(operand.b, b, sizeof(b));
  emulator::collective("mma", line, &operand, sizeof(Operand), d, sizeof(d), [](emulator::Warp& warp) {
    constexpr int PER_WORD = 4 / sizeof(T), K = 8 * PER_WORD;
    float left[16][K], right[8][K];
    for (int lane = 0; lane < 32; ++lane) {
      Operand own;
      memcpy(&own, warp.in[lane], sizeof(Operand));
      const int row = lane / 4, word = lane % 4;
      for (int part = 0; part < 4; ++part) {
        float x[PER_WORD];
        unpack(own.a[part], x, T{});
        for (int i = 0; i < PER_WORD; ++i) left[row + part % 2 * 8][(word + part / 2 * 4) * PER_WORD + i] = x[i];
      }
      for (int part = 0; part < 2; ++part) {
        float x[PER_WORD];
        unpack(own.b[part], x, T{});
        for (int i = 0; i < PER_WORD; ++i) right[row][(word + part * 4) * PER_WORD + i] = x[i];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      Operand own;
      memcpy(&own, warp.in[lane], sizeof(Operand));
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = own.d[i];
        for (int k = 0; k < K; ++k) sum += left[row][k] * right[column][k];
        own.d[i] = sum;
      }
      memcpy(warp.out[lane], own.d, sizeof(own.d));
    }
  });
}

// --- launches ---

struct Grid { int blocks, threads, cluster; int64_t shared_bytes; };

inline const char* use_device(int) { return nullptr; }

template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), const Grid& grid, void*, Parameters... arguments) {
  static std::string message;
  try {
    emulator::run(grid.blocks, grid.threads, grid.cluster, grid.shared_bytes, [&] { kernel(arguments...); });
  } catch (const emulator::Fault& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}

}  // namespace gk::cuda
