// The masked convolution in genkernels._C.
#include "cpu/masked_conv/masked_conv.h"

#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "cpu/core/isa.h"

namespace gk::bindings {

namespace {

using Strides3 = std::array<int64_t, 3>;  // of a weight: out, in, tap

WeightView weight_view(Address data, const Strides3& s, Storage storage) {
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
    const Storage storage = checked_storage(storage_code);
    const MaskedConvForward args{conv(image), image_view(x, x_strides, storage), image_view(y, y_strides, storage),
                                     weight_view(weight, weight_strides, storage),
                                     reinterpret_cast<const void*>(bias), relu, threads};
    return GK_DISPATCH(masked_conv_forward, args);
  }

  bool backward(int storage_code, int threads, std::array<int64_t, 3> image, Address grad_y, Strides4 grad_y_strides,
                Address x, Strides4 x_strides, Address y, Strides4 y_strides, Address weight, Strides3 weight_strides,
                Address grad_x, Strides4 grad_x_strides, Address grad_weight, Strides3 grad_weight_strides,
                Address grad_bias) const {
    check_threads(threads);
    const Storage storage = checked_storage(storage_code);
    const MaskedConvBackward args{conv(image),
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

  MaskedConv conv(const std::array<int64_t, 3>& image) const {  // [N, H, W]
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

}  // namespace

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

}  // namespace gk::bindings
