// The Python module genkernels._C: names, checks of sizes, release of the GIL. No arithmetic.
//
// Arrays arrive as addresses (Tensor.data_ptr()) with sizes and strides, the number of threads as an argument,
// a CUDA stream as an address: nothing here knows torch, so one binary serves every version of it.
// A ValueError names the argument, what was expected and what came. Python's side of an operation has
// checked shapes and dtypes in the user's words already; the checks here guard memory.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <omp.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "build_config.h"
#include "cpu/conv_bn_act.h"
#include "cpu/isa.h"
#include "cpu/masked_conv.h"
#include "cpu/peak.h"
#include "cpu/wavefront_lstm.h"
#include "sampler_bindings.h"
#if GK_WITH_CUDA
#include "cuda/bindings.h"
#include "cuda/build_info.h"
#endif

namespace py = pybind11;
using NoGil = py::call_guard<py::gil_scoped_release>;

namespace {

// Raises ValueError "name: expected ..., got ..." unless `ok`.
template <typename T>
void check(bool ok, const char* name, const char* expected, const T& got) {
  if (!ok) throw py::value_error(std::string(name) + ": expected " + expected + ", got " + std::to_string(got));
}

// The upper end is there because the OpenMP runtime ends the process when it cannot start a thread.
void check_threads(int threads) {
  check(threads >= 1 && threads <= 1024, "threads", "an integer from 1 to 1024", threads);
}

void check_seconds(double seconds) {
  check(seconds > 0 && seconds <= 60, "seconds", "more than 0 and at most 60", seconds);
}

// ---- instruction sets and the machine's peak ----

std::vector<std::string> compiled_isas() {
#if GK_X86_64
  return {"baseline", "avx2", "avx512"};
#else
  return {"baseline"};
#endif
}

void bind_machine(py::module_& m) {
  m.def("compiled_isas", &compiled_isas);
  m.def("detected_isa", [] { return gk::isa_name(gk::detected_isa()); });
  m.def("active_isa", [] { return gk::isa_name(gk::active_isa()); });
  m.def("openmp_max_threads", &omp_get_max_threads);
  m.def(
      "openmp_team_size",
      [](int threads) {
        check_threads(threads);
        return GK_DISPATCH(openmp_team_size, threads);
      },
      py::arg("threads"), NoGil());
  m.def(
      "fma_peak_gflops",
      [](int threads, double seconds) {
        check_threads(threads);
        check_seconds(seconds);
        return GK_DISPATCH(fma_peak_gflops, threads, seconds);
      },
      py::arg("threads"), py::arg("seconds"), NoGil());
  m.def(
      "copy_bandwidth_gbs",
      [](int threads, double seconds, std::size_t bytes) {
        check_threads(threads);
        check_seconds(seconds);
        check(bytes >= 1, "bytes", "an integer of at least 1", bytes);
        const double gbs = GK_DISPATCH(copy_bandwidth_gbs, threads, seconds, bytes);
        if (gbs == 0) throw std::bad_alloc();
        return gbs;
      },
      py::arg("threads"), py::arg("seconds"), py::arg("bytes"), NoGil());
}

// ---- what was built ----

py::dict cuda_build_info() {
  py::dict info;
  info["compiled"] = GK_WITH_CUDA != 0;
  info["reason"] = GK_CUDA_REASON;
  info["architectures"] = GK_CUDA_ARCHS;
#if GK_WITH_CUDA
  info["compiler"] = gk::cuda::compiler_version();
#else
  info["compiler"] = py::none();
#endif
  return info;
}

py::dict build_info() {
  py::dict flags;
  flags["common"] = GK_CXX_FLAGS;
#if GK_X86_64
  flags["avx2"] = GK_AVX2_FLAGS;
  flags["avx512"] = GK_AVX512_FLAGS;
#endif
  py::dict info;
  info["version"] = GK_VERSION;
  info["compiler"] = GK_COMPILER;
  info["cxx_flags"] = flags;
  info["isas"] = compiled_isas();
  info["openmp"] = GK_OPENMP_VERSION;
  info["cuda"] = cuda_build_info();
  return info;
}

#if GK_WITH_CUDA
py::dict cuda_device_status() {
  gk::cuda::DeviceStatus status;
  {
    py::gil_scoped_release no_gil;  // the first call may initialise the driver, which takes a while
    status = gk::cuda::device_status();
  }
  std::vector<int> capabilities;
  for (int device = 0; device < status.device_count; ++device) {
    capabilities.push_back(gk::cuda::compute_capability(device));
  }
  py::dict result;
  result["device_count"] = status.device_count;
  result["reason"] = status.reason;
  result["driver_version"] = status.driver_version;
  result["runtime_version"] = status.runtime_version;
  result["compute_capabilities"] = capabilities;
  return result;
}

std::tuple<int, int, int> cuda_device_limits(int device) {
  const gk::cuda::DeviceLimits limits = gk::cuda::device_limits(device);
  check(limits.multiprocessors > 0, "device", "the number of a CUDA device", device);
  return {limits.multiprocessors, limits.shared_bytes, limits.cluster};
}
#endif

void bind_build(py::module_& m) {
  m.def("build_info", &build_info);
#if GK_WITH_CUDA
  m.def("cuda_device_status", &cuda_device_status);
  m.def("cuda_device_limits", &cuda_device_limits, py::arg("device"));
#endif
}

// ---- masked convolution ----

using Address = std::uintptr_t;
using Strides4 = std::array<int64_t, 4>;  // of [N, C, H, W]
using Strides3 = std::array<int64_t, 3>;  // of a weight: out, in, tap

gk::Storage checked_storage(int code) {
  check(code >= 0 && code <= 2, "storage", "0 (float32), 1 (bfloat16) or 2 (float16)", code);
  return static_cast<gk::Storage>(code);
}

gk::ImageView image_view(Address data, const Strides4& s, gk::Storage storage) {
  return {reinterpret_cast<const void*>(data), s[0], s[1], s[2], s[3], storage};
}

gk::WeightView weight_view(Address data, const Strides3& s, gk::Storage storage) {
  return {reinterpret_cast<const void*>(data), s[0], s[1], s[2], storage};
}

// The mask of one layer: built once, used by every call.
class MaskedConvPlan {
 public:
  MaskedConvPlan(std::pair<int64_t, int64_t> kernel, std::pair<int64_t, int64_t> dilation,
                 std::vector<int32_t> centre_end, std::vector<int32_t> centre_begin, std::vector<int32_t> in_order,
                 std::vector<int32_t> out_order)
      : kernel_(kernel),
        dilation_(dilation),
        centre_end_(std::move(centre_end)),
        centre_begin_(std::move(centre_begin)),
        in_order_(std::move(in_order)),
        out_order_(std::move(out_order)) {
    const auto outputs = static_cast<int64_t>(centre_end_.size()), inputs = static_cast<int64_t>(centre_begin_.size());
    check(kernel.first % 2 == 1 && kernel.second % 2 == 1, "kernel", "odd sizes", kernel.first * kernel.second);
    check(dilation.first >= 1 && dilation.second >= 1, "dilation", "at least 1", dilation.first);
    for (int32_t end : centre_end_) check(end >= 0 && end <= inputs, "centre_end", "0 to in_channels", end);
    for (int32_t begin : centre_begin_) check(begin >= 0 && begin <= outputs, "centre_begin", "0 to out_channels", begin);
    check_order("in_order", in_order_, inputs);
    check_order("out_order", out_order_, outputs);
  }

  bool forward(int storage_code, int threads, std::array<int64_t, 3> image, Address x, Strides4 x_strides,
               Address weight, Strides3 weight_strides, Address bias, bool relu, Address y, Strides4 y_strides) const {
    check_threads(threads);
    const gk::Storage storage = checked_storage(storage_code);
    const gk::MaskedConvForward args{conv(image), image_view(x, x_strides, storage), image_view(y, y_strides, storage),
                                     weight_view(weight, weight_strides, storage),
                                     reinterpret_cast<const void*>(bias), relu, threads};
    return GK_DISPATCH(masked_conv_forward, args);
  }

  bool backward(int storage_code, int threads, std::array<int64_t, 3> image, Address grad_y, Strides4 grad_y_strides,
                Address x, Strides4 x_strides, Address y, Strides4 y_strides, Address weight, Strides3 weight_strides,
                Address grad_x, Strides4 grad_x_strides, Address grad_weight, Strides3 grad_weight_strides,
                Address grad_bias) const {
    check_threads(threads);
    const gk::Storage storage = checked_storage(storage_code);
    const gk::MaskedConvBackward args{conv(image),
                                      image_view(grad_y, grad_y_strides, storage),
                                      image_view(x, x_strides, storage),
                                      image_view(y, y_strides, storage),
                                      weight_view(weight, weight_strides, storage),
                                      image_view(grad_x, grad_x_strides, storage),
                                      weight_view(grad_weight, grad_weight_strides, storage),
                                      reinterpret_cast<void*>(grad_bias),
                                      y != 0,
                                      threads};
    return GK_DISPATCH(masked_conv_backward, args);
  }

 private:
  static void check_order(const char* name, const std::vector<int32_t>& order, int64_t channels) {
    const auto size = static_cast<int64_t>(order.size());
    check(size == 0 || size == channels, name, "an empty list or one entry per channel", size);
    for (int32_t channel : order) check(channel >= 0 && channel < channels, name, "channel numbers", channel);
  }

  gk::MaskedConv conv(const std::array<int64_t, 3>& image) const {  // [N, H, W]
    for (int64_t size : image) check(size >= 1, "image", "sizes of at least 1", size);
    const auto table = [](const std::vector<int32_t>& v) { return v.empty() ? nullptr : v.data(); };
    return {image[0],          static_cast<int64_t>(centre_begin_.size()), static_cast<int64_t>(centre_end_.size()),
            image[1],          image[2],
            kernel_.first,     kernel_.second,
            dilation_.first,   dilation_.second,
            table(centre_end_), table(centre_begin_),
            table(in_order_),  table(out_order_)};
  }

  std::pair<int64_t, int64_t> kernel_, dilation_;
  std::vector<int32_t> centre_end_, centre_begin_, in_order_, out_order_;
};

void bind_masked_conv(py::module_& m) {
  py::class_<MaskedConvPlan>(m, "MaskedConvPlan")
      .def(py::init<std::pair<int64_t, int64_t>, std::pair<int64_t, int64_t>, std::vector<int32_t>,
                    std::vector<int32_t>, std::vector<int32_t>, std::vector<int32_t>>(),
           py::arg("kernel"), py::arg("dilation"), py::arg("centre_end"), py::arg("centre_begin"),
           py::arg("in_order"), py::arg("out_order"))
      .def("forward", &MaskedConvPlan::forward, py::arg("storage"), py::arg("threads"), py::arg("image"), py::arg("x"),
           py::arg("x_strides"), py::arg("weight"), py::arg("weight_strides"), py::arg("bias"), py::arg("relu"),
           py::arg("y"), py::arg("y_strides"), NoGil())
      .def("backward", &MaskedConvPlan::backward, py::arg("storage"), py::arg("threads"), py::arg("image"),
           py::arg("grad_y"), py::arg("grad_y_strides"), py::arg("x"), py::arg("x_strides"), py::arg("y"),
           py::arg("y_strides"), py::arg("weight"), py::arg("weight_strides"), py::arg("grad_x"),
           py::arg("grad_x_strides"), py::arg("grad_weight"), py::arg("grad_weight_strides"), py::arg("grad_bias"),
           NoGil());
}

// ---- wavefront LSTM ----

// mirrored, gates with strides, weight, h0, c0, hidden with strides, saved; 0 for what is not there
using WalkTensors = std::tuple<bool, Address, Strides4, Address, Address, Address, Address, Strides4, Address>;
// grad_hidden with strides, grad_gates with strides, grad_weight, grad_h0, grad_c0; 0 for what is not wanted
using WalkGradients = std::tuple<Address, Strides4, Address, Strides4, Address, Address, Address>;

// The arguments of one call. It points into itself and into `taps`: neither copied nor kept.
class WavefrontCall {
 public:
  WavefrontCall(int storage_code, const std::array<int64_t, 4>& sizes, bool diagonal, const std::vector<int32_t>& taps,
                const std::vector<WalkTensors>& walks)
      : storage_(checked_storage(storage_code)),
        lstm_{sizes[0], sizes[1], sizes[2], sizes[3], diagonal, taps.data(), static_cast<int64_t>(taps.size())} {
    for (int64_t size : sizes) check(size >= 1, "sizes", "at least 1", size);
    check(!taps.empty(), "taps", "at least one", taps.size());
    for (int32_t tap : taps) check(!diagonal || tap <= 0, "taps", "at most 0 on a diagonal", tap);
    check(!walks.empty(), "walks", "at least one", walks.size());
    for (const auto& [mirrored, gates, gates_strides, weight, h0, c0, hidden, hidden_strides, saved] : walks) {
      check(diagonal || !mirrored, "mirrored", "false on rows", mirrored);
      walks_.push_back({mirrored, view(gates, gates_strides), reinterpret_cast<const void*>(weight),
                        reinterpret_cast<const void*>(h0), reinterpret_cast<const void*>(c0),
                        view(hidden, hidden_strides), reinterpret_cast<float*>(saved)});
    }
  }
  WavefrontCall(const WavefrontCall&) = delete;
  WavefrontCall& operator=(const WavefrontCall&) = delete;

  bool forward(int threads) const {
    const gk::WavefrontLSTMForward args{lstm_, walks_.data(), count(), threads};
    return GK_DISPATCH(wavefront_lstm_forward, args);
  }

  bool backward(int threads, const std::vector<WalkGradients>& gradients) const {
    check(gradients.size() == walks_.size(), "gradients", "one entry per walk", gradients.size());
    std::vector<gk::WavefrontGradients> grads;
    for (const auto& [hidden, hidden_strides, gates, gates_strides, weight, h0, c0] : gradients) {
      grads.push_back({view(hidden, hidden_strides), view(gates, gates_strides), reinterpret_cast<void*>(weight),
                       reinterpret_cast<void*>(h0), reinterpret_cast<void*>(c0)});
    }
    const gk::WavefrontLSTMBackward args{lstm_, walks_.data(), grads.data(), count(), threads};
    return GK_DISPATCH(wavefront_lstm_backward, args);
  }

 private:
  int64_t count() const { return static_cast<int64_t>(walks_.size()); }
  gk::ImageView view(Address data, const Strides4& strides) const { return image_view(data, strides, storage_); }

  gk::Storage storage_;
  gk::WavefrontLSTM lstm_;
  std::vector<gk::WavefrontWalk> walks_;
};

void bind_wavefront_lstm(py::module_& m) {
  m.def(
      "wavefront_lstm_forward",
      [](int storage, int threads, std::array<int64_t, 4> sizes, bool diagonal, std::vector<int32_t> taps,
         std::vector<WalkTensors> walks) {
        check_threads(threads);
        return WavefrontCall(storage, sizes, diagonal, taps, walks).forward(threads);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("diagonal"), py::arg("taps"),
      py::arg("walks"), NoGil());
  m.def(
      "wavefront_lstm_backward",
      [](int storage, int threads, std::array<int64_t, 4> sizes, bool diagonal, std::vector<int32_t> taps,
         std::vector<WalkTensors> walks, std::vector<WalkGradients> gradients) {
        check_threads(threads);
        return WavefrontCall(storage, sizes, diagonal, taps, walks).backward(threads, gradients);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("diagonal"), py::arg("taps"),
      py::arg("walks"), py::arg("gradients"), NoGil());
}

// ---- convolution + batch norm + activation ----

// batch, channels, height, width of the small image; the last three of the large one; kernel, stride, padding (h, w)
using ConvSizes = std::array<int64_t, 13>;
using ConvOperand = std::pair<Address, Strides4>;  // 0 for a tensor that is not there
using ConvActivation = std::pair<int, float>;      // kind, negative slope

gk::ConvShape conv_shape(const ConvSizes& s) {
  for (int i = 0; i < 11; ++i) check(s[i] >= 1, "sizes", "at least 1", s[i]);
  check(s[11] >= 0 && s[12] >= 0, "sizes", "padding of at least 0", std::min(s[11], s[12]));
  return {s[0], s[1], s[4], s[2], s[3], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12]};
}

gk::ImageView image_view(const ConvOperand& t, gk::Storage storage) { return image_view(t.first, t.second, storage); }

gk::ConvWeight conv_weight(const ConvOperand& t, gk::Storage storage) {
  const Strides4& s = t.second;
  return {reinterpret_cast<const void*>(t.first), s[0], s[1], s[2], s[3], storage};
}

gk::ActivationSpec conv_activation(const ConvActivation& a) {
  check(a.first >= 0 && a.first <= 4, "activation", "0 to 4", a.first);
  return {static_cast<gk::Activation>(a.first), a.second};
}

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

gk::NormPass norm_pass(int storage, int threads, const std::array<int64_t, 3>& sizes, bool channels_last, Address grad,
                       Address other, Address coefficients, const ConvActivation& activation, Address y, Address sums) {
  check_threads(threads);
  for (int64_t size : sizes) check(size >= 1, "sizes", "at least 1", size);
  return {sizes[0], sizes[1], sizes[2], channels_last, checked_storage(storage), pointer<const void>(grad),
          pointer<const void>(other), {pointer<const float>(coefficients), sizes[1]}, conv_activation(activation),
          pointer<void>(y), pointer<float>(sums), threads};
}

void bind_conv_bn_act(py::module_& m) {
  m.def(
      "conv_forward",
      [](int storage_code, int threads, ConvSizes sizes, bool up, ConvOperand x, ConvOperand weight, ConvOperand y,
         Address scale, Address shift, ConvActivation activation, Address statistics) {
        check_threads(threads);
        const gk::Storage storage = checked_storage(storage_code);
        const gk::ConvForward args{conv_shape(sizes), up, image_view(x, storage), image_view(y, storage),
                                   conv_weight(weight, storage), pointer<const float>(scale),
                                   pointer<const float>(shift), conv_activation(activation),
                                   pointer<float>(statistics), threads};
        return GK_DISPATCH(conv_forward, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("up"), py::arg("x"), py::arg("weight"),
      py::arg("y"), py::arg("scale"), py::arg("shift"), py::arg("activation"), py::arg("statistics"), NoGil());
  m.def(
      "conv_backward",
      [](int storage_code, int threads, ConvSizes sizes, bool up, ConvOperand grad, Address other, Address coefficients,
         ConvActivation activation, ConvOperand x, ConvOperand weight, ConvOperand grad_x, ConvOperand grad_weight) {
        check_threads(threads);
        const gk::Storage storage = checked_storage(storage_code);
        const gk::ConvShape shape = conv_shape(sizes);
        const gk::ConvBackward args{shape, up,
                                    {image_view(grad, storage), image_view(other, grad.second, storage),
                                     {pointer<const float>(coefficients), up ? shape.large_channels : shape.small_channels},
                                     conv_activation(activation)},
                                    image_view(x, storage), conv_weight(weight, storage), image_view(grad_x, storage),
                                    conv_weight(grad_weight, storage), threads};
        return GK_DISPATCH(conv_backward, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("up"), py::arg("grad"), py::arg("other"),
      py::arg("coefficients"), py::arg("activation"), py::arg("x"), py::arg("weight"), py::arg("grad_x"),
      py::arg("grad_weight"), NoGil());
  m.def(
      "norm_forward",
      [](int storage, int threads, std::array<int64_t, 3> sizes, bool channels_last, Address z, Address coefficients,
         ConvActivation activation, Address y) {
        const gk::NormPass args = norm_pass(storage, threads, sizes, channels_last, 0, z, coefficients, activation, y, 0);
        GK_DISPATCH(norm_forward, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("channels_last"), py::arg("z"),
      py::arg("coefficients"), py::arg("activation"), py::arg("y"), NoGil());
  m.def(
      "norm_gradient_sums",
      [](int storage, int threads, std::array<int64_t, 3> sizes, bool channels_last, Address grad, Address other,
         Address coefficients, ConvActivation activation, Address sums) {
        const gk::NormPass args =
            norm_pass(storage, threads, sizes, channels_last, grad, other, coefficients, activation, 0, sums);
        return GK_DISPATCH(norm_gradient_sums, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("channels_last"), py::arg("grad"),
      py::arg("other"), py::arg("coefficients"), py::arg("activation"), py::arg("sums"), NoGil());
}

}  // namespace

// Neither sub-interpreters nor running without the GIL is claimed: nobody tests them.
PYBIND11_MODULE(_C, m, py::multiple_interpreters::not_supported()) {
  m.doc() = "genkernels' native core. Private: use genkernels.ops and genkernels.nn.";
  bind_machine(m);
  bind_build(m);
  bind_masked_conv(m);
  bind_wavefront_lstm(m);
  bind_conv_bn_act(m);
  bind_sampler(m);
#if GK_WITH_CUDA
  gk::cuda::bind_kernels(m);
#endif
}
