// Instance norm and activation in genkernels._C.
#include "cpu/instance_norm/instance_norm.h"

#include "bindings/bindings.h"
#include "cpu/core/isa.h"

namespace gk::bindings {

namespace {

using InstanceNormSizes = std::array<int64_t, 3>;        // batch, channels, pixels
using InstanceNormAddresses = std::pair<Address, Address>;  // of gamma and beta; 0 for one that is not there

InstanceNormShape instance_norm_shape(int storage, const InstanceNormSizes& sizes, bool channels_last) {
  for (int64_t size : sizes) check(size >= 1, "sizes", "at least 1", size);
  return {sizes[0], sizes[1], sizes[2], channels_last, checked_storage(storage)};
}

InstanceNormAffine instance_norm_affine(const InstanceNormAddresses& a) {
  return {pointer<const float>(a.first), pointer<const float>(a.second)};
}

}  // namespace

void bind_instance_norm(py::module_& m) {
  m.def(
      "instance_norm_forward",
      [](int storage, int threads, InstanceNormSizes sizes, bool channels_last, Address x, InstanceNormAddresses affine,
         float eps, ActivationCode activation, Address y, Address statistics) {
        check_threads(threads);
        const InstanceNormForward args{instance_norm_shape(storage, sizes, channels_last), pointer<const void>(x),
                                       instance_norm_affine(affine), eps, activation_spec(activation),
                                       pointer<void>(y), pointer<float>(statistics), threads};
        GK_DISPATCH(instance_norm_forward, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("channels_last"), py::arg("x"),
      py::arg("affine"), py::arg("eps"), py::arg("activation"), py::arg("y"), py::arg("statistics"), NoGil());
  m.def(
      "instance_norm_backward",
      [](int storage, int threads, InstanceNormSizes sizes, bool channels_last, Address grad, Address x,
         InstanceNormAddresses affine, Address statistics, ActivationCode activation, Address grad_x, Address sums) {
        check_threads(threads);
        const InstanceNormBackward args{instance_norm_shape(storage, sizes, channels_last), pointer<const void>(grad),
                                        pointer<const void>(x), instance_norm_affine(affine),
                                        pointer<const float>(statistics), activation_spec(activation),
                                        pointer<void>(grad_x), pointer<float>(sums), threads};
        GK_DISPATCH(instance_norm_backward, args);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("channels_last"), py::arg("grad"),
      py::arg("x"), py::arg("affine"), py::arg("statistics"), py::arg("activation"), py::arg("grad_x"),
      py::arg("sums"), NoGil());
}

}  // namespace gk::bindings
