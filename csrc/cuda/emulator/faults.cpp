// Small kernels that do right, or do wrong in one way each, for the emulator's own tests.
#include <pybind11/pybind11.h>

#include <array>
#include <string>
#include <vector>

#include "cuda/core/common.h"

namespace gk::emulator {

void bind_faults(pybind11::module_& m);

namespace {

using namespace gk::cuda;

constexpr int THREADS = 64;

struct Arguments {
  float* out;
};

Shared<float> numbers() {
  SharedLayout layout;
  return Shared<float>(layout.take<float>(THREADS));
}

// Each thread's number goes to the next thread, by way of shared memory.
void rotate(Arguments a) {
  const Shared<float> memory = numbers();
  memory.put(threadIdx.x, static_cast<float>(threadIdx.x));
  __syncthreads();
  a.out[threadIdx.x] = memory.get((threadIdx.x + 1) % THREADS);
}

void race(Arguments a) {
  const Shared<float> memory = numbers();
  memory.put(threadIdx.x, 0.0f);
  __syncthreads();
  memory.put(threadIdx.x, 1.0f);
  a.out[threadIdx.x] = memory.get((threadIdx.x + 32) % THREADS);  // another warp's, and no barrier
}

void write_over_a_read(Arguments a) {
  const Shared<float> memory = numbers();
  memory.put(threadIdx.x, 1.0f);
  __syncthreads();
  a.out[threadIdx.x] = memory.get((threadIdx.x + 32) % THREADS);
  memory.put(threadIdx.x, 2.0f);
}

void out_of_bounds(Arguments a) {
  const Shared<float> memory = numbers();
  memory.put(threadIdx.x + 1, 1.0f);
  a.out[threadIdx.x] = 0;
}

void larger_than_the_launch(Arguments) {
  SharedLayout layout;
  layout.take<float>(THREADS);
  Shared<float>(layout.take<float>(1)).put(0, 1.0f);
}

void misaligned(Arguments) { numbers().put(1, Pair<float>{1.0f, 2.0f}); }

void uninitialised(Arguments a) {
  const Shared<float> memory = numbers();
  if (threadIdx.x != 5) memory.put(threadIdx.x, 1.0f);
  __syncthreads();
  a.out[threadIdx.x] = memory.get((threadIdx.x + 1) % THREADS);
}

void missed_barrier(Arguments) {
  if (threadIdx.x == 40) return;
  __syncthreads();
}

void two_barriers(Arguments) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void divergent_shuffle(Arguments a) {
  float x = static_cast<float>(threadIdx.x);
  if (threadIdx.x % 32 < 16) {
    x = __shfl_xor_sync(ALL_LANES, x, 1);
  } else {
    x = __shfl_xor_sync(ALL_LANES, x, 2);
  }
  a.out[threadIdx.x] = x;
}

void missing_lane(Arguments a) {
  if (threadIdx.x % 32 == 3) return;
  a.out[threadIdx.x] = __shfl_sync(ALL_LANES, 1.0f, 0);
}

void partial_mask(Arguments) { __syncwarp(0xffffu); }

void unsynchronised_warp(Arguments a) {
  const Shared<float> memory = numbers();
  memory.put(threadIdx.x, 0.0f);
  __syncwarp();
  memory.put(threadIdx.x, 1.0f);
  a.out[threadIdx.x] = memory.get(threadIdx.x ^ 1);
}

// The lanes' numbers added up, by shuffles, by a ballot and by an atomic; exchanged by way of shared memory as well.
void warp_operations(Arguments a) {
  const Shared<float> memory = numbers();
  memory.put(threadIdx.x, static_cast<float>(threadIdx.x));
  __syncwarp();
  float sum = memory.get(threadIdx.x ^ 1);
  for (int bits = 1; bits < WARP; bits *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, bits);
  const unsigned odd = __ballot_sync(ALL_LANES, threadIdx.x % 2);
  a.out[threadIdx.x] = sum + static_cast<float>(__popc(odd));
  atomicAdd(a.out + THREADS, 1.0f);
}

// Every block of a cluster of two writes to the other.
void exchange(Arguments a) {
  const Shared<float> memory = numbers();
  const int rank = cluster_rank();
  memory.put_to(1 - rank, threadIdx.x, static_cast<float>(100 * rank + threadIdx.x));
  cluster_sync(2);
  a.out[blockIdx.x * THREADS + threadIdx.x] = memory.get(threadIdx.x);
}

void exchange_with_the_block_s_barrier(Arguments a) {
  const Shared<float> memory = numbers();
  const int rank = cluster_rank();
  memory.put(threadIdx.x, 0.0f);
  cluster_sync(2);
  memory.put_to(1 - rank, threadIdx.x, 1.0f);
  __syncthreads();
  a.out[blockIdx.x * THREADS + threadIdx.x] = memory.get(threadIdx.x);
}

void missed_cluster_barrier(Arguments) {
  if (cluster_rank() == 1) return;
  cluster_sync(2);
}

// Name, kernel, blocks of a cluster, and how many results it writes.
struct Named {
  const char* name;
  void (*kernel)(Arguments);
  int cluster, results;
};
#define GK_NAMED(kernel, cluster, results) Named{#kernel, &kernel, cluster, results}
const Named KERNELS[] = {
    GK_NAMED(rotate, 1, 64),
    GK_NAMED(race, 1, 64),
    GK_NAMED(write_over_a_read, 1, 64),
    GK_NAMED(out_of_bounds, 1, 64),
    GK_NAMED(larger_than_the_launch, 1, 0),
    GK_NAMED(misaligned, 1, 0),
    GK_NAMED(uninitialised, 1, 64),
    GK_NAMED(missed_barrier, 1, 0),
    GK_NAMED(two_barriers, 1, 0),
    GK_NAMED(divergent_shuffle, 1, 64),
    GK_NAMED(missing_lane, 1, 64),
    GK_NAMED(partial_mask, 1, 0),
    GK_NAMED(unsynchronised_warp, 1, 64),
    GK_NAMED(warp_operations, 1, 65),
    GK_NAMED(exchange, 2, 128),
    GK_NAMED(exchange_with_the_block_s_barrier, 2, 128),
    GK_NAMED(missed_cluster_barrier, 2, 0),
};

pybind11::list run_kernel(const std::string& name) {
  for (const Named& named : KERNELS) {
    if (name != named.name) continue;
    std::vector<float> out(named.results + 1);
    const Grid grid{named.cluster, THREADS, named.cluster, THREADS * sizeof(float)};
    const char* const error = launch(named.kernel, grid, nullptr, Arguments{out.data()});
    if (error) throw std::runtime_error(error);
    pybind11::list results;
    for (int i = 0; i < named.results; ++i) results.append(out[i]);
    return results;
  }
  throw pybind11::value_error("name: no kernel " + name);
}

// d of one 16 x 8 product: a [16][K] and b [8][K] row by row, K numbers of 32 bytes, float32.
template <class Math>
struct ProductArguments {
  const float *a, *b;
  float* d;
};

template <class Math>
void product(ProductArguments<Math> p) {
  using T = typename Math::T;
  constexpr int K = STEP_BYTES / sizeof(T), STRIDE = K + 16 / sizeof(T);
  SharedLayout layout;
  const Shared<T> rows(layout.take<T>(16 * STRIDE));
  const int lane = threadIdx.x;
  for (int i = lane; i < 16 * K; i += WARP) rows.put(i / K * STRIDE + i % K, Math::operand(p.a[i]));
  __syncwarp();
  uint32_t a[4], b[2] = {};
  load_rows(a, rows, lane % 16 * STRIDE + lane / 16 * (K / 2));
  for (int word = 0; word < 2; ++word) {
    T of_word[4 / sizeof(T)];
    for (int i = 0; i < static_cast<int>(4 / sizeof(T)); ++i)
      of_word[i] = Math::operand(p.b[lane / 4 * K + (lane % 4 + 4 * word) * (4 / sizeof(T)) + i]);
    memcpy(&b[word], of_word, 4);
  }
  float d[4] = {};
  multiply<Math>(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

template <class Math>
pybind11::list product_of(const std::vector<float>& a, const std::vector<float>& b) {
  constexpr size_t K = STEP_BYTES / sizeof(typename Math::T);
  if (a.size() != 16 * K || b.size() != 8 * K) throw pybind11::value_error("a, b: another size");
  std::vector<float> d(128);
  const char* const error = launch(product<Math>, {1, WARP, 1, 16 * 48}, nullptr,
                                   ProductArguments<Math>{a.data(), b.data(), d.data()});
  if (error) throw std::runtime_error(error);
  pybind11::list results;
  for (float x : d) results.append(x);
  return results;
}

std::vector<float> numbers_of(const pybind11::list& values) {
  std::vector<float> result;
  for (const auto& value : values) result.push_back(value.cast<float>());
  return result;
}

pybind11::list run_product(const std::string& math, const pybind11::list& left, const pybind11::list& right) {
  const std::vector<float> a = numbers_of(left), b = numbers_of(right);
  if (math == "bfloat16") return product_of<MathBFloat16>(a, b);
  if (math == "float16") return product_of<MathFloat16>(a, b);
  if (math == "tf32") return product_of<MathTF32>(a, b);
  if (math == "float32") return product_of<MathFloat32>(a, b);
  throw pybind11::value_error("math: no " + math);
}

}  // namespace

void bind_faults(pybind11::module_& m) {
  m.def("run_kernel", &run_kernel);
  m.def("run_product", &run_product);
  m.def("round_trip", [](const std::string& type, float x) {
    return type == "bfloat16" ? to_float(to_bfloat16(x)) : type == "float16" ? to_float(to_float16(x)) : to_tf32(x);
  });
}

}  // namespace gk::emulator
