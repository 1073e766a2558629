// The wavefront LSTM in genkernels._C.
#include "cpu/wavefront_lstm/wavefront_lstm.h"

#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "cpu/core/isa.h"

namespace gk::bindings {

namespace {

using Image = TensorArg;
using Weight = WeightArg;
// mirrored; gates, x; weight, input_weight; input_bias, h0, c0; hidden; saved; 0 for what is not there
using WalkTensors =
    std::tuple<bool, Image, Image, Weight, Weight, std::array<Address, 3>, Image, Address>;
// channels, kernel height and width, live taps of the convolution that gives the gates; zeros where they are given
using Convolution = std::array<int64_t, 4>;
// grad_hidden with strides, grad_gates with strides, grad_weight, grad_h0, grad_c0; 0 for what is not wanted
using WalkGradients = std::tuple<Address, Strides4, Address, Strides4, Address, Address, Address>;

// The arguments of one call. It points into itself and into `taps`: neither copied nor kept.
class WavefrontCall {
 public:
  WavefrontCall(int storage_code, const std::array<int64_t, 4>& sizes, bool diagonal, const std::vector<int32_t>& taps,
                const Convolution& convolution, const std::vector<WalkTensors>& walks)
      : storage_(checked_storage(storage_code)),
        lstm_{sizes[0],      sizes[1],      sizes[2],      sizes[3],      diagonal,
              taps.data(),   static_cast<int64_t>(taps.size()),
              convolution[0], convolution[1], convolution[2], convolution[3], storage_} {
    for (int64_t size : sizes) check(size >= 1, "sizes", "at least 1", size);
    check(!taps.empty(), "taps", "at least one", taps.size());
    for (int32_t tap : taps) check(!diagonal || tap <= 0, "taps", "at most 0 on a diagonal", tap);
    check(!walks.empty(), "walks", "at least one", walks.size());
    const auto pointer = [](Address data) { return reinterpret_cast<const void*>(data); };
    for (const auto& [mirrored, gates, x, weight, input_weight, vectors, hidden, saved] : walks) {
      check(diagonal || !mirrored, "mirrored", "false on rows", mirrored);
      const auto& [input_bias, h0, c0] = vectors;
      walks_.push_back({mirrored, view(gates), view(x), weight_view(weight, storage_),
                        weight_view(input_weight, storage_),
                        pointer(input_bias), pointer(h0), pointer(c0), view(hidden), reinterpret_cast<float*>(saved)});
    }
  }
  WavefrontCall(const WavefrontCall&) = delete;
  WavefrontCall& operator=(const WavefrontCall&) = delete;

  bool forward(int threads) const {
    const WavefrontLSTMForward args{lstm_, walks_.data(), count(), threads};
    return GK_DISPATCH(wavefront_lstm_forward, args);
  }

  bool backward(int threads, const std::vector<WalkGradients>& gradients) const {
    check(gradients.size() == walks_.size(), "gradients", "one entry per walk", gradients.size());
    std::vector<WavefrontGradients> grads;
    for (const auto& [hidden, hidden_strides, gates, gates_strides, weight, h0, c0] : gradients) {
      grads.push_back({view({hidden, hidden_strides}), view({gates, gates_strides}), reinterpret_cast<void*>(weight),
                       reinterpret_cast<void*>(h0), reinterpret_cast<void*>(c0)});
    }
    const WavefrontLSTMBackward args{lstm_, walks_.data(), grads.data(), count(), threads};
    return GK_DISPATCH(wavefront_lstm_backward, args);
  }

 private:
  int64_t count() const { return static_cast<int64_t>(walks_.size()); }
  ImageView view(const Image& image) const { return image_view(image.first, image.second, storage_); }

  Storage storage_;
  WavefrontLSTM lstm_;
  std::vector<WavefrontWalk> walks_;
};

}  // namespace

void bind_wavefront_lstm(py::module_& m) {
  m.def(
      "wavefront_lstm_forward",
      [](int storage, int threads, std::array<int64_t, 4> sizes, bool diagonal, std::vector<int32_t> taps,
         Convolution convolution, std::vector<WalkTensors> walks) {
        check_threads(threads);
        return WavefrontCall(storage, sizes, diagonal, taps, convolution, walks).forward(threads);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("diagonal"), py::arg("taps"),
      py::arg("convolution"), py::arg("walks"), NoGil());
  m.def(
      "wavefront_lstm_backward",
      [](int storage, int threads, std::array<int64_t, 4> sizes, bool diagonal, std::vector<int32_t> taps,
         Convolution convolution, std::vector<WalkTensors> walks, std::vector<WalkGradients> gradients) {
        check_threads(threads);
        return WavefrontCall(storage, sizes, diagonal, taps, convolution, walks).backward(threads, gradients);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("diagonal"), py::arg("taps"),
      py::arg("convolution"), py::arg("walks"), py::arg("gradients"), NoGil());
}

}  // namespace gk::bindings
