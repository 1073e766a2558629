// The CUDA part of the Python module: in genkernels._C where nvcc compiled it, and in the emulated module of the tests.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

namespace gk::cuda {

void bind_kernels(pybind11::module_& m);
void bind_sampler_plan(pybind11::module_& m);  // called by bind_kernels

inline void check_launch(const char* kernel, const char* error) {
  if (error) throw std::runtime_error(std::string(kernel) + " failed: " + error);
}

}  // namespace gk::cuda
