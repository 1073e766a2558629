// Memory that a kernel needs while it runs: laid out first, then allocated at once.
//
//     ScratchLayout shared, own;  // of all threads, and of each
//     const ScratchArray<float> for_weights = shared.take<float>(weight_count), for_x = own.take<float>(x_count);
//     const Scratch scratch(shared, own, threads);
//     if (!scratch.data()) return Outcome::no_memory;
//     float* const weights = scratch.shared(for_weights);
//     #pragma omp parallel num_threads(threads)
//     float* const x = scratch.own(for_x);
#pragma once

#include <omp.h>
#include <stdlib.h>

#include "cpu/core/huge_pages.h"

namespace gk::GK_ISA {

// Where an array stands in a layout, in floats from its beginning.
template <class T>
struct ScratchArray {
  int64_t offset;
};

// Arrays one behind the other, each from a cache line on.
class ScratchLayout {
 public:
  template <class T>
  ScratchArray<T> take(int64_t count) {
    const ScratchArray<T> array{floats_};
    floats_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), CACHE_LINE) * CACHE_LINE / sizeof(float);
    return array;
  }
  int64_t floats() const { return floats_; }

 private:
  static constexpr int64_t CACHE_LINE = 64;
  int64_t floats_ = 0;
};

// Scratch of all threads in one allocation, freed on every way out.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : data_(static_cast<float*>(aligned_alloc(64, round(floats) * sizeof(float)))) {
    want_huge_pages(data_, floats * sizeof(float));
  }
  Scratch(const ScratchLayout& shared, const ScratchLayout& own, int threads)
      : Scratch(shared.floats() + threads * own.floats()) {
    shared_floats_ = shared.floats();
    own_floats_ = own.floats();
  }
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const { return data_; }  // nullptr: no memory
  template <class T>
  T* shared(ScratchArray<T> array) const {
    return reinterpret_cast<T*>(data_ + array.offset);
  }
  // Of one thread of a team; the same array of the next one stands thread_stride() floats further.
  template <class T>
  T* own(ScratchArray<T> array, int thread = omp_get_thread_num()) const {
    return reinterpret_cast<T*>(data_ + shared_floats_ + thread * own_floats_ + array.offset);
  }
  int64_t thread_stride() const { return own_floats_; }
  static int64_t round(int64_t floats) { return ceil_div(max64(floats, 1), 16) * 16; }

 private:
  float* data_;
  int64_t shared_floats_ = 0, own_floats_ = 0;
};

}  // namespace gk::GK_ISA
