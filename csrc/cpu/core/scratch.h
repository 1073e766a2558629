// Memory that a kernel needs while it runs.
#pragma once

#include <stdlib.h>

#include "cpu/core/huge_pages.h"

namespace gk::GK_ISA {

// Scratch of all threads in one allocation, freed on every way out.
class Scratch {
 public:
  explicit Scratch(int64_t floats) : data_(static_cast<float*>(aligned_alloc(64, round(floats) * sizeof(float)))) {
    want_huge_pages(data_, floats * sizeof(float));
  }
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const { return data_; }
  static int64_t round(int64_t floats) { return ceil_div(max64(floats, 1), 16) * 16; }

 private:
  float* data_;
};

}  // namespace gk::GK_ISA
