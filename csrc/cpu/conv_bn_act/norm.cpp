// Passes of batch norm over values: y = act(normalised z), and the two sums of its gradient.
//
// Planar images ([n][channel][pixel]) are taken plane by plane with the channel's coefficients spread over a block,
// channels_last ones pixel by pixel with IO channels side by side. Sums run in float32 over SUM_RUN terms a lane (and
// over so many of these, channels_last) and continue in double. A channel (planar) or a fixed stretch of pixels
// (channels_last) belongs to one thread, so the result does not depend on how many there are.
// Bound: memory; each tensor is read or written once.
#include <omp.h>

#include "cpu/conv_bn_act/conv_bn_act.h"
#include "cpu/core/activation.h"
#include "cpu/core/image_io.h"
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"

namespace gk::GK_ISA {
namespace {

constexpr int64_t SUM_RUN = 16;
constexpr int64_t STRETCH = 256;  // pixels, a multiple of SUM_RUN

int threads_of(const NormPass& args) {
  const int64_t work = args.batch * args.channels * args.pixels;
  return useful_threads(work, VALUES_PER_THREAD, args.threads);
}

GK_INLINE NormBlock norm_of_some(const NormCoefficients& n, int64_t c, int64_t count) {
  if (count >= IO) return norm_of_channels(n, c);
  return {load_some(n.mean + c, count),   load_some(n.rstd() + c, count),   load_some(n.gamma() + c, count),
          load_some(n.beta() + c, count), load_some(n.factor() + c, count), load_some(n.mean_g() + c, count),
          load_some(n.mean_g_zhat() + c, count)};
}

template <class T>
void normalise(const NormPass& args) {
  const int64_t C = args.channels, P = args.pixels;
  const Curve curve = curve_of(args.activation);
  const T* const z = static_cast<const T*>(args.other);
  T* const y = static_cast<T*>(args.y);
  const auto move = [&](int64_t at, int64_t count, const NormBlock& n) {
    const Block u = normalised(load_some(z + at, count), n) * n.gamma + n.beta;
    store_some(y + at, activate(u, curve), count);
  };
  if (!args.channels_last) {
#pragma omp parallel for num_threads(threads_of(args))
    for (int64_t plane = 0; plane < args.batch * C; ++plane) {
      const NormBlock n = norm_of_channel(args.norm, plane % C);
      for (int64_t p = 0; p < P; p += IO) move(plane * P + p, P - p, n);
    }
    return;
  }
#pragma omp parallel for num_threads(threads_of(args))
  for (int64_t first = 0; first < args.batch * P; first += STRETCH)
    for (int64_t c = 0; c < C; c += IO) {
      const NormBlock n = norm_of_some(args.norm, c, C - c);
      for (int64_t p = first; p < min64(first + STRETCH, args.batch * P); ++p) move(p * C + c, C - c, n);
    }
}

template <class T, bool NORM>
void sum_planar_as(const NormPass& args) {
  const int64_t C = args.channels, P = args.pixels;
  const Curve curve = curve_of(args.activation);
#pragma omp parallel for num_threads(threads_of(args))
  for (int64_t c = 0; c < C; ++c) {
    NormBlock n{};
    if (NORM) n = norm_of_channel(args.norm, c);
    double total_g = 0, total_g_zhat = 0;
    for (int64_t image = 0; image < args.batch; ++image) {
      const T* const grad = static_cast<const T*>(args.grad) + (image * C + c) * P;
      const T* const other = static_cast<const T*>(args.other) + (image * C + c) * P;
      for (int64_t run = 0; run < P; run += SUM_RUN * IO) {
        Block sum_g{}, sum_g_zhat{};
        for (int64_t p = run; p < min64(P, run + SUM_RUN * IO); p += IO) {
          Block zhat{};
          // Beyond the end the gradient is zero, so whatever stands in zhat adds nothing.
          const Block g = through_activation<NORM>(load_some(grad + p, P - p), load_some(other + p, P - p), n, curve,
                                                   &zhat);
          sum_g += g;
          sum_g_zhat += g * zhat;
        }
        for (int i = 0; i < IO; ++i) {
          total_g += sum_g[i];
          total_g_zhat += sum_g_zhat[i];
        }
      }
    }
    args.sums[c] = static_cast<float>(total_g);
    args.sums[C + c] = static_cast<float>(total_g_zhat);
  }
}

// partial: [stretch][2][channels]
template <class T, bool NORM>
void sum_channels_last_as(const NormPass& args, float* partial) {
  const int64_t C = args.channels, P = args.batch * args.pixels, stretches = ceil_div(P, STRETCH);
  const Curve curve = curve_of(args.activation);
  const T *const grad = static_cast<const T*>(args.grad), *const other = static_cast<const T*>(args.other);
#pragma omp parallel for num_threads(threads_of(args))
  for (int64_t s = 0; s < stretches; ++s)
    for (int64_t c = 0; c < C; c += IO) {
      NormBlock n{};
      if (NORM) n = norm_of_some(args.norm, c, C - c);
      Block total_g{}, total_g_zhat{};
      const int64_t end = min64(P, (s + 1) * STRETCH);
      for (int64_t run = s * STRETCH; run < end; run += SUM_RUN) {
        Block sum_g{}, sum_g_zhat{};
        for (int64_t p = run; p < min64(end, run + SUM_RUN); ++p) {
          Block zhat{};
          const Block g = through_activation<NORM>(load_some(grad + p * C + c, C - c),
                                                   load_some(other + p * C + c, C - c), n, curve, &zhat);
          sum_g += g;
          sum_g_zhat += g * zhat;
        }
        total_g += sum_g;
        total_g_zhat += sum_g_zhat;
      }
      store_some(partial + s * 2 * C + c, total_g, C - c);
      store_some(partial + (s * 2 + 1) * C + c, total_g_zhat, C - c);
    }
  for (int64_t c = 0; c < 2 * C; ++c) {
    double total = 0;
    for (int64_t s = 0; s < stretches; ++s) total += partial[s * 2 * C + c];
    args.sums[c] = static_cast<float>(total);
  }
}

template <class T>
void sum_planar(const NormPass& args) {
  args.norm.mean ? sum_planar_as<T, true>(args) : sum_planar_as<T, false>(args);
}
template <class T>
void sum_channels_last(const NormPass& args, float* partial) {
  args.norm.mean ? sum_channels_last_as<T, true>(args, partial) : sum_channels_last_as<T, false>(args, partial);
}

}  // namespace

void norm_forward(const NormPass& args) { GK_BY_STORAGE(args.storage, normalise, args); }

bool norm_gradient_sums(const NormPass& args) {
  if (!args.channels_last) {
    GK_BY_STORAGE(args.storage, sum_planar, args);
    return true;
  }
  const Scratch partial(ceil_div(args.batch * args.pixels, STRETCH) * 2 * args.channels);
  if (!partial.data()) return false;
  GK_BY_STORAGE(args.storage, sum_channels_last, args, partial.data());
  return true;
}

}  // namespace gk::GK_ISA
