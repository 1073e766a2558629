// Convolution + batch norm + activation in genkernels._C.
#include "cpu/conv_bn_act/conv_bn_act.h"

#include <algorithm>
#include <utility>

#include "bindings/bindings.h"
#include "cpu/core/isa.h"

namespace gk::bindings {

namespace {

// batch, channels, height, width of the small image; the last three of the large one; kernel, stride, padding (h, w)
using ConvSizes = std::array<int64_t, 13>;

ConvShape conv_shape(const ConvSizes& s) {
  for (int i = 0; i < 11; ++i) check(s[i] >= 1, "sizes", "at least 1", s[i]);
  check(s[11] >= 0 && s[12] >= 0, "sizes", "padding of at least 0", std::min(s[11], s[12]));
  return {s[0], s[1], s[4], s[2], s[3], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12]};
}

ConvWeight conv_weight(const TensorArg& t, Storage storage) {
  const auto [small, large, h, w] = t.second;
  return {reinterpret_cast<const void*>(t.first), small, large, h, w, storage};
}

NormPass norm_pass(int storage, int threads, const std::array<int64_t, 3>& sizes, bool channels_last, Address grad,
                       Address other, Address coefficients, const ActivationCode& activation, Address y, Address sums) {
  check_threads(threads);
  for (int64_t size : sizes) check(size >= 1, "sizes", "at least 1", size);
  return {sizes[0], sizes[1], sizes[2], channels_last, checked_storage(storage), pointer<const void>(grad),
          pointer<const void>(other), {pointer<const float>(coefficients), sizes[1]}, activation_spec(activation),
          pointer<void>(y), pointer<float>(sums), threads};
}

}  // namespace

void bind_conv_bn_act(py::module_& m) {
  m.def(
      "conv_forward",
      [](int storage_code, int threads, ConvSizes sizes, bool up, TensorArg x, TensorArg weight, TensorArg y,
         Address scale, Address shift, ActivationCode activation, Address statistics) {
        check_threads(threads);
        const Storage storage = checked_storage(storage_code);
        const ConvForward args{conv_shape(sizes), up, image_view(x, storage), image_view(y, storage),
                                   conv_weight(weight, storage), pointer<const float>(scale),
                                   pointer<const float>(shift), activation_spec(activation),
                                   pointer<float>(statistics), threads};
        return GK_DISPATCH(conv_forward, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("up"), py::arg("x"), py::arg("weight"),
      py::arg("y"), py::arg("scale"), py::arg("shift"), py::arg("activation"), py::arg("statistics"), NoGil());
  m.def(
      "conv_backward",
      [](int storage_code, int threads, ConvSizes sizes, bool up, TensorArg grad, Address other, Address coefficients,
         ActivationCode activation, TensorArg x, TensorArg weight, TensorArg grad_x, TensorArg grad_weight) {
        check_threads(threads);
        const Storage storage = checked_storage(storage_code);
        const ConvShape shape = conv_shape(sizes);
        const ConvBackward args{shape, up,
                                    {image_view(grad, storage), image_view(other, grad.second, storage),
                                     {pointer<const float>(coefficients), up ? shape.large_channels : shape.small_channels},
                                     activation_spec(activation)},
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
