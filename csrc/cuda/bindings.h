// The CUDA part of the Python module: in genkernels._C where nvcc compiled it, and in the emulated module of the tests.
#pragma once

#include <pybind11/pybind11.h>

namespace gk::cuda {

void bind_kernels(pybind11::module_& m);

}  // namespace gk::cuda
