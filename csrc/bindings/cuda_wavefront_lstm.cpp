// The CUDA kernels of the wavefront LSTM in Python: arguments by name, checks of sizes, errors. Tensors are addresses of
// device memory, a stream is an address. A launch that fails raises RuntimeError with its name.
#include "bindings/cuda.h"

#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/core/device.h"
#include "cuda/wavefront_lstm/wavefront_lstm.h"

namespace py = pybind11;
using namespace py::literals;

namespace gk::cuda {

namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;
using Address = std::uintptr_t;
using Image = std::pair<Address, std::array<int64_t, 3>>;  // strides of [N, H, W]; channels are next to each other
using Sizes = std::array<int64_t, 4>;     // N, h, H, W
using Limits = std::tuple<int, int64_t, int>;

template <typename T>
void check(bool ok, const char* name, const char* expected, const T& got) {
  if (!ok) throw py::value_error(std::string(name) + ": expected " + expected + ", got " + std::to_string(got));
}

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

Pixels pixels(const Image& image) {
  const auto& [data, s] = image;
  return {pointer(data), s[0], s[1], s[2]};
}

WavefrontShape shape_of(int storage, bool exact, const Sizes& sizes, size_t directions, bool diagonal,
                        const std::vector<int>& taps) {
  check(storage >= 0 && storage <= 2, "storage", "0 (float32), 1 (bfloat16) or 2 (float16)", storage);
  for (int64_t size : sizes) check(size >= 1 && size <= (1 << 24), "sizes", "1 to 2^24", size);
  check(directions >= 1 && directions <= MAX_DIRECTIONS, "directions", "one or two", directions);
  check(!taps.empty() && taps.size() <= MAX_TAPS, "taps", "1 to 32", taps.size());
  WavefrontShape shape = {static_cast<Storage>(storage), exact,
                          static_cast<int>(sizes[0]),    static_cast<int>(sizes[1]),
                          static_cast<int>(sizes[2]),    static_cast<int>(sizes[3]),
                          static_cast<int>(directions),  diagonal,
                          static_cast<int>(taps.size()), {}};
  for (size_t i = 0; i < taps.size(); ++i) {
    check(!diagonal || taps[i] <= 0, "taps", "at most 0 on a diagonal", taps[i]);
    shape.taps[i] = taps[i];
  }
  return shape;
}

py::dict describe(const WavefrontPlan& plan) {
  return py::dict("cluster"_a = plan.cluster, "images"_a = plan.images, "slices"_a = plan.slices,
                  "steps"_a = plan.steps, "resident"_a = plan.resident, "shared_bytes"_a = plan.shared_bytes,
                  "packed_bytes"_a = plan.packed_bytes);
}

// How directions over images of one shape are divided on one kind of device: made once, used by every call.
class CudaWavefrontPlan {
 public:
  CudaWavefrontPlan(int storage, bool exact, const Sizes& sizes, size_t directions, bool diagonal,
                    const std::vector<int>& taps, const Limits& limits)
      : shape_(shape_of(storage, exact, sizes, directions, diagonal, taps)),
        plans_(plan_wavefront(shape_, {std::get<0>(limits), std::get<1>(limits), std::get<2>(limits)})) {}

  bool fits() const { return plans_.fits; }
  int64_t needed_bytes() const { return plans_.needed_bytes; }
  py::dict forward_division() const { return describe(plans_.forward); }
  py::dict backward_division() const { return describe(plans_.backward); }

  void forward(int device, Address stream, const std::vector<WavefrontForward>& directions, Address saved) const {
    check_directions(directions);
    check_launch("cudaSetDevice", select_device(device));
    check_launch("wavefront_lstm_forward", wavefront_lstm_forward(shape_, plans_.forward, directions.data(),
                                                                  static_cast<float*>(pointer(saved)), pointer(stream)));
  }

  void backward(int device, Address stream, const std::vector<WavefrontBackward>& directions, Address saved) const {
    check(saved != 0, "saved", "an address", saved);
    check_directions(directions);
    check_launch("cudaSetDevice", select_device(device));
    check_launch("wavefront_lstm_backward",
                 wavefront_lstm_backward(shape_, plans_.backward, directions.data(),
                                         static_cast<const float*>(pointer(saved)), pointer(stream)));
  }

 private:
  template <class Direction>
  void check_directions(const std::vector<Direction>& directions) const {
    if (!plans_.fits) throw py::value_error("the plan does not fit this device: look at `fits` first");
    check(static_cast<int>(directions.size()) == shape_.directions, "directions", "as many as planned",
          directions.size());
    for (const Direction& one : directions)
      check(shape_.diagonal || !one.mirrored, "mirrored", "false on rows", one.mirrored);
  }

  WavefrontShape shape_;
  WavefrontPlans plans_;
};

}  // namespace

void bind_kernels(py::module_& m) {
  // Local, since the emulated build registers the same types when both are loaded.
  py::class_<WavefrontForward>(m, "CudaWavefrontForward", py::module_local())
      .def(py::init([](bool mirrored, Image gates, Image hidden, Address weight, Address h0, Address c0,
                       Address packed) {
             return WavefrontForward{mirrored,    pixels(gates), pixels(hidden), pointer(weight),
                                     pointer(h0), pointer(c0),   pointer(packed)};
           }),
           py::arg("mirrored"), py::arg("gates"), py::arg("hidden"), py::arg("weight"), py::arg("h0"), py::arg("c0"),
           py::arg("packed"));
  py::class_<WavefrontBackward>(m, "CudaWavefrontBackward", py::module_local())
      .def(py::init([](bool mirrored, Image grad_hidden, Address weight, Address h0, Address c0, Address packed,
                       Address grad_gates, Address gathered, Address grad_c0) {
             return WavefrontBackward{mirrored,        pixels(grad_hidden),  pointer(weight),
                                      pointer(h0),     pointer(c0),          pointer(packed),
                                      pointer(grad_gates), pointer(gathered), static_cast<float*>(pointer(grad_c0))};
           }),
           py::arg("mirrored"), py::arg("grad_hidden"), py::arg("weight"), py::arg("h0"), py::arg("c0"),
           py::arg("packed"), py::arg("grad_gates"), py::arg("gathered"), py::arg("grad_c0"));
  py::class_<CudaWavefrontPlan>(m, "CudaWavefrontPlan", py::module_local())
      .def(py::init<int, bool, const Sizes&, size_t, bool, const std::vector<int>&, const Limits&>(),
           py::arg("storage"), py::arg("exact"), py::arg("sizes"), py::arg("directions"), py::arg("diagonal"),
           py::arg("taps"), py::arg("limits"))
      .def("fits", &CudaWavefrontPlan::fits)
      .def("needed_bytes", &CudaWavefrontPlan::needed_bytes)
      .def("forward_division", &CudaWavefrontPlan::forward_division)
      .def("backward_division", &CudaWavefrontPlan::backward_division)
      .def("forward", &CudaWavefrontPlan::forward, py::arg("device"), py::arg("stream"), py::arg("directions"),
           py::arg("saved"), NoGil())
      .def("backward", &CudaWavefrontPlan::backward, py::arg("device"), py::arg("stream"), py::arg("directions"),
           py::arg("saved"), NoGil());
  bind_sampler_plan(m);
}

}  // namespace gk::cuda
