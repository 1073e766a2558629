// The points of Winograd's F(T, 2) for tiles of T = 2 or 4 outputs, and the three matrices of
//   y[i] = sum over t < 2 of g[t] d[i + t] = sum over p of A[p][i] (G g)[p] (B d)[p],  i < T,
// in one dimension and for squares. F(2, 2) has the points 0, 1 and infinity and no factor but 1; F(4, 2) has 0, 1/2,
// -1, 2 and infinity, and factors that are no powers of two in G alone, the matrix of the weights.
#pragma once

#include "cpu/core/image_io.h"

namespace gk::GK_ISA::conv_bn_act {

template <int TILE>
struct Points;

template <>
struct Points<2> {
  template <class V>
  static GK_INLINE void inputs_to(const V (&d)[3], V (&out)[3]) {  // B d
    out[0] = d[0] - d[1];
    out[1] = d[1];
    out[2] = d[2] - d[1];
  }
  template <class V>
  static GK_INLINE void outputs_from(const V (&m)[3], V (&out)[2]) {  // A' m
    out[0] = m[0] + m[1];
    out[1] = m[1] + m[2];
  }
  template <class V>
  static GK_INLINE void taps_to(const V (&g)[2], V (&out)[3]) {  // G g
    out[0] = g[0];
    out[1] = g[0] + g[1];
    out[2] = g[1];
  }
};

template <>
struct Points<4> {
  template <class V>
  static GK_INLINE void inputs_to(const V (&d)[5], V (&out)[5]) {  // B d
    out[0] = (d[0] + d[3]) - 1.5f * (d[1] + d[2]);
    out[1] = 2.0f * d[1] + (d[2] - d[3]);
    out[2] = 2.5f * d[2] - (d[1] + d[3]);
    out[3] = 2.0f * d[3] + (d[2] - d[1]);
    out[4] = (d[1] + d[4]) - 1.5f * (d[2] + d[3]);
  }
  template <class V>
  static GK_INLINE void outputs_to(const V (&s)[4], V (&out)[5]) {  // A s
    out[0] = s[0];
    out[1] = 2.0f * (2.0f * (2.0f * s[0] + s[1]) + s[2]) + s[3];
    out[2] = (s[0] - s[1]) + (s[2] - s[3]);
    out[3] = 2.0f * (2.0f * (2.0f * s[3] + s[2]) + s[1]) + s[0];
    out[4] = s[3];
  }
  template <class V>
  static GK_INLINE void outputs_from(const V (&m)[5], V (&out)[4]) {  // A' m
    out[0] = (m[0] + m[2]) + (8.0f * m[1] + m[3]);
    out[1] = (4.0f * m[1] - m[2]) + 2.0f * m[3];
    out[2] = (2.0f * m[1] + m[2]) + 4.0f * m[3];
    out[3] = (m[4] - m[2]) + (8.0f * m[3] + m[1]);
  }
  template <class V>
  static GK_INLINE void taps_to(const V (&g)[2], V (&out)[5]) {  // G g
    out[0] = g[0];
    out[1] = (2.0f * g[0] + g[1]) * (1.0f / 18);
    out[2] = (g[0] - g[1]) * (2.0f / 9);
    out[3] = (2.0f * g[1] + g[0]) * (1.0f / 18);
    out[4] = g[1];
  }
  template <class V>
  static GK_INLINE void taps_from(const V (&m)[5], V (&out)[2]) {  // G' m
    out[0] = m[0] + (2.0f * m[1] + m[3]) * (1.0f / 18) + m[2] * (2.0f / 9);
    out[1] = m[4] + (2.0f * m[3] + m[1]) * (1.0f / 18) - m[2] * (2.0f / 9);
  }
};

// `transform` along both dimensions of a square of N x N blocks, `down` and `right` apart, to P x P components.
template <int N, int P, class Transform>
GK_INLINE void transform_square(const float* from, int64_t down, int64_t right, float* to, int64_t component,
                                const Transform& transform) {
  Block half[P][N];
  GK_UNROLL for (int x = 0; x < N; ++x) {
    Block column[N], at[P];
    GK_UNROLL for (int y = 0; y < N; ++y) column[y] = load_block(from + y * down + x * right);
    transform(column, at);
    GK_UNROLL for (int p = 0; p < P; ++p) half[p][x] = at[p];
  }
  GK_UNROLL for (int p = 0; p < P; ++p) {
    Block at[P];
    transform(half[p], at);
    GK_UNROLL for (int q = 0; q < P; ++q) store_block(to + (p * P + q) * component, at[q]);
  }
}

// Weights of one phase, `length` floats each at tap[2 * ty + tx], to components `step` apart.
template <int TILE>
GK_INLINE void transform_weights(const float* const (&tap)[4], int64_t length, float* to, int64_t step) {
  constexpr int P = TILE + 1;
  for (int64_t i = 0; i < length; i += VL) {
    Vec half[P][2];
    GK_UNROLL for (int x = 0; x < 2; ++x) {
      const Vec column[2] = {load(tap[x] + i), load(tap[2 + x] + i)};
      Vec at[P];
      Points<TILE>::taps_to(column, at);
      GK_UNROLL for (int p = 0; p < P; ++p) half[p][x] = at[p];
    }
    GK_UNROLL for (int p = 0; p < P; ++p) {
      Vec at[P];
      Points<TILE>::taps_to(half[p], at);
      GK_UNROLL for (int q = 0; q < P; ++q) store(to + (p * P + q) * step + i, at[q]);
    }
  }
}

// `width` floats of each of P x P components, `step` apart, back along both dimensions to N x N values: out[y * N + x],
// where that is not nullptr.
template <int P, int N, class Transform>
GK_INLINE void transform_back(const float* components, int64_t step, int64_t width, float* const* out,
                              const Transform& transform) {
  for (int64_t i = 0; i < width; i += VL) {
    Vec half[N][P];
    GK_UNROLL for (int q = 0; q < P; ++q) {
      Vec column[P], at[N];
      GK_UNROLL for (int p = 0; p < P; ++p) column[p] = load(components + (p * P + q) * step + i);
      transform(column, at);
      GK_UNROLL for (int y = 0; y < N; ++y) half[y][q] = at[y];
    }
    GK_UNROLL for (int y = 0; y < N; ++y) {
      Vec at[N];
      transform(half[y], at);
      GK_UNROLL for (int x = 0; x < N; ++x)
        if (out[y * N + x]) store(out[y * N + x] + i, at[x]);
    }
  }
}

}  // namespace gk::GK_ISA::conv_bn_act
