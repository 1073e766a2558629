// The surface that the CUDA kernels are written on, beside the names of CUDA (threadIdx, __syncthreads, __ballot_sync).
//
// Two implementations: core/hardware.h for nvcc, emulator/device.h for a host compiler with GK_EMULATED, where the same .cu
// files run thread by thread and every access to shared memory is checked. So kernels keep to this surface:
//
//   Region, SharedLayout        where things lie in dynamic shared memory; host and kernel compute it alike
//   Shared<T>                   such a region: get, put, and put_to another block of the cluster. No raw pointers
//   load_rows                   ldmatrix.x4: the rows of a 16 x 32-byte block, each lane naming one half row
//   load_streamed               16 bytes of global memory, past L1
//   multiply<Math>              mma.sync of a 16 x 32-byte A with a 32-byte x 8 B, float32 sums
//   cluster_rank, cluster_sync  thread block clusters (compute capability 9.0; one block alone before that)
//   launch                      with dynamic shared memory and clusters
//
// One step of a product takes 32 bytes of a row, whatever the type: 16 numbers of 16 bits, or 8 of float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/core/tensor_view.h"  // Storage

#ifdef GK_EMULATED
#include "cuda/emulator/device.h"
#else
#include "cuda/core/hardware.h"
#endif

namespace gk::cuda {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int STEP_BYTES = 32;  // of a row, in one step of a product

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

// Two or four numbers that travel together.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T x, y;
};
template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T v[4];
};

// --- how a kernel computes: what lies in memory, how products and activations are rounded ---

struct MathBFloat16 {
  using T = BFloat16;
  static __device__ float tanh(float x) { return tanh_approximate(x); }
  static __device__ float sigmoid(float x) { return 0.5f * tanh_approximate(0.5f * x) + 0.5f; }
  static __device__ T operand(float x) { return to_bfloat16(x); }
};
struct MathFloat16 {
  using T = Float16;
  static __device__ float tanh(float x) { return tanh_approximate(x); }
  static __device__ float sigmoid(float x) { return 0.5f * tanh_approximate(0.5f * x) + 0.5f; }
  static __device__ T operand(float x) { return to_float16(x); }
};
// float32 in memory, products of numbers rounded to TF32 (11 bits), as PyTorch's convolutions compute by default.
struct MathTF32 {
  using T = float;
  static __device__ float tanh(float x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }
  static __device__ float sigmoid(float x) { return divide_fast(1.0f, 1.0f + exp_fast(-x)); }
  static __device__ T operand(float x) { return to_tf32(x); }
};
// float32 throughout: three TF32 products make one, of the numbers' upper and lower halves.
struct MathFloat32 {
  using T = float;
  static __device__ float tanh(float x) { return tanhf(x); }
  static __device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
  static __device__ T operand(float x) { return x; }
};

inline __device__ float to_float(float x) { return x; }
template <class T>
__device__ T from_float(float x);
template <>
inline __device__ float from_float<float>(float x) { return x; }
template <>
inline __device__ BFloat16 from_float<BFloat16>(float x) { return to_bfloat16(x); }
template <>
inline __device__ Float16 from_float<Float16>(float x) { return to_float16(x); }

// d += a b. Lane l holds of the A block, in 4-byte words w = l % 4 of rows r = l / 4: a[0] (r, w), a[1] (r + 8, w),
// a[2] (r, w + 4), a[3] (r + 8, w + 4); of B, whose 8 columns are rows in memory: b[0] word w and b[1] word w + 4 of
// column r; of d: d[0], d[1] columns 2w, 2w + 1 of row r, d[2], d[3] the same of row r + 8.
template <class Math>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(typename Math::T) == 2) {
    mma(d, a, b, typename Math::T{});
  } else {
    mma(d, a, b, float{});
  }
}
template <>
__device__ __forceinline__ void multiply<MathFloat32>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t upper_a[4], lower_a[4], upper_b[2], lower_b[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float x = word_as_float(a[i]), upper = to_tf32(x);
    upper_a[i] = float_as_word(upper), lower_a[i] = float_as_word(to_tf32(x - upper));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float x = word_as_float(b[i]), upper = to_tf32(x);
    upper_b[i] = float_as_word(upper), lower_b[i] = float_as_word(to_tf32(x - upper));
  }
  mma(d, lower_a, upper_b, float{});
  mma(d, upper_a, lower_b, float{});
  mma(d, upper_a, upper_b, float{});
}

}  // namespace gk::cuda
