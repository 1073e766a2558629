// Convolution + batch norm + activation in genkernels._C.
#include "cpu/conv_bn_act/conv_bn_act.h"

#include <algorithm>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "cpu/core/isa.h"

namespace gk::bindings {

namespace {

ConvShape checked_shape(const ConvShape& s) {
  const int64_t sizes = std::min({s.batch, s.low_channels, s.high_channels, s.low_h, s.low_w, s.high_h, s.high_w,
                                  s.kernel_h, s.kernel_w, s.stride_h, s.stride_w});
  check(sizes >= 1, "shape", "sizes and strides of at least 1", sizes);
  check(std::min(s.pad_h, s.pad_w) >= 0, "shape", "padding of at least 0", std::min(s.pad_h, s.pad_w));
  return s;
}

ConvKind kind_of(bool transposed) { return transposed ? ConvKind::transposed : ConvKind::strided; }

ConvWeight conv_weight(const TensorArg& t, Storage storage) {
  const auto [low, high, kh, kw] = t.second;
  return {reinterpret_cast<const void*>(t.first), low, high, kh, kw, storage};
}

NormPass norm_pass(int storage, int threads, const std::array<int64_t, 3>& sizes, bool channels_last, Address grad,
                   Address other, Address coefficients, const ActivationCode& activation, Address y, Address sums) {
  check_threads(threads);
  for (int64_t size : sizes) check(size >= 1, "sizes", "at least 1", size);
  return {sizes[0], sizes[1], sizes[2], channels_last, checked_storage(storage), pointer<const void>(grad),
          pointer<const void>(other), {pointer<const float>(coefficients), sizes[1]}, activation_spec(activation),
          pointer<void>(y), pointer<float>(sums), threads};
}

void bind_shape(py::module_& m) {
  py::class_<ConvShape>(m, "ConvShape")
      .def(py::init([](int64_t batch, int64_t low_channels, int64_t high_channels, std::pair<int64_t, int64_t> low,
                       std::pair<int64_t, int64_t> high, std::pair<int64_t, int64_t> kernel,
                       std::pair<int64_t, int64_t> stride, std::pair<int64_t, int64_t> padding) {
             return checked_shape({batch, low_channels, high_channels, low.first, low.second, high.first, high.second,
                                   kernel.first, kernel.second, stride.first, stride.second, padding.first,
                                   padding.second});
           }),
           py::arg("batch"), py::arg("low_channels"), py::arg("high_channels"), py::arg("low_size"),
           py::arg("high_size"), py::arg("kernel"), py::arg("stride"), py::arg("padding"));
}

}  // namespace

void bind_conv_bn_act(py::module_& m) {
  bind_shape(m);
  m.def(
      "conv_implementation",
      [](const ConvShape& shape, bool transposed) {
        return std::string(GK_DISPATCH(conv_implementation, shape, kind_of(transposed)));
      },
      py::arg("shape"), py::arg("transposed"));
  m.def(
      "conv_forward",
      [](int storage_code, int threads, const ConvShape& shape, bool transposed, TensorArg x, TensorArg weight,
         TensorArg y, Address scale, Address shift, ActivationCode activation, Address statistics) {
        check_threads(threads);
        const Storage storage = checked_storage(storage_code);
        const ConvForward args{shape, kind_of(transposed), image_view(x, storage), image_view(y, storage),
                               conv_weight(weight, storage), pointer<const float>(scale), pointer<const float>(shift),
                               activation_spec(activation), pointer<float>(statistics), threads};
        return GK_DISPATCH(conv_forward, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("shape"), py::arg("transposed"), py::arg("x"), py::arg("weight"),
      py::arg("y"), py::arg("scale"), py::arg("shift"), py::arg("activation"), py::arg("statistics"), NoGil());
  m.def(
      "conv_backward",
      [](int storage_code, int threads, const ConvShape& shape, bool transposed, TensorArg grad, Address other,
         Address coefficients, ActivationCode activation, TensorArg x, TensorArg weight, TensorArg grad_x,
         TensorArg grad_weight) {
        check_threads(threads);
        const Storage storage = checked_storage(storage_code);
        const int64_t channels = transposed ? shape.high_channels : shape.low_channels;
        const ConvGradient gradient{image_view(grad, storage), image_view(other, grad.second, storage),
                                    {pointer<const float>(coefficients), channels}, activation_spec(activation)};
        const ConvBackward args{shape, kind_of(transposed), gradient, image_view(x, storage),
                                conv_weight(weight, storage), image_view(grad_x, storage),
                                conv_weight(grad_weight, storage), threads};
        return GK_DISPATCH(conv_backward, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("shape"), py::arg("transposed"), py::arg("grad"),
      py::arg("other"), py::arg("coefficients"), py::arg("activation"), py::arg("x"), py::arg("weight"),
      py::arg("grad_x"), py::arg("grad_weight"), NoGil());
  m.def(
      "norm_forward",
      [](int storage, int threads, std::array<int64_t, 3> sizes, bool channels_last, Address z, Address coefficients,
         ActivationCode activation, Address y) {
        const NormPass args = norm_pass(storage, threads, sizes, channels_last, 0, z, coefficients, activation, y, 0);
        GK_DISPATCH(norm_forward, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("channels_last"), py::arg("z"),
      py::arg("coefficients"), py::arg("activation"), py::arg("y"), NoGil());
  m.def(
      "norm_gradient_sums",
      [](int storage, int threads, std::array<int64_t, 3> sizes, bool channels_last, Address grad, Address other,
         Address coefficients, ActivationCode activation, Address sums) {
        const NormPass args =
            norm_pass(storage, threads, sizes, channels_last, grad, other, coefficients, activation, 0, sums);
        return GK_DISPATCH(norm_gradient_sums, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("channels_last"), py::arg("grad"),
      py::arg("other"), py::arg("coefficients"), py::arg("activation"), py::arg("sums"), NoGil());
}

}  // namespace gk::bindings
