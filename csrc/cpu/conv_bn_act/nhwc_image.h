// Images as the products read them: float32, [image][row][column][channel], with a border of zeros where one is asked
// for. A float32 channels_last tensor is read where it is; everything else comes into scratch first.
#pragma once

#include "cpu/conv_bn_act/conv_bn_act.h"
#include "cpu/core/image_io.h"

namespace gk::GK_ISA {

// An image tensor's scratch layout: `border` pixels of zeros around each image.
struct PixelLayout {
  int64_t channels, height, width;  // of the image itself
  int64_t top, bottom, left, right;
  int64_t pitch() const { return (left + width + right) * channels; }
  int64_t image_floats() const { return (top + height + bottom) * pitch(); }
  Region region() const { return {-top, height + bottom, -left, width + right}; }
};

struct Pixels {
  const float* data;  // of pixel (0, 0) of the layout, border included
  int64_t channels, stride_n, stride_h;  // in floats; a pixel is `channels` of them
};

inline Pixels pixels_in_scratch(const PixelLayout& l, const float* data) {
  return {data, l.channels, l.image_floats(), l.pitch()};
}

// Whether a tensor already is what the products read.
inline bool readable_in_place(const ImageView& v, const PixelLayout& l) {
  return v.storage == Storage::float32 && v.stride_c == 1 && v.stride_w == l.channels && l.top + l.left == 0 &&
         l.bottom + l.right == 0;
}
inline Pixels pixels_in_place(const ImageView& v, const PixelLayout& l) {
  return {static_cast<const float*>(v.data), l.channels, v.stride_n, v.stride_h};
}

// Image `image` of a tensor, or of the gradient of the convolution's result, as pixels.
inline void load_image(const ImageView& v, const PixelLayout& l, int64_t image, float* out) {
  load_pixels({v, image, l.channels, l.height, l.width, nullptr, nullptr}, l.region(), out);
}
void load_gradient(const ConvGradient& gradient, const PixelLayout& l, int64_t image, float* out);

}  // namespace gk::GK_ISA
