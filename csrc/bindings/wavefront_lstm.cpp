// The wavefront LSTM in genkernels._C.
#include "cpu/wavefront_lstm.h"

#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "cpu/isa.h"

namespace gk::bindings {

namespace {

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
    const WavefrontLSTMForward args{lstm_, walks_.data(), count(), threads};
    return GK_DISPATCH(wavefront_lstm_forward, args);
  }

  bool backward(int threads, const std::vector<WalkGradients>& gradients) const {
    check(gradients.size() == walks_.size(), "gradients", "one entry per walk", gradients.size());
    std::vector<WavefrontGradients> grads;
    for (const auto& [hidden, hidden_strides, gates, gates_strides, weight, h0, c0] : gradients) {
      grads.push_back({view(hidden, hidden_strides), view(gates, gates_strides), reinterpret_cast<void*>(weight),
                       reinterpret_cast<void*>(h0), reinterpret_cast<void*>(c0)});
    }
    const WavefrontLSTMBackward args{lstm_, walks_.data(), grads.data(), count(), threads};
    return GK_DISPATCH(wavefront_lstm_backward, args);
  }

 private:
  int64_t count() const { return static_cast<int64_t>(walks_.size()); }
  ImageView view(Address data, const Strides4& strides) const { return image_view(data, strides, storage_); }

  Storage storage_;
  WavefrontLSTM lstm_;
  std::vector<WavefrontWalk> walks_;
};

}  // namespace

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

}  // namespace gk::bindings
