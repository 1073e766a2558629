// Images as the products read them: float32, [image][row][column][channel], with a border of zeros where one is wanted.
// A float32 channels_last tensor is read where it is; everything else comes into scratch first.
#pragma once

#include "cpu/conv_bn_act/conv_bn_act.h"
#include "cpu/core/image_io.h"

namespace gk::GK_ISA::conv_bn_act {

// An image tensor's layout in scratch, with pixels of zeros around each image.
struct NhwcLayout {
  int64_t channels, height, width;  // of the image itself
  int64_t top = 0, bottom = 0, left = 0, right = 0;
  int64_t pitch() const { return (left + width + right) * channels; }
  int64_t image_floats() const { return (top + height + bottom) * pitch(); }
  Region region() const { return {-top, height + bottom, -left, width + right}; }
};

inline NhwcLayout low_layout(const ConvShape& s) { return {s.low_channels, s.low_h, s.low_w}; }
inline NhwcLayout high_layout(const ConvShape& s) { return {s.high_channels, s.high_h, s.high_w}; }

struct NhwcImage {
  const float* data;  // of pixel (0, 0) of the layout, border included
  int64_t channels, stride_n, stride_h;  // in floats; a pixel is `channels` of them
};

// A part of a batch: the lines [y0, y1) of the images [n0, n1).
struct Lines {
  int64_t n0, n1, y0, y1;
  int64_t images() const { return n1 - n0; }
  int64_t height() const { return y1 - y0; }
};

inline NhwcImage image_in_scratch(const NhwcLayout& l, const float* data) {
  return {data, l.channels, l.image_floats(), l.pitch()};
}

// Whether a tensor already is what the products read.
inline bool readable_in_place(const ImageView& v, const NhwcLayout& l) {
  return v.storage == Storage::float32 && v.stride_c == 1 && v.stride_w == l.channels && l.top + l.left == 0 &&
         l.bottom + l.right == 0;
}
inline NhwcImage image_in_place(const ImageView& v, const NhwcLayout& l) {
  return {static_cast<const float*>(v.data), l.channels, v.stride_n, v.stride_h};
}

// Image `image` of a tensor, or of the gradient of the product, to scratch.
inline void load_image(const ImageView& v, const NhwcLayout& l, int64_t image, float* out) {
  load_pixels({v, image, l.channels, l.height, l.width, nullptr, nullptr}, l.region(), out);
}
void load_gradient(const ConvGradient& gradient, const NhwcLayout& l, int64_t image, float* out);

}  // namespace gk::GK_ISA::conv_bn_act
