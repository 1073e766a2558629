// Instance norm and activation, forward and backward: each image's channel is brought from memory once a pass.
//
// A task is a plane of [n][channel][pixel] images, or a group of channels of an image of [n][pixel][channel] ones; it
// belongs to one thread, so results do not depend on how many there are. Forward reads a task three times (for its
// mean, its squared deviations, y), backward twice (sums of the gradient, the gradient of x): from memory the first
// time, then from the caches, which hold a plane of up to 256 x 256. Sums run in float32 over RUN terms a lane and
// continue in double.
// Bound: memory, for what does not lie in the caches already: x read and y written; x and grad read, grad_x written.
#include <omp.h>

#include <cmath>

#include "cpu/core/activation.h"
#include "cpu/core/image_io.h"
#include "cpu/core/implementation.h"
#include "cpu/core/parallel.h"
#include "cpu/instance_norm/instance_norm.h"

namespace gk::GK_ISA {
namespace instance_norm {
namespace {

constexpr int64_t RUN = 16;
constexpr int SIDE = 4;               // sums side by side, for the latency of an addition
constexpr int64_t GROUP_MAX = 256;    // channels of a task
constexpr int64_t GROUP_LEAST = 16;   // a cache line of float32

int threads_of(const InstanceNormShape& s, int threads) {
  return useful_threads(s.batch * s.channels * s.pixels, VALUES_PER_THREAD / 2, threads);
}

// Channels of a task of channels_last images: as many as leave every thread two tasks.
int64_t group_size(const InstanceNormShape& s, int threads) {
  int64_t size = min64(GROUP_MAX, ceil_div(s.channels, GROUP_LEAST) * GROUP_LEAST);
  while (size > GROUP_LEAST && s.batch * ceil_div(s.channels, size) < 2 * threads)
    size = ceil_div(size / 2, GROUP_LEAST) * GROUP_LEAST;
  return size;
}

GK_INLINE float value_or(const float* values, int64_t c, float otherwise) { return values ? values[c] : otherwise; }

GK_INLINE float rstd_of(double deviations, int64_t pixels, float eps) {
  return static_cast<float>(1.0 / std::sqrt(deviations / static_cast<double>(pixels) + eps));
}

// --- planes ----------------------------------------------------------------------------------------------------------

struct Pair {
  double first, second;
};

// Sums over a line of `count` values: add(at, left, &a, &b) adds those of one block, zeros beyond its end.
template <class Add>
GK_INLINE Pair sum_line(int64_t count, const Add& add) {
  Pair total{};
  for (int64_t run = 0; run < count; run += RUN * SIDE * IO) {
    Block a[SIDE] = {}, b[SIDE] = {};
    const int64_t end = min64(count, run + RUN * SIDE * IO);
    int64_t at = run;
    for (; at + SIDE * IO <= end; at += SIDE * IO)
      GK_UNROLL for (int i = 0; i < SIDE; ++i) add(at + i * IO, IO, &a[i], &b[i]);
    for (; at + IO <= end; at += IO) add(at, IO, &a[0], &b[0]);
    if (at < end) add(at, end - at, &a[0], &b[0]);
    const Block both_a = (a[0] + a[1]) + (a[2] + a[3]), both_b = (b[0] + b[1]) + (b[2] + b[3]);
    for (int i = 0; i < IO; ++i) {
      total.first += both_a[i];
      total.second += both_b[i];
    }
  }
  return total;
}

// Calls move(at, left) for each block of a line; `left` is a constant for whole ones.
template <class Move>
GK_INLINE void for_line(int64_t count, const Move& move) {
  int64_t at = 0;
  for (; at + IO <= count; at += IO) move(at, IO);
  if (at < count) move(at, count - at);
}

GK_INLINE Block without_rest(Block v, int64_t count) {
  for (int64_t i = count; i < IO; ++i) v[i] = 0;
  return v;
}

GK_INLINE NormBlock of_plane(float mean, float rstd, float gamma, float beta, double mean_g, double mean_g_xhat) {
  const Block z{};
  return {z + mean, z + rstd, z + gamma, z + beta, z + gamma * rstd, z + static_cast<float>(mean_g),
          z + static_cast<float>(mean_g_xhat)};
}

template <class T>
void forward_planes(const InstanceNormForward& args) {
  const auto [batch, C, P, last, storage] = args.shape;
#pragma omp parallel for num_threads(threads_of(args.shape, args.threads))
  for (int64_t plane = 0; plane < batch * C; ++plane) {
    const Curve curve = curve_of(args.activation);  // here, for a register of its own
    const T* const x = static_cast<const T*>(args.x) + plane * P;
    T* const y = static_cast<T*>(args.y) + plane * P;
    const Pair sum = sum_line(P, [&](int64_t at, int64_t left, Block* a, Block*) { *a += load_some(x + at, left); });
    const float mean = static_cast<float>(sum.first / static_cast<double>(P));
    const Pair squares = sum_line(P, [&](int64_t at, int64_t left, Block* a, Block*) {
      const Block d = load_some(x + at, left) - mean;
      *a += left >= IO ? d * d : without_rest(d * d, left);
    });
    const float rstd = rstd_of(squares.first, P, args.eps);
    args.statistics[plane] = mean;
    args.statistics[batch * C + plane] = rstd;
    const int64_t c = plane % C;
    const NormBlock n = of_plane(mean, rstd, value_or(args.affine.gamma, c, 1), value_or(args.affine.beta, c, 0), 0, 0);
    for_line(P, [=](int64_t at, int64_t left) {
      store_some(y + at, activate(normalised(load_some(x + at, left), n) * n.gamma + n.beta, curve), left);
    });
  }
}

template <class T>
void backward_planes(const InstanceNormBackward& args) {
  const auto [batch, C, P, last, storage] = args.shape;
  const int64_t planes = batch * C;
#pragma omp parallel for num_threads(threads_of(args.shape, args.threads))
  for (int64_t plane = 0; plane < planes; ++plane) {
    const Curve curve = curve_of(args.activation);
    const T* const grad = static_cast<const T*>(args.grad) + plane * P;
    const T* const x = static_cast<const T*>(args.x) + plane * P;
    const float mean = args.statistics[plane], rstd = args.statistics[planes + plane];
    const float gamma = value_or(args.affine.gamma, plane % C, 1), beta = value_or(args.affine.beta, plane % C, 0);
    const NormBlock known = of_plane(mean, rstd, gamma, beta, 0, 0);
    const Pair sums = sum_line(P, [=](int64_t at, int64_t left, Block* a, Block* b) {
      Block xhat{};
      // Beyond the end the gradient is zero, so whatever stands in xhat adds nothing.
      const Block g =
          through_activation<true>(load_some(grad + at, left), load_some(x + at, left), known, curve, &xhat);
      *a += g * xhat;
      *b += g;
    });
    args.sums[plane] = static_cast<float>(sums.first);
    args.sums[planes + plane] = static_cast<float>(sums.second);
    if (!args.grad_x) continue;
    T* const grad_x = static_cast<T*>(args.grad_x) + plane * P;
    const double count = static_cast<double>(P);
    const NormBlock n = of_plane(mean, rstd, gamma, beta, sums.second / count, sums.first / count);
    for_line(P, [=](int64_t at, int64_t left) {
      store_some(grad_x + at, through_norm<true>(load_some(grad + at, left), load_some(x + at, left), n, curve), left);
    });
  }
}

// --- groups of channels ----------------------------------------------------------------------------------------------

// Coefficients of the channels of a group, in the order of NormCoefficients.
struct Group {
  float values[7][GROUP_MAX];

  void set(int64_t i, float mean, float rstd, float gamma, float beta, double mean_g, double mean_g_xhat) {
    const float all[7] = {mean, rstd, gamma, beta, gamma * rstd, static_cast<float>(mean_g),
                          static_cast<float>(mean_g_xhat)};
    for (int k = 0; k < 7; ++k) values[k][i] = all[k];
  }
  // Values past the last channel are read and lead to nothing.
  NormBlock at(int64_t i) const {
    return {load_block(values[0] + i), load_block(values[1] + i), load_block(values[2] + i), load_block(values[3] + i),
            load_block(values[4] + i), load_block(values[5] + i), load_block(values[6] + i)};
  }
};

// Calls work(image, first channel, channels) for each task.
template <class Work>
void for_groups(const InstanceNormShape& s, int threads, const Work& work) {
  const int useful = threads_of(s, threads);
  const int64_t size = group_size(s, useful), groups = ceil_div(s.channels, size);
#pragma omp parallel for num_threads(useful)
  for (int64_t task = 0; task < s.batch * groups; ++task) {
    const int64_t first = task % groups * size;
    work(task / groups, first, min64(size, s.channels - first));
  }
}

// Sums over the pixels of a group of `width` channels: add(at, channel, left, &a, &b) adds one block's.
template <class Add>
GK_INLINE void sum_group(int64_t pixels, int64_t stride, int64_t width, double* first, double* second, const Add& add) {
  for (int64_t i = 0; i < ceil_div(width, IO) * IO; ++i) first[i] = second[i] = 0;
  for (int64_t run = 0; run < pixels; run += RUN) {
    const int64_t end = min64(pixels, run + RUN);
    for_line(width, [=](int64_t c, int64_t left) {
      Block a{}, b{};
      for (int64_t p = run; p < end; ++p) add(p * stride + c, c, left, &a, &b);
      for (int i = 0; i < IO; ++i) {
        first[c + i] += a[i];
        second[c + i] += b[i];
      }
    });
  }
}

// Calls move(at, left, norm) for each block of a group, whose pixels are `stride` apart.
template <class Move>
GK_INLINE void for_group(int64_t pixels, int64_t stride, int64_t width, const Group& group, const Move& move) {
  for (int64_t run = 0; run < pixels; run += RUN) {
    const int64_t end = min64(pixels, run + RUN);
    for_line(width, [=, &group](int64_t c, int64_t left) {
      const NormBlock n = group.at(c);
      for (int64_t p = run; p < end; ++p) move(p * stride + c, left, n);
    });
  }
}

template <class T>
void forward_groups(const InstanceNormForward& args) {
  const auto [batch, C, P, last, storage] = args.shape;
  for_groups(args.shape, args.threads, [&, batch = batch, C = C, P = P](int64_t image, int64_t first, int64_t width) {
    const Curve curve = curve_of(args.activation);
    const T* const x = static_cast<const T*>(args.x) + image * P * C + first;
    T* const y = static_cast<T*>(args.y) + image * P * C + first;
    double sums[GROUP_MAX], squares[GROUP_MAX], unused[GROUP_MAX];
    float mean[GROUP_MAX] = {};
    Group group{};
    sum_group(P, C, width, sums, unused, [=](int64_t at, int64_t, int64_t left, Block* a, Block*) {
      *a += load_some(x + at, left);
    });
    for (int64_t i = 0; i < width; ++i) mean[i] = static_cast<float>(sums[i] / static_cast<double>(P));
    sum_group(P, C, width, squares, unused, [=, &mean](int64_t at, int64_t c, int64_t left, Block* a, Block*) {
      const Block d = load_some(x + at, left) - load_block(mean + c);
      *a += d * d;
    });
    for (int64_t i = 0; i < width; ++i) {
      const int64_t c = first + i;
      const float rstd = rstd_of(squares[i], P, args.eps);
      args.statistics[image * C + c] = mean[i];
      args.statistics[(batch + image) * C + c] = rstd;
      group.set(i, mean[i], rstd, value_or(args.affine.gamma, c, 1), value_or(args.affine.beta, c, 0), 0, 0);
    }
    for_group(P, C, width, group, [=](int64_t at, int64_t left, const NormBlock& n) {
      store_some(y + at, activate(normalised(load_some(x + at, left), n) * n.gamma + n.beta, curve), left);
    });
  });
}

template <class T>
void backward_groups(const InstanceNormBackward& args) {
  const auto [batch, C, P, last, storage] = args.shape;
  for_groups(args.shape, args.threads, [&, batch = batch, C = C, P = P](int64_t image, int64_t first, int64_t width) {
    const Curve curve = curve_of(args.activation);
    const int64_t begin = image * P * C + first;
    const T *const grad = static_cast<const T*>(args.grad) + begin, *const x = static_cast<const T*>(args.x) + begin;
    double with_xhat[GROUP_MAX], plain[GROUP_MAX];
    Group group{};
    const auto set = [&](int64_t i, double mean_g, double mean_g_xhat) {
      const int64_t c = first + i;
      group.set(i, args.statistics[image * C + c], args.statistics[(batch + image) * C + c],
                value_or(args.affine.gamma, c, 1), value_or(args.affine.beta, c, 0), mean_g, mean_g_xhat);
    };
    for (int64_t i = 0; i < width; ++i) set(i, 0, 0);
    sum_group(P, C, width, with_xhat, plain, [=, &group](int64_t at, int64_t c, int64_t left, Block* a, Block* b) {
      Block xhat{};
      const Block g =
          through_activation<true>(load_some(grad + at, left), load_some(x + at, left), group.at(c), curve, &xhat);
      *a += g * xhat;
      *b += g;
    });
    for (int64_t i = 0; i < width; ++i) {
      args.sums[image * C + first + i] = static_cast<float>(with_xhat[i]);
      args.sums[(batch + image) * C + first + i] = static_cast<float>(plain[i]);
      set(i, plain[i] / static_cast<double>(P), with_xhat[i] / static_cast<double>(P));
    }
    if (!args.grad_x) return;
    T* const grad_x = static_cast<T*>(args.grad_x) + begin;
    for_group(P, C, width, group, [=](int64_t at, int64_t left, const NormBlock& n) {
      store_some(grad_x + at, through_norm<true>(load_some(grad + at, left), load_some(x + at, left), n, curve), left);
    });
  });
}

// --- the implementations: each of one layout -------------------------------------------------------------------------

template <class Args>
bool planes_suit(const Args& args) {
  return !args.shape.channels_last;
}
template <class Args>
bool groups_suit(const Args& args) {
  return args.shape.channels_last;
}
Outcome run_forward_planes(const InstanceNormForward& args) {
  GK_BY_STORAGE(args.shape.storage, forward_planes, args);
  return Outcome::done;
}
Outcome run_forward_groups(const InstanceNormForward& args) {
  GK_BY_STORAGE(args.shape.storage, forward_groups, args);
  return Outcome::done;
}
Outcome run_backward_planes(const InstanceNormBackward& args) {
  GK_BY_STORAGE(args.shape.storage, backward_planes, args);
  return Outcome::done;
}
Outcome run_backward_groups(const InstanceNormBackward& args) {
  GK_BY_STORAGE(args.shape.storage, backward_groups, args);
  return Outcome::done;
}

constexpr Implementation<InstanceNormForward> FORWARD[] = {
    {"planes", planes_suit<InstanceNormForward>, run_forward_planes},
    {"channel_groups", groups_suit<InstanceNormForward>, run_forward_groups},
};
constexpr Implementation<InstanceNormBackward> BACKWARD[] = {
    {"planes", planes_suit<InstanceNormBackward>, run_backward_planes},
    {"channel_groups", groups_suit<InstanceNormBackward>, run_backward_groups},
};

}  // namespace
}  // namespace instance_norm

void instance_norm_forward(const InstanceNormForward& args) { run_first(instance_norm::FORWARD, args); }
void instance_norm_backward(const InstanceNormBackward& args) { run_first(instance_norm::BACKWARD, args); }

}  // namespace gk::GK_ISA
