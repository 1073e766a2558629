// The surface of core/common.h on a GPU.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/core/memory.h"

// A function of its own, for what is seldom called.
#define GK_NOINLINE __noinline__

namespace gk::cuda {

// --- numbers ---

inline __device__ uint32_t float_as_word(float x) { return __float_as_uint(x); }
inline __device__ float word_as_float(uint32_t x) { return __uint_as_float(x); }

inline __device__ BFloat16 to_bfloat16(float x) {
  BFloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
inline __device__ Float16 to_float16(float x) {
  Float16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
inline __device__ float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
inline __device__ float to_float(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
inline __device__ float to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
}

inline __device__ float tanh_approximate(float x) {  // relative error 2^-11
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
inline __device__ float exp_fast(float x) { return __expf(x); }
inline __device__ float divide_fast(float x, float y) { return __fdividef(x, y); }

// 16 bytes of global memory that no thread writes during the launch, read past L1: it stays for what is used again.
template <class T>
__device__ __forceinline__ T load_streamed(const float* p) {
  float4 x;
  asm("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
      : "l"(__cvta_generic_to_global(p)));
  return {{x.x, x.y, x.z, x.w}};
}

// --- shared memory and clusters ---

extern __shared__ uint4 dynamic_shared[];

template <class T>
class Shared {
 public:
  __device__ explicit Shared(Region region) : offset_(region.offset) {}

  // A V at element i of T.
  template <class V = T>
  __device__ __forceinline__ V get(int i) const { return *reinterpret_cast<const V*>(address(i)); }
  template <class V>
  __device__ __forceinline__ void put(int i, V value) const { *reinterpret_cast<V*>(address(i)) = value; }

  // The same in the shared memory of the cluster's block `rank`.
  template <class V>
  __device__ __forceinline__ void put_to(int rank, int i, V value) const {
#if __CUDA_ARCH__ >= 900
    *cooperative_groups::this_cluster().map_shared_rank(reinterpret_cast<V*>(address(i)), rank) = value;
#else
    (void)rank;
    put(i, value);
#endif
  }

  __device__ __forceinline__ uint32_t word_address(int i) const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(address(i)));
  }

 private:
  __device__ __forceinline__ char* address(int i) const {
    return reinterpret_cast<char*>(dynamic_shared) + offset_ + i * static_cast<int>(sizeof(T));
  }
  int offset_;
};

inline __device__ int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return static_cast<int>(cooperative_groups::this_cluster().block_rank());
#else
  return 0;
#endif
}

// A barrier for the `blocks` blocks of the cluster, and what they wrote to each other's shared memory.
inline __device__ void cluster_sync(int blocks) {
#if __CUDA_ARCH__ >= 900
  if (blocks > 1) {
    cooperative_groups::this_cluster().sync();
    return;
  }
#else
  (void)blocks;
#endif
  __syncthreads();
}

// --- products ---

// a = the 16 x 32-byte block whose half row (row = lane % 16, half = lane / 16) lies at element i of memory.
template <class T>
__device__ __forceinline__ void load_rows(uint32_t (&a)[4], const Shared<T>& memory, int i) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(memory.word_address(i)));
}

__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BFloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Float16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// --- launches ---

struct Grid { int blocks, threads, cluster; int64_t shared_bytes; };

// nullptr, or what the runtime says is wrong; no error is left behind.
inline const char* error_text(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

inline const char* use_device(int device) { return error_text(cudaSetDevice(device)); }

template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), const Grid& grid, void* stream, Parameters... arguments) {
  const cudaError_t sized = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(grid.shared_bytes));
  if (sized != cudaSuccess) return error_text(sized);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.blocks);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  return error_text(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace gk::cuda
