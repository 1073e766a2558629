// The gradient of the product, made through batch norm and activation while it is brought into scratch.
// Bound: memory; grad_y and z (or y) are read once for both products of the backward pass.
#include "cpu/core/activation.h"
#include "cpu/conv_bn_act/nhwc_image.h"

namespace gk::GK_ISA::conv_bn_act {
namespace {

// One image of `gradient` to `out`.
template <class T, bool NORM>
void load_gradient_as(const ConvGradient& gradient, const NhwcLayout& l, int64_t image, float* out) {
  const ImageView& view = gradient.grad;
  const T* const grad = static_cast<const T*>(view.data) + image * view.stride_n;
  const T* const other = static_cast<const T*>(gradient.other.data) + image * view.stride_n;
  const NormCoefficients& norm = gradient.norm;
  const Curve curve = curve_of(gradient.activation);
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
            v[i] = through_norm<NORM>(load_block(grad + at), load_block(other + at), n[i], curve);
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
                      through_norm<NORM>(load_block(grad + at), load_block(other + at), n, curve));
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
          const Block v = through_norm<NORM>(g, o, n, curve);
          for (int64_t i = 0; i < count; ++i) first[y * l.pitch() + (x + i) * C + c] = v[i];
        }
    }
  }
}

template <class T>
void load_gradient_of(const ConvGradient& g, const NhwcLayout& l, int64_t image, float* out) {
  g.norm.mean ? load_gradient_as<T, true>(g, l, image, out) : load_gradient_as<T, false>(g, l, image, out);
}
}  // namespace

void load_gradient(const ConvGradient& g, const NhwcLayout& l, int64_t image, float* out) {
  GK_BY_STORAGE(g.grad.storage, load_gradient_of, g, l, image, out);
}

}  // namespace gk::GK_ISA::conv_bn_act
