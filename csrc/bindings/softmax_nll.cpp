// Softmax and negative log-likelihood behind a linear layer in genkernels._C.
#include "cpu/softmax_nll/softmax_nll.h"

#include <vector>

#include "bindings/bindings.h"
#include "cpu/core/isa.h"

namespace gk::bindings {

namespace {

using SoftmaxNllSizes = std::array<int64_t, 4>;  // rows, features, colours, levels

SoftmaxNllShape softmax_nll_shape(const SoftmaxNllSizes& sizes, const std::vector<int64_t>& live) {
  for (int64_t size : sizes) check(size >= 1, "sizes", "at least 1", size);
  const auto [rows, features, colours, levels] = sizes;
  check(levels <= 65536 / 4, "levels", "at most 16384", levels);
  check(features <= 65536, "features", "at most 65536", features);
  check(static_cast<int64_t>(live.size()) == colours, "live", "one number per colour", live.size());
  for (int64_t count : live) check(count >= 0 && count <= features, "live", "from 0 to features", count);
  return {rows, features, colours, levels, live.data()};
}

}  // namespace

void bind_softmax_nll(py::module_& m) {
  m.def(
      "softmax_nll_forward",
      [](int threads, const SoftmaxNllSizes& sizes, const std::vector<int64_t>& live, Address x, Address weight,
         Address bias, Address target, Address nll, Address log_sum_exp) {
        check_threads(threads);
        const SoftmaxNllForward args{softmax_nll_shape(sizes, live), pointer<const float>(x),
                                     pointer<const float>(weight), pointer<const float>(bias),
                                     pointer<const uint16_t>(target), pointer<float>(nll),
                                     pointer<float>(log_sum_exp), threads};
        return GK_DISPATCH(softmax_nll_forward, args);
      },
      py::arg("threads"), py::arg("sizes"), py::arg("live"), py::arg("x"), py::arg("weight"), py::arg("bias"),
      py::arg("target"), py::arg("nll"), py::arg("log_sum_exp"), NoGil());
  m.def(
      "softmax_nll_backward",
      [](int threads, const SoftmaxNllSizes& sizes, const std::vector<int64_t>& live, Address x, Address weight,
         Address bias, Address target, Address log_sum_exp, Address grad, Address nll, Address grad_x,
         Address grad_weight, Address grad_bias) {
        check_threads(threads);
        check((nll == 0) == (log_sum_exp != 0), "nll", "an address where log_sum_exp is 0, and there alone", nll);
        const SoftmaxNllBackward args{softmax_nll_shape(sizes, live), pointer<const float>(x),
                                      pointer<const float>(weight), pointer<const float>(bias),
                                      pointer<const uint16_t>(target), pointer<const float>(log_sum_exp),
                                      pointer<const float>(grad), pointer<float>(nll), pointer<float>(grad_x),
                                      pointer<float>(grad_weight), pointer<float>(grad_bias), threads};
        return GK_DISPATCH(softmax_nll_backward, args);
      },
      py::arg("threads"), py::arg("sizes"), py::arg("live"), py::arg("x"), py::arg("weight"), py::arg("bias"),
      py::arg("target"), py::arg("log_sum_exp"), py::arg("grad"), py::arg("nll"), py::arg("grad_x"), py::arg("grad_weight"),
      py::arg("grad_bias"), NoGil());
}

}  // namespace gk::bindings
