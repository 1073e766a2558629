// Conventions of genkernels._C and its checks, shared by the bindings of every operation.
//
// Arrays arrive as addresses (Tensor.data_ptr()) with sizes and strides, the number of threads as an argument,
// a CUDA stream as an address: nothing here depends on torch, so one binary serves every version of it.
// A ValueError names the argument, what was expected and what came. Python's side of an operation has
// checked shapes and dtypes in the user's words already; the checks here guard memory.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>

#include "cpu/core/activation_spec.h"
#include "cpu/core/tensor_view.h"

namespace gk::bindings {

namespace py = pybind11;
using NoGil = py::call_guard<py::gil_scoped_release>;

// Raises ValueError "name: expected ..., got ..." unless `ok`.
template <typename T>
void check(bool ok, const char* name, const char* expected, const T& got) {
  if (!ok) throw py::value_error(std::string(name) + ": expected " + expected + ", got " + std::to_string(got));
}

// The upper end is there because the OpenMP runtime ends the process when it cannot start a thread.
inline void check_threads(int threads) {
  check(threads >= 1 && threads <= 1024, "threads", "an integer from 1 to 1024", threads);
}

using Address = std::uintptr_t;
// Tuples, since pybind11 allocates memory to read a std::array.
using Strides4 = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // of [N, C, H, W]
using Strides3 = std::tuple<int64_t, int64_t, int64_t>;  // of a weight whose taps stand at one distance: out, in, tap

// A tensor crosses the border as its address, 0 for one that is not there, and its strides in elements.
using TensorArg = std::pair<Address, Strides4>;
using WeightArg = std::pair<Address, Strides3>;

inline Storage checked_storage(int code) {
  check(code >= 0 && code <= 2, "storage", "0 (float32), 1 (bfloat16) or 2 (float16)", code);
  return static_cast<Storage>(code);
}

inline ImageView image_view(Address data, const Strides4& strides, Storage storage) {
  const auto [n, c, h, w] = strides;
  return {reinterpret_cast<const void*>(data), n, c, h, w, storage};
}
inline ImageView image_view(const TensorArg& t, Storage storage) { return image_view(t.first, t.second, storage); }

inline WeightView weight_view(const WeightArg& weight, Storage storage) {
  const auto [out, in, tap] = weight.second;
  return {reinterpret_cast<const void*>(weight.first), out, in, tap, storage};
}

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

using ActivationCode = std::pair<int, float>;  // kind, negative slope

inline ActivationSpec activation_spec(const ActivationCode& a) {
  check(a.first >= 0 && a.first <= 4, "activation", "0 to 4", a.first);
  return {static_cast<Activation>(a.first), a.second};
}

void bind_masked_conv(py::module_& m);
void bind_wavefront_lstm(py::module_& m);
void bind_conv_bn_act(py::module_& m);
void bind_instance_norm(py::module_& m);
void bind_softmax_nll(py::module_& m);
void bind_sampler(py::module_& m);

}  // namespace gk::bindings
