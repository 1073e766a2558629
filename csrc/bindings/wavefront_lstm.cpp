// The wavefront LSTM in genkernels._C: its arguments by name, and their checks.
#include "cpu/wavefront_lstm/wavefront_lstm.h"

#include <optional>
#include <vector>

#include "bindings/bindings.h"
#include "cpu/core/isa.h"

namespace gk::bindings {

namespace {

using Image = TensorArg;
using Weight = WeightArg;

// One direction; address 0 for what is not there.
struct DirectionTensors {
  bool mirrored;
  Image gates, x;
  Weight weight, input_weight;
  Address input_bias, h0, c0;
  Image hidden;
  Address saved;
};

// The gradients of one direction; address 0 for what is not wanted.
struct GradientTensors {
  Image grad_hidden, grad_gates;
  Address grad_weight, grad_h0, grad_c0;
};

// The convolution that gives the gates.
struct WavefrontConvolution {
  int64_t channels;
  std::array<int64_t, 2> kernel;
  int64_t live_taps;
};

using Sizes = std::array<int64_t, 4>;  // N, h, H, W

// The arguments of one call. It points into itself and into `taps`: neither copied nor kept.
class WavefrontCall {
 public:
  WavefrontCall(int storage_code, const Sizes& sizes, bool diagonal, const std::vector<int32_t>& taps,
                const std::optional<WavefrontConvolution>& convolution, const std::vector<DirectionTensors>& directions)
      : storage_(checked_storage(storage_code)) {
    for (int64_t size : sizes) check(size >= 1, "sizes", "at least 1", size);
    check(!taps.empty(), "taps", "at least one", taps.size());
    for (int32_t tap : taps) check(!diagonal || tap <= 0, "taps", "at most 0 on a diagonal", tap);
    check(!directions.empty(), "directions", "at least one", directions.size());
    const WavefrontConvolution none{0, {0, 0}, 0}, &c = convolution ? *convolution : none;
    lstm_ = {sizes[0],   sizes[1],    sizes[2],    sizes[3],    diagonal, taps.data(),
             static_cast<int64_t>(taps.size()), c.channels, c.kernel[0], c.kernel[1], c.live_taps, storage_};
    for (const DirectionTensors& d : directions) {
      check(diagonal || !d.mirrored, "mirrored", "false on rows", d.mirrored);
      directions_.push_back({d.mirrored, view(d.gates), view(d.x), view(d.weight), view(d.input_weight),
                             pointer<void>(d.input_bias), pointer<void>(d.h0), pointer<void>(d.c0), view(d.hidden),
                             pointer<float>(d.saved)});
    }
  }
  WavefrontCall(const WavefrontCall&) = delete;
  WavefrontCall& operator=(const WavefrontCall&) = delete;

  bool forward(int threads) const {
    const WavefrontLSTMForward args{lstm_, directions_.data(), count(), threads};
    return GK_DISPATCH(wavefront_lstm_forward, args);
  }

  bool backward(int threads, const std::vector<GradientTensors>& gradients) const {
    check(gradients.size() == directions_.size(), "gradients", "one entry per direction", gradients.size());
    std::vector<WavefrontGradients> grads;
    for (const GradientTensors& g : gradients)
      grads.push_back({view(g.grad_hidden), view(g.grad_gates), pointer<void>(g.grad_weight), pointer<void>(g.grad_h0),
                       pointer<void>(g.grad_c0)});
    const WavefrontLSTMBackward args{lstm_, directions_.data(), grads.data(), count(), threads};
    return GK_DISPATCH(wavefront_lstm_backward, args);
  }

 private:
  int64_t count() const { return static_cast<int64_t>(directions_.size()); }
  ImageView view(const Image& image) const { return image_view(image.first, image.second, storage_); }
  WeightView view(const Weight& weight) const { return weight_view(weight, storage_); }

  Storage storage_;
  WavefrontLSTM lstm_;
  std::vector<WavefrontDirection> directions_;
};

}  // namespace

void bind_wavefront_lstm(py::module_& m) {
  py::class_<DirectionTensors>(m, "WavefrontDirection")
      .def(py::init([](bool mirrored, Image gates, Image x, Weight weight, Weight input_weight, Address input_bias,
                       Address h0, Address c0, Image hidden, Address saved) {
             return DirectionTensors{mirrored, gates, x, weight, input_weight, input_bias, h0, c0, hidden, saved};
           }),
           py::arg("mirrored"), py::arg("gates"), py::arg("x"), py::arg("weight"), py::arg("input_weight"),
           py::arg("input_bias"), py::arg("h0"), py::arg("c0"), py::arg("hidden"), py::arg("saved"));
  py::class_<GradientTensors>(m, "WavefrontGradients")
      .def(py::init([](Image grad_hidden, Image grad_gates, Address grad_weight, Address grad_h0, Address grad_c0) {
             return GradientTensors{grad_hidden, grad_gates, grad_weight, grad_h0, grad_c0};
           }),
           py::arg("grad_hidden"), py::arg("grad_gates"), py::arg("grad_weight"), py::arg("grad_h0"),
           py::arg("grad_c0"));
  py::class_<WavefrontConvolution>(m, "WavefrontConvolution")
      .def(py::init([](int64_t channels, std::array<int64_t, 2> kernel, int64_t live_taps) {
             return WavefrontConvolution{channels, kernel, live_taps};
           }),
           py::arg("channels"), py::arg("kernel"), py::arg("live_taps"));
  m.def(
      "wavefront_lstm_forward",
      [](int storage, int threads, const Sizes& sizes, bool diagonal, const std::vector<int32_t>& taps,
         const std::optional<WavefrontConvolution>& convolution, const std::vector<DirectionTensors>& directions) {
        check_threads(threads);
        return WavefrontCall(storage, sizes, diagonal, taps, convolution, directions).forward(threads);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("diagonal"), py::arg("taps"),
      py::arg("convolution"), py::arg("directions"), NoGil());
  m.def(
      "wavefront_lstm_backward",
      [](int storage, int threads, const Sizes& sizes, bool diagonal, const std::vector<int32_t>& taps,
         const std::optional<WavefrontConvolution>& convolution, const std::vector<DirectionTensors>& directions,
         const std::vector<GradientTensors>& gradients) {
        check_threads(threads);
        return WavefrontCall(storage, sizes, diagonal, taps, convolution, directions).backward(threads, gradients);
      },
      py::arg("storage"), py::arg("threads"), py::arg("sizes"), py::arg("diagonal"), py::arg("taps"),
      py::arg("convolution"), py::arg("directions"), py::arg("gradients"), NoGil());
}

}  // namespace gk::bindings
