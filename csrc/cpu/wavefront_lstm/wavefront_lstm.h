// The wavefront LSTM (Row LSTM, Diagonal BiLSTM): arguments and entry points of its forward pass and all its gradients.
//
// One call takes one direction, or several over images of one shape, side by side. See wavefront_lstm/steps.h for the
// arithmetic and wavefront_lstm/forward.cpp for how it is done.
#pragma once

#include "cpu/core/isa.h"
#include "cpu/core/tensor_view.h"

namespace gk {

// Sizes and path. A step is a row of the image or, `diagonal`, an anti-diagonal from the top left corner on. A cell
// reads h of the step before its own, at its own place moved by each tap; the place on a row is the column, on a
// diagonal the row (there taps are at most 0: 0 is the cell to the left, -1 the cell above). c comes from tap 0.
struct WavefrontLSTM {
  int64_t batch, hidden, height, width;
  bool diagonal;
  const int32_t* taps;  // [tap_count]
  int64_t tap_count;
  // The input-to-state part: given as gates, or, with a kernel, a convolution of x whose first taps in raster order are
  // the live ones, centred, zero outside the image.
  int64_t channels, kernel_h, kernel_w, live_taps;
  Storage storage;  // of all tensors but `saved`

  bool convolves() const { return kernel_h > 0; }
};

struct WavefrontDirection {
  bool mirrored;            // left and right exchanged, for diagonals
  ImageView gates;          // [N, 4h, H, W] before the recurrence, in the order i, f, g, o; nothing where convolved of
  ImageView x;              // [N, channels, H, W]
  WeightView weight;        // [taps, 4h, h]
  WeightView input_weight;  // [4h, channels, kernel_h, kernel_w]
  const void* input_bias;   // [4h] or nullptr
  const void *h0, *c0;      // [h], the state outside the image, or nullptr: zero
  ImageView hidden;         // [N, h, H, W], written by forward; backward does not need it
  // For each image [H * W][4h] gates after their sigmoid or tanh, then [H * W][h] cells c; or nullptr: not kept, and
  // backward computes forward once more.
  float* saved;
};

struct WavefrontGradients {
  ImageView grad_hidden;
  ImageView grad_gates;                   // data nullptr: not wanted; may be the gates themselves
  void *grad_weight, *grad_h0, *grad_c0;  // likewise
};

struct WavefrontLSTMForward {
  WavefrontLSTM lstm;
  const WavefrontDirection* directions;
  int64_t direction_count;
  int threads;
};

struct WavefrontLSTMBackward {
  WavefrontLSTM lstm;
  const WavefrontDirection* directions;
  const WavefrontGradients* gradients;  // one for each direction
  int64_t direction_count;
  int threads;
};

}  // namespace gk

// Both return false when there is no memory for their scratch.
GK_DECLARE_PER_ISA(bool, wavefront_lstm_forward, (const WavefrontLSTMForward& args))
GK_DECLARE_PER_ISA(bool, wavefront_lstm_backward, (const WavefrontLSTMBackward& args))
