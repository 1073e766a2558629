// Images as the products read them: float32, [image][row][column][channel], with a border of zeros where one is asked
// for. A float32 channels_last tensor is read where it is; everything else comes into scratch first.
#pragma once

#include "cpu/activation.h"
#include "cpu/image_io.h"

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

// --- the gradient of the convolution's result, through batch norm and activation, as pixels ---

template <class T>
struct GradientLoad {
  // One image of `gradient` to `out`.
  template <Curve CURVE, bool NORM>
  static void image(const ConvGradient& gradient, const PixelLayout& l, int64_t image, float* out) {
    const ImageView& view = gradient.grad;
    const T* const grad = static_cast<const T*>(view.data) + image * view.stride_n;
    const T* const other = static_cast<const T*>(gradient.other.data) + image * view.stride_n;
    const NormCoefficients& norm = gradient.norm;
    const float below = slope_below(gradient.activation);
    const int64_t C = l.channels;
    zero_border(l.region(), {0, l.height, 0, l.width}, C, out);
    float* const first = out + l.top * l.pitch() + l.left * C;
    // Without a border the lines of an image are one long line.
    const bool joined = l.left + l.right == 0;
    const int64_t lines = joined ? 1 : l.height, width = joined ? l.height * l.width : l.width;
    const bool planar = view.stride_w == 1 && view.stride_c != 1;
    if (planar && C >= IO && width >= IO) {
      for_blocks(C, [&](int64_t c) {
        NormBlock n[IO];
        if (NORM)
          for (int i = 0; i < IO; ++i) n[i] = norm_of_channel(norm, c + i);
        for (int64_t y = 0; y < lines; ++y)
          for_blocks(width, [&](int64_t x) {
            Block v[IO];
            GK_UNROLL for (int i = 0; i < IO; ++i) {
              const int64_t at = (c + i) * view.stride_c + y * view.stride_h + x;
              v[i] = through_norm<CURVE, NORM>(load_block(grad + at), load_block(other + at), n[i], below);
            }
            transpose(v);
            GK_UNROLL for (int i = 0; i < IO; ++i) store_block(first + y * l.pitch() + (x + i) * C + c, v[i]);
          });
      });
    } else if (!planar && C >= IO) {
      for (int64_t y = 0; y < lines; ++y)
        for_blocks(C, [&](int64_t c) {
          NormBlock n{};
          if (NORM) n = norm_of_channels(norm, c);
          for (int64_t x = 0; x < width; ++x) {
            const int64_t at = y * view.stride_h + x * view.stride_w + c;
            store_block(first + y * l.pitch() + x * C + c,
                        through_norm<CURVE, NORM>(load_block(grad + at), load_block(other + at), n, below));
          }
        });
    } else {
      for (int64_t c = 0; c < C; ++c) {
        NormBlock n{};
        if (NORM) n = norm_of_channel(norm, c);
        for (int64_t y = 0; y < lines; ++y)
          for (int64_t x = 0; x < width; x += IO) {
            const int64_t count = min64(IO, width - x);
            Block g{}, o{};
            for (int64_t i = 0; i < count; ++i) {
              const int64_t at = c * view.stride_c + y * view.stride_h + (x + i) * view.stride_w;
              g[i] = load_one(grad + at);
              o[i] = load_one(other + at);
            }
            const Block v = through_norm<CURVE, NORM>(g, o, n, below);
            for (int64_t i = 0; i < count; ++i) first[y * l.pitch() + (x + i) * C + c] = v[i];
          }
      }
    }
  }
};

template <class T>
void load_gradient_of(const ConvGradient& g, const PixelLayout& l, int64_t image, float* out) {
  GK_BY_CURVE_AND_NORM(g.activation, g.norm.mean != nullptr, GradientLoad<T>::template image, g, l, image, out);
}
inline void load_gradient(const ConvGradient& g, const PixelLayout& l, int64_t image, float* out) {
  GK_BY_STORAGE(g.grad.storage, load_gradient_of, g, l, image, out);
}

inline void load_image(const ImageView& v, const PixelLayout& l, int64_t image, float* out) {
  load_pixels({v, image, l.channels, l.height, l.width, nullptr, nullptr}, l.region(), out);
}

}  // namespace gk::GK_ISA
