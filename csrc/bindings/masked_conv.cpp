// The masked convolution in genkernels._C.
#include "cpu/masked_conv/masked_conv.h"

#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "cpu/core/isa.h"

namespace gk::bindings {

namespace {

using ImageSizes = std::tuple<int64_t, int64_t, int64_t>;  // batch, height, width

// Storage type, mask and activation of one layer: built once, used by every call.
class MaskedConvPlan {
 public:
  MaskedConvPlan(int storage, std::pair<int64_t, int64_t> kernel, std::pair<int64_t, int64_t> dilation,
                 std::vector<int32_t> centre_end, std::vector<int32_t> centre_begin, std::vector<int32_t> in_order,
                 std::vector<int32_t> out_order, bool relu)
      : storage_(checked_storage(storage)),
        relu_(relu),
        kernel_(kernel),
        dilation_(dilation),
        centre_end_(std::move(centre_end)),
        centre_begin_(std::move(centre_begin)),
        in_order_(std::move(in_order)),
        out_order_(std::move(out_order)) {
    const auto outputs = static_cast<int64_t>(centre_end_.size()), inputs = static_cast<int64_t>(centre_begin_.size());
    check(kernel.first % 2 == 1 && kernel.second % 2 == 1, "kernel", "odd sizes", kernel.first * kernel.second);
    check(dilation.first >= 1 && dilation.second >= 1, "dilation", "at least 1", dilation.first);
    for (int32_t end : centre_end_) check(end >= 0 && end <= inputs, "centre_end", "0 to in_channels", end);
    for (int32_t begin : centre_begin_)
      check(begin >= 0 && begin <= outputs, "centre_begin", "0 to out_channels", begin);
    check_order("in_order", in_order_, inputs);
    check_order("out_order", out_order_, outputs);
  }

  bool forward(int threads, const ImageSizes& image, const TensorArg& x, const WeightArg& weight, Address bias,
               const TensorArg& y) const {
    check_threads(threads);
    const MaskedConvForward args{conv(image), image_view(x, storage_), image_view(y, storage_),
                                 weight_view(weight, storage_), pointer<const void>(bias), relu_, threads};
    return GK_DISPATCH(masked_conv_forward, args);
  }

  // `y` is read where there is a ReLU.
  bool backward(int threads, const ImageSizes& image, const TensorArg& grad_y, const TensorArg& x, const TensorArg& y,
                const WeightArg& weight, const TensorArg& grad_x, const WeightArg& grad_weight,
                Address grad_bias) const {
    check_threads(threads);
    check(!relu_ || y.first != 0, "y", "an address", y.first);
    const MaskedConvBackward args{conv(image),
                                  image_view(grad_y, storage_),
                                  image_view(x, storage_),
                                  image_view(y, storage_),
                                  weight_view(weight, storage_),
                                  image_view(grad_x, storage_),
                                  weight_view(grad_weight, storage_),
                                  pointer<void>(grad_bias),
                                  relu_,
                                  threads};
    return GK_DISPATCH(masked_conv_backward, args);
  }

 private:
  static void check_order(const char* name, const std::vector<int32_t>& order, int64_t channels) {
    const auto size = static_cast<int64_t>(order.size());
    check(size == 0 || size == channels, name, "an empty list or one entry per channel", size);
    for (int32_t channel : order) check(channel >= 0 && channel < channels, name, "channel numbers", channel);
  }

  MaskedConv conv(const ImageSizes& image) const {
    const auto [batch, height, width] = image;
    for (int64_t size : {batch, height, width}) check(size >= 1, "image", "sizes of at least 1", size);
    const auto table = [](const std::vector<int32_t>& v) { return v.empty() ? nullptr : v.data(); };
    MaskedConv c;
    c.batch = batch;
    c.in_channels = static_cast<int64_t>(centre_begin_.size());
    c.out_channels = static_cast<int64_t>(centre_end_.size());
    c.height = height;
    c.width = width;
    std::tie(c.kernel_h, c.kernel_w) = kernel_;
    std::tie(c.dilation_h, c.dilation_w) = dilation_;
    c.centre_end = table(centre_end_);
    c.centre_begin = table(centre_begin_);
    c.in_order = table(in_order_);
    c.out_order = table(out_order_);
    return c;
  }

  Storage storage_;
  bool relu_;
  std::pair<int64_t, int64_t> kernel_, dilation_;
  std::vector<int32_t> centre_end_, centre_begin_, in_order_, out_order_;
};

}  // namespace

void bind_masked_conv(py::module_& m) {
  py::class_<MaskedConvPlan>(m, "MaskedConvPlan")
      .def(py::init<int, std::pair<int64_t, int64_t>, std::pair<int64_t, int64_t>, std::vector<int32_t>,
                    std::vector<int32_t>, std::vector<int32_t>, std::vector<int32_t>, bool>(),
           py::arg("storage"), py::arg("kernel"), py::arg("dilation"), py::arg("centre_end"), py::arg("centre_begin"),
           py::arg("in_order"), py::arg("out_order"), py::arg("relu"))
      .def("forward", &MaskedConvPlan::forward, py::arg("threads"), py::arg("image"), py::arg("x"), py::arg("weight"),
           py::arg("bias"), py::arg("y"), NoGil())
      .def("backward", &MaskedConvPlan::backward, py::arg("threads"), py::arg("image"), py::arg("grad_y"), py::arg("x"),
           py::arg("y"), py::arg("weight"), py::arg("grad_x"), py::arg("grad_weight"), py::arg("grad_bias"), NoGil());
}

}  // namespace gk::bindings
