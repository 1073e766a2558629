// Gradients of the wavefront LSTM over the gates, and what the gradients of its weights and initial states are made of.
//
// Tiling: the walk of the forward pass in reverse. A block owns some units: it turns the gradient of their h into that
// of their gates, and multiplies these by its rows of the weights, which gives its part of what every unit of the
// cluster gets from the front behind. Parts go, in float32, to the block that owns the unit, which adds them up in the
// order of the blocks: the result depends on the plan alone. As in the forward pass a tap is a row of shared memory,
// and outside the front is a row of zeros, so nothing is scattered. A front takes two barriers: one of the block
// between gates and product, one of the cluster between product and gates.
//   The gradient of the weights is one matrix product after the walk, [4h] x [taps * h] over all pixels. The walk leaves
// both factors in memory: the gradient of the gates and, recovered from o and c, the h that each tap of a pixel reads.
//   The gradient of c never moves; when the walk ends, a row holds that of the initial state.
//
// Traffic: activations, c twice and the gradient of h in, the gradient of the gates and taps * h out.
//
// What bounds it is the latency of a front, as in wavefront_lstm/forward.cu, for whose example (batch 64, h = 128) a
// full front of 64 rows has the same multiply-adds (2050 clocks), reads weights twice and gradients by 4 columns of
// warps (256 + 256 KiB, 4100 clocks), exchanges 2 x 64 KiB of parts (500) and waits for two barriers and L2 (~1000):
// about 6000 clocks or 3.4 µs. Measured on one H100 at commit bff14a1: 22 µs a front (2.54 ms forward and backward, less
// 1.14 ms forward), for the reason that wavefront_lstm/forward.cu gives.
#include "cuda/wavefront_lstm/backward_block.h"

namespace gk::cuda {
namespace {

template <class Math>
class Walk {
 public:
  using T = typename Math::T;

  __device__ Walk(const BackwardArguments& a, const BackwardRegions& regions)
      : a_(a),
        l_(a.shape),
        plan_(a.plan),
        rank_(cluster_rank()),
        walk_index_(static_cast<int>(blockIdx.x) / plan_.cluster / plan_.slices),
        slice_(static_cast<int>(blockIdx.x) / plan_.cluster % plan_.slices),
        images_(min(plan_.images, l_.batch - slice_ * plan_.images)),
        walk_(a.walks[walk_index_]),
        owned_(8 * plan_.groups),
        stride_(row_stride<T>(tap_steps<T>(plan_))),
        part_stride_(unit_stride(plan_.groups)),
        weights_(regions.weights,
                 static_cast<const uint4*>(walk_.packed) +
                     static_cast<int64_t>(rank_) * plan_.columns * plan_.steps * 2 * WARP,
                 plan_.steps, plan_.resident),
        gates_(regions.gates),
        parts_(regions.parts),
        carry_(regions.carry),
        rows_(regions.rows) {}

  __device__ __forceinline__ void run() {
    prepare();
    cluster_sync(plan_.cluster);
    for (int s = front_count(l_) - 1; s >= 0; --s) {
      const Fronts fronts{s, span_of(l_, s - 1), span_of(l_, s), span_of(l_, s + 1)};
      // What this thread reads first, asked for before the product.
      Cell first[AHEAD];
      load(fronts, 0, first);
      if (s + 1 < front_count(l_)) {
        const uint64_t live = live_tiles(plan_.rows, position_count(l_), images_, fronts.now);
        for_items<4>(live, plan_.columns, [&](const auto& tiles, int group) { send_tiles(fronts, tiles, group); });
        cluster_sync(plan_.cluster);
      }
      finish(fronts, first);
      for (int from = AHEAD * THREADS; from < cells(fronts); from += AHEAD * THREADS) {
        load(fronts, from, first);
        finish(fronts, first);
      }
      __syncthreads();
    }
    if (walk_.grad_c0) write_grad_c0();
  }

 private:
  static constexpr int AHEAD = 4;

  struct Fronts {
    int s;
    Span before, now, after;
  };
  // Two units of a pixel, as they come from memory.
  struct Cell {
    int row, position, unit;  // of the block; row -1: none
    Quad<T> active[2];
    Pair<float> c, c_before;
    Pair<T> grad_hidden;
  };

  static __device__ int min(int a, int b) { return a < b ? a : b; }
  __device__ int64_t pixel_of(int s, int image, int position) const {
    const Place at = place_of(l_, walk_.mirrored, s, position);
    return (static_cast<int64_t>(slice_ * plan_.images + image) * l_.height + at.y) * l_.width + at.x;
  }
  __device__ int64_t saved_unit(int64_t pixel) const {
    return (static_cast<int64_t>(walk_index_) * l_.batch * l_.height * l_.width + pixel) * l_.hidden;
  }
  __device__ int part_at(int s, int from, int row) const {
    return ((s % 2 * plan_.cluster + from) * plan_.rows + row) * part_stride_;
  }

  __device__ __forceinline__ void prepare() const {
    weights_.load(plan_.columns);
    rows_.fill(plan_.rows, position_count(l_), images_);
    for (int i = threadIdx.x; i < (plan_.rows + 1) * stride_; i += THREADS) gates_.put(i, from_float<T>(0.0f));
    for (int i = threadIdx.x; i < plan_.rows * part_stride_; i += THREADS) carry_.put(i, 0.0f);
  }

  // This block's part of the gradient of h on the front, of 32 units from 32 * group on, to the blocks that own them.
  template <int M>
  __device__ __forceinline__ void send_tiles(const Fronts& fronts, const int (&tiles)[M], int group) const {
    const int lane = threadIdx.x % WARP;
    float sums[M][4][4] = {};
    for (int tap = 0; tap < l_.tap_count; ++tap) {
      int at[M];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const int row = tiles[m] * TILE + lane % 16, position = rows_.get(row).position;
        const bool inside = position != NO_POSITION && fronts.after.has(position - l_.taps[tap]);
        at[m] = (inside ? row - l_.taps[tap] : plan_.rows) * stride_ + lane / 16 * (STEP<T> / 2);
      }
      weights_.multiply_rows<Math>(sums, gates_, at, group, tap * tap_steps<T>(plan_), tap_steps<T>(plan_));
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (tiles[m] < 0) continue;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int unit = group * 32 + n * 8 + lane % 4 * 2, owner = unit / owned_;
        if (owner >= plan_.cluster) continue;
        const int at = part_at(fronts.s, rank_, tiles[m] * TILE + lane / 4) + unit % owned_;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Pair<float> part{sums[m][n][2 * half], sums[m][n][2 * half + 1]};
          if (plan_.cluster == 1)
            parts_.put(at + half * 8 * part_stride_, part);
          else
            parts_.put_to(owner, at + half * 8 * part_stride_, part);
        }
      }
    }
  }

  // Pairs of units of the block on the front: image by image, position by position.
  __device__ int cells(const Fronts& fronts) const {
    return images_ * (fronts.now.hi - fronts.now.lo) * (owned_ / 2);
  }

  __device__ __forceinline__ void load(const Fronts& fronts, int from, Cell (&cell)[AHEAD]) const {
    const int pairs = owned_ / 2, length = fronts.now.hi - fronts.now.lo, h = l_.hidden;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int index = from + i * THREADS + static_cast<int>(threadIdx.x);
      const int image = index / pairs / length, position = fronts.now.lo + index / pairs % length;
      cell[i].row = -1;
      if (index >= cells(fronts)) continue;
      const int local = index % pairs * 2, unit = rank_ * owned_ + local;
      cell[i].row = image * position_count(l_) + position;
      cell[i].position = position;
      cell[i].unit = local;
      const int64_t saved = saved_unit(pixel_of(fronts.s, image, position));
      const Quad<T>* const active = static_cast<const Quad<T>*>(a_.activations) + saved + unit;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        cell[i].active[e] = {{from_float<T>(0.0f), from_float<T>(0.0f), from_float<T>(0.0f), from_float<T>(0.0f)}};
        if (unit + e < h) cell[i].active[e] = active[e];
      }
      const bool even = h % 2 == 0;
      cell[i].c = load_pair(a_.cells + saved, unit, h, even);
      if (fronts.before.has(position)) {
        const int64_t earlier = saved_unit(pixel_of(fronts.s - 1, image, position));
        cell[i].c_before = load_pair(a_.cells + earlier, unit, h, even);
      } else {
        cell[i].c_before = {state_at<T>(walk_.c0, unit, h), state_at<T>(walk_.c0, unit + 1, h)};
      }
      const Place at = place_of(l_, walk_.mirrored, fronts.s, position);
      const T* const grad = static_cast<const T*>(walk_.grad_hidden.data) +
                            (slice_ * plan_.images + image) * walk_.grad_hidden.stride_n +
                            at.y * walk_.grad_hidden.stride_h + at.x * walk_.grad_hidden.stride_w;
      cell[i].grad_hidden = load_pair(grad, unit, h, a_.even);
    }
  }

  __device__ __forceinline__ void finish(const Fronts& fronts, const Cell (&cell)[AHEAD]) const {
#pragma unroll
    for (int i = 0; i < AHEAD; ++i)
      if (cell[i].row >= 0) finish_cell(fronts, cell[i]);
  }

  __device__ __forceinline__ void finish_cell(const Fronts& fronts, const Cell& cell) const {
    const int h = l_.hidden, unit = rank_ * owned_ + cell.unit;
    float dh[2] = {to_float(cell.grad_hidden.x), to_float(cell.grad_hidden.y)};
    if (fronts.s + 1 < front_count(l_)) {
      for (int part = 0; part < plan_.cluster; ++part) {
        const Pair<float> sent = parts_.template get<Pair<float>>(part_at(fronts.s, part, cell.row) + cell.unit);
        dh[0] += sent.x;
        dh[1] += sent.y;
      }
    }
    const int carry_at = cell.row * part_stride_ + cell.unit;
    const Pair<float> carried = carry_.template get<Pair<float>>(carry_at);
    float grads[4][2], hidden[2], carry[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const Quad<T>& active = cell.active[e];
      const float i = to_float(active.v[0]), f = to_float(active.v[1]), g = to_float(active.v[2]),
                  o = to_float(active.v[3]), tanh_c = Math::tanh(e == 0 ? cell.c.x : cell.c.y);
      const float dc = dh[e] * o * (1.0f - tanh_c * tanh_c) + (e == 0 ? carried.x : carried.y);
      grads[0][e] = dc * g * (i - i * i);
      grads[1][e] = dc * (e == 0 ? cell.c_before.x : cell.c_before.y) * (f - f * f);
      grads[2][e] = dc * i * (1.0f - g * g);
      grads[3][e] = dh[e] * tanh_c * (o - o * o);
      hidden[e] = o * tanh_c;
      carry[e] = dc * f;
      gates_.put(cell.row * stride_ + 4 * (cell.unit + e),
                 Quad<T>{{Math::operand(grads[0][e]), Math::operand(grads[1][e]), Math::operand(grads[2][e]),
                          Math::operand(grads[3][e])}});
    }
    carry_.put(carry_at, Pair<float>{carry[0], carry[1]});
    const int64_t pixel = pixel_of(fronts.s, cell.row / position_count(l_), cell.position);
    T* const to = static_cast<T*>(walk_.grad_gates) + pixel * 4 * h;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate)
      store_pair(to + gate * h, unit, h, h % 2 == 0,
                 Pair<T>{from_float<T>(grads[gate][0]), from_float<T>(grads[gate][1])});
    if (walk_.gathered) gather(fronts, cell, unit, {from_float<T>(hidden[0]), from_float<T>(hidden[1])}, pixel);
  }

  // h to the pixels whose taps read it, and h0 to this pixel's own taps that read outside.
  __device__ __forceinline__ void gather(const Fronts& fronts, const Cell& cell, int unit, Pair<T> hidden,
                                         int64_t pixel) const {
    const int h = l_.hidden, image = cell.row / position_count(l_);
    T* const gathered = static_cast<T*>(walk_.gathered);
    for (int tap = 0; tap < l_.tap_count; ++tap) {
      const int reader = cell.position - l_.taps[tap];
      if (fronts.after.has(reader)) {
        const int64_t at = pixel_of(fronts.s + 1, image, reader) * l_.tap_count + tap;
        store_pair(gathered + at * h, unit, h, h % 2 == 0, hidden);
      }
      if (!fronts.before.has(cell.position + l_.taps[tap])) {
        const Pair<T> outside{from_float<T>(state_at<T>(walk_.h0, unit, h)),
                              from_float<T>(state_at<T>(walk_.h0, unit + 1, h))};
        store_pair(gathered + (pixel * l_.tap_count + tap) * h, unit, h, h % 2 == 0, outside);
      }
    }
  }

  // What is left in the rows when the walk has ended is what the initial state gets.
  __device__ __forceinline__ void write_grad_c0() const {
    for (int local = threadIdx.x; local < owned_; local += THREADS) {
      const int unit = rank_ * owned_ + local;
      if (unit >= l_.hidden) continue;
      float sum = 0.0f;
      for (int row = 0; row < images_ * position_count(l_); ++row) sum += carry_.get(row * part_stride_ + local);
      walk_.grad_c0[static_cast<int64_t>(slice_) * l_.hidden + unit] = sum;
    }
  }

  const BackwardArguments& a_;
  const WavefrontShape& l_;
  const WavefrontPlan& plan_;
  const int rank_, walk_index_, slice_, images_;
  const WavefrontBackward& walk_;
  const int owned_, stride_, part_stride_;
  const Weights weights_;
  const Shared<T> gates_;
  const Shared<float> parts_, carry_;
  const RowTable rows_;
};

template <class Math>
__global__ void __launch_bounds__(THREADS, 1)
    wavefront_lstm_backward_kernel(const __grid_constant__ BackwardArguments a) {
  Walk<Math>(a, regions_of<typename Math::T>(a.plan)).run();
}

// Block b of a cluster has groups b * columns to (b + 1) * columns - 1; column j of its group g is unit 32 g + j of the
// gradient of h; step k of a tap holds the next gates of the block's own units, i, f, g, o of each.
template <class Math>
__global__ void __launch_bounds__(THREADS) wavefront_lstm_backward_pack(const __grid_constant__ BackwardArguments a) {
  using T = typename Math::T;
  const int h = a.shape.hidden, steps = tap_steps<T>(a.plan), columns = a.plan.columns, owned = 8 * a.plan.groups;
  for (int walk = 0; walk < a.shape.directions; ++walk) {
    const T* const weight = static_cast<const T*>(a.walks[walk].weight);
    pack_words(a.walks[walk].packed, a.plan.packed_bytes, a.plan.steps, [&](int group, int step, int w, int column) {
      const int to = group % columns * 32 + column, tap = step / steps, first = group / columns * owned;
      return word_of<Math>(step % steps, w, [&](int k) {
        const int unit = first + k / 4, gate = k % 4;
        const int64_t line = static_cast<int64_t>(tap) * 4 * h + gate * h + unit;
        return unit < h && to < h ? to_float(weight[line * h + to]) : 0.0f;
      });
    });
  }
}

}  // namespace

// For the plan: what a division needs, of which `resident` is not yet decided.
WavefrontPlan backward_needs(const WavefrontShape& l, WavefrontPlan plan) {
  plan.groups = ceil_div(ceil_div(l.hidden, 8), plan.cluster);
  plan.columns = ceil_div(plan.cluster * plan.groups, 4);
  return by_math(l, [&](auto math) {
    using T = typename decltype(math)::T;
    plan.steps = l.tap_count * tap_steps<T>(plan);
    plan.shared_bytes = regions_of<T>(plan).bytes;
    plan.packed_bytes = static_cast<int64_t>(plan.cluster) * plan.columns * plan.steps * 32 * WARP;
    return plan;
  });
}

const char* wavefront_lstm_backward(const WavefrontShape& shape, const WavefrontPlan& plan,
                                    const WavefrontBackward* walks, const float* saved, void* stream) {
  const int64_t units = static_cast<int64_t>(shape.directions) * shape.batch * shape.height * shape.width * shape.hidden;
  BackwardArguments a{shape, plan, {}, saved, saved + 4 * units, shape.hidden % 2 == 0};
  const int pair_bytes = shape.storage == Storage::float32 ? 8 : 4;
  for (int w = 0; w < shape.directions; ++w) {
    a.walks[w] = walks[w];
    const Pixels& p = walks[w].grad_hidden;
    a.even &= reinterpret_cast<uintptr_t>(p.data) % pair_bytes == 0 && (p.stride_n | p.stride_h | p.stride_w) % 2 == 0;
  }
  return by_math(shape, [&](auto math) {
    using Math = decltype(math);
    const int blocks = ceil_div(static_cast<int>(plan.packed_bytes / 16), THREADS);
    const char* const error =
        launch(wavefront_lstm_backward_pack<Math>, {blocks < 256 ? blocks : 256, THREADS, 1, 0}, stream, a);
    if (error) return error;
    return launch(wavefront_lstm_backward_kernel<Math>,
                  {plan.cluster * plan.slices * shape.directions, THREADS, plan.cluster, plan.shared_bytes}, stream, a);
  });
}

}  // namespace gk::cuda
