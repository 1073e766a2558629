// Gradients of the wavefront LSTM over the gates, and what the gradients of its weights and initial states are made of.
//
// Tiling: the sweep of the forward pass in reverse. A block owns some units: it turns the gradient of their h into that
// of their gates, and multiplies these by its rows of the weights, which gives its part of what every unit of the
// cluster gets from the step behind. Parts go, in float32, to the block that owns the unit, which adds them up in the
// order of the blocks: the result depends on the plan alone. As in the forward pass a tap is a row of shared memory,
// and outside the step is a row of zeros, so nothing is scattered. A step takes two barriers: one of the block
// between gates and product, one of the cluster between product and gates.
//   The gradient of the weights is one matrix product after the sweep, [4h] x [taps * h] over all pixels. The sweep leaves
// both factors in memory: the gradient of the gates and, recovered from o and c, the h that each tap of a pixel reads.
//   The gradient of c never moves; when the sweep ends, a row holds that of the initial state.
//
// Traffic: activations, c twice and the gradient of h in, the gradient of the gates and taps * h out.
//
// What bounds it is the latency of a step, as in wavefront_lstm/forward.cu, for whose example (batch 64, h = 128) a
// full step of 64 rows has the same multiply-adds (2050 clocks), reads weights twice and gradients by 4 columns of
// warps (256 + 256 KiB, 4100 clocks), exchanges 2 x 64 KiB of parts (500) and waits for two barriers and L2 (~1000):
// about 6000 clocks or 3.4 µs. Measured on one H100 at commit bff14a1: 22 µs a step (2.54 ms forward and backward, less
// 1.14 ms forward), for the reason that wavefront_lstm/forward.cu gives.
#include "cuda/wavefront_lstm/block.h"

namespace gk::cuda {
namespace {

struct Arguments {
  WavefrontShape shape;
  WavefrontPlan plan;
  WavefrontBackward directions[MAX_DIRECTIONS];
  const void* activations;
  const float* cells;
  bool even;  // units can be read and written in pairs
};

struct Regions {
  Region weights, gates, parts, carry, rows;
  int64_t bytes;
};

template <class T>
__host__ __device__ int tap_steps(const WavefrontPlan& plan) {
  return 32 * plan.groups / STEP<T>;  // four gates of eight units
}

template <class T>
__host__ __device__ Regions regions_of(const WavefrontPlan& plan) {
  const int64_t rows = plan.rows;
  SharedLayout layout;
  Regions r;
  r.weights = layout.take<uint4>(static_cast<int64_t>(plan.columns) * plan.resident * 2 * WARP);
  r.gates = layout.take<T>((rows + 1) * row_stride<T>(tap_steps<T>(plan)));
  r.parts = layout.take<float>(2 * plan.cluster * rows * unit_stride(plan.groups));
  r.carry = layout.take<float>(rows * unit_stride(plan.groups));
  r.rows = layout.take<uint32_t>(rows);
  r.bytes = layout.bytes();
  return r;
}

template <class Math>
class LstmBackwardBlock {
 public:
  using T = typename Math::T;

  __device__ LstmBackwardBlock(const Arguments& a, const Regions& regions)
      : a_(a),
        l_(a.shape),
        plan_(a.plan),
        rank_(cluster_rank()),
        direction_index_(static_cast<int>(blockIdx.x) / plan_.cluster / plan_.slices),
        slice_(static_cast<int>(blockIdx.x) / plan_.cluster % plan_.slices),
        images_(min(plan_.images, l_.batch - slice_ * plan_.images)),
        direction_(a.directions[direction_index_]),
        owned_(8 * plan_.groups),
        stride_(row_stride<T>(tap_steps<T>(plan_))),
        part_stride_(unit_stride(plan_.groups)),
        weights_(regions.weights,
                 static_cast<const uint4*>(direction_.packed) +
                     static_cast<int64_t>(rank_) * plan_.columns * plan_.steps * 2 * WARP,
                 plan_.steps, plan_.resident),
        gates_(regions.gates),
        parts_(regions.parts),
        carry_(regions.carry),
        rows_(regions.rows) {}

  __device__ __forceinline__ void run() {
    prepare();
    cluster_sync(plan_.cluster);
    for (int s = step_count(l_) - 1; s >= 0; --s) {
      const Around around{s, span_of(l_, s - 1), span_of(l_, s), span_of(l_, s + 1)};
      // What this thread reads first, loaded before the product.
      Cell first[AHEAD];
      load(around, 0, first);
      if (s + 1 < step_count(l_)) {
        const uint64_t live = live_tiles(plan_.rows, position_count(l_), images_, around.now);
        for_items<4>(live, plan_.columns, [&](const auto& tiles, int group) { send_tiles(around, tiles, group); });
        cluster_sync(plan_.cluster);
      }
      finish(around, first);
      for (int from = AHEAD * THREADS; from < cells(around); from += AHEAD * THREADS) {
        load(around, from, first);
        finish(around, first);
      }
      __syncthreads();
    }
    if (direction_.grad_c0) write_grad_c0();
  }

 private:
  static constexpr int AHEAD = 4;

  struct Around {
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
    const Place at = place_of(l_, direction_.mirrored, s, position);
    return (static_cast<int64_t>(slice_ * plan_.images + image) * l_.height + at.y) * l_.width + at.x;
  }
  __device__ int64_t saved_unit(int64_t pixel) const {
    return (static_cast<int64_t>(direction_index_) * l_.batch * l_.height * l_.width + pixel) * l_.hidden;
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

  // This block's part of the gradient of h on the step, of 32 units from 32 * group on, to the blocks that own them.
  template <int M>
  __device__ __forceinline__ void send_tiles(const Around& around, const int (&tiles)[M], int group) const {
    const int lane = threadIdx.x % WARP;
    float sums[M][4][4] = {};
    for (int tap = 0; tap < l_.tap_count; ++tap) {
      int at[M];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const int row = tiles[m] * TILE + lane % 16, position = rows_.get(row).position;
        const bool inside = position != NO_POSITION && around.after.has(position - l_.taps[tap]);
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
        const int at = part_at(around.s, rank_, tiles[m] * TILE + lane / 4) + unit % owned_;
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

  // Pairs of units of the block on the step: image by image, position by position.
  __device__ int cells(const Around& around) const {
    return images_ * (around.now.hi - around.now.lo) * (owned_ / 2);
  }

  __device__ __forceinline__ void load(const Around& around, int from, Cell (&cell)[AHEAD]) const {
    const int pairs = owned_ / 2, length = around.now.hi - around.now.lo, h = l_.hidden;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int index = from + i * THREADS + static_cast<int>(threadIdx.x);
      const int image = index / pairs / length, position = around.now.lo + index / pairs % length;
      cell[i].row = -1;
      if (index >= cells(around)) continue;
      const int local = index % pairs * 2, unit = rank_ * owned_ + local;
      cell[i].row = image * position_count(l_) + position;
      cell[i].position = position;
      cell[i].unit = local;
      const int64_t saved = saved_unit(pixel_of(around.s, image, position));
      const Quad<T>* const active = static_cast<const Quad<T>*>(a_.activations) + saved + unit;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        cell[i].active[e] = {{from_float<T>(0.0f), from_float<T>(0.0f), from_float<T>(0.0f), from_float<T>(0.0f)}};
        if (unit + e < h) cell[i].active[e] = active[e];
      }
      const bool even = h % 2 == 0;
      cell[i].c = load_pair(a_.cells + saved, unit, h, even);
      if (around.before.has(position)) {
        const int64_t earlier = saved_unit(pixel_of(around.s - 1, image, position));
        cell[i].c_before = load_pair(a_.cells + earlier, unit, h, even);
      } else {
        cell[i].c_before = {state_at<T>(direction_.c0, unit, h), state_at<T>(direction_.c0, unit + 1, h)};
      }
      const Place at = place_of(l_, direction_.mirrored, around.s, position);
      const T* const grad = static_cast<const T*>(direction_.grad_hidden.data) +
                            (slice_ * plan_.images + image) * direction_.grad_hidden.stride_n +
                            at.y * direction_.grad_hidden.stride_h + at.x * direction_.grad_hidden.stride_w;
      cell[i].grad_hidden = load_pair(grad, unit, h, a_.even);
    }
  }

  __device__ __forceinline__ void finish(const Around& around, const Cell (&cell)[AHEAD]) const {
#pragma unroll
    for (int i = 0; i < AHEAD; ++i)
      if (cell[i].row >= 0) finish_cell(around, cell[i]);
  }

  __device__ __forceinline__ void finish_cell(const Around& around, const Cell& cell) const {
    const int h = l_.hidden, unit = rank_ * owned_ + cell.unit;
    float dh[2] = {to_float(cell.grad_hidden.x), to_float(cell.grad_hidden.y)};
    if (around.s + 1 < step_count(l_)) {
      for (int part = 0; part < plan_.cluster; ++part) {
        const Pair<float> sent = parts_.template get<Pair<float>>(part_at(around.s, part, cell.row) + cell.unit);
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
    const int64_t pixel = pixel_of(around.s, cell.row / position_count(l_), cell.position);
    T* const to = static_cast<T*>(direction_.grad_gates) + pixel * 4 * h;
#pragma unroll
    for (int gate = 0; gate < 4; ++gate)
      store_pair(to + gate * h, unit, h, h % 2 == 0,
                 Pair<T>{from_float<T>(grads[gate][0]), from_float<T>(grads[gate][1])});
    if (direction_.gathered) gather(around, cell, unit, {from_float<T>(hidden[0]), from_float<T>(hidden[1])}, pixel);
  }

  // h to the pixels whose taps read it, and h0 to this pixel's own taps that read outside.
  __device__ __forceinline__ void gather(const Around& around, const Cell& cell, int unit, Pair<T> hidden,
                                         int64_t pixel) const {
    const int h = l_.hidden, image = cell.row / position_count(l_);
    T* const gathered = static_cast<T*>(direction_.gathered);
    for (int tap = 0; tap < l_.tap_count; ++tap) {
      const int reader = cell.position - l_.taps[tap];
      if (around.after.has(reader)) {
        const int64_t at = pixel_of(around.s + 1, image, reader) * l_.tap_count + tap;
        store_pair(gathered + at * h, unit, h, h % 2 == 0, hidden);
      }
      if (!around.before.has(cell.position + l_.taps[tap])) {
        const Pair<T> outside{from_float<T>(state_at<T>(direction_.h0, unit, h)),
                              from_float<T>(state_at<T>(direction_.h0, unit + 1, h))};
        store_pair(gathered + (pixel * l_.tap_count + tap) * h, unit, h, h % 2 == 0, outside);
      }
    }
  }

  // The rows hold the gradient of the initial state when the sweep has ended.
  __device__ __forceinline__ void write_grad_c0() const {
    for (int local = threadIdx.x; local < owned_; local += THREADS) {
      const int unit = rank_ * owned_ + local;
      if (unit >= l_.hidden) continue;
      float sum = 0.0f;
      for (int row = 0; row < images_ * position_count(l_); ++row) sum += carry_.get(row * part_stride_ + local);
      direction_.grad_c0[static_cast<int64_t>(slice_) * l_.hidden + unit] = sum;
    }
  }

  const Arguments& a_;
  const WavefrontShape& l_;
  const WavefrontPlan& plan_;
  const int rank_, direction_index_, slice_, images_;
  const WavefrontBackward& direction_;
  const int owned_, stride_, part_stride_;
  const Weights weights_;
  const Shared<T> gates_;
  const Shared<float> parts_, carry_;
  const RowTable rows_;
};

template <class Math>
__global__ void __launch_bounds__(THREADS, 1)
    wavefront_lstm_backward_kernel(const __grid_constant__ Arguments a) {
  LstmBackwardBlock<Math>(a, regions_of<typename Math::T>(a.plan)).run();
}

// Block b of a cluster has groups b * columns to (b + 1) * columns - 1; column j of its group g is unit 32 g + j of the
// gradient of h; step k of a tap holds the next gates of the block's own units, i, f, g, o of each.
template <class Math>
__global__ void __launch_bounds__(THREADS) wavefront_lstm_backward_pack(const __grid_constant__ Arguments a) {
  using T = typename Math::T;
  const int h = a.shape.hidden, steps = tap_steps<T>(a.plan), columns = a.plan.columns, owned = 8 * a.plan.groups;
  for (int d = 0; d < a.shape.directions; ++d) {
    const T* const weight = static_cast<const T*>(a.directions[d].weight);
    pack_words(a.directions[d].packed, a.plan.packed_bytes, a.plan.steps, [&](int group, int step, int w, int column) {
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
                                    const WavefrontBackward* directions, const float* saved, void* stream) {
  const int64_t units = static_cast<int64_t>(shape.directions) * shape.batch * shape.height * shape.width * shape.hidden;
  Arguments a{shape, plan, {}, saved, saved + 4 * units, shape.hidden % 2 == 0};
  const int pair_bytes = shape.storage == Storage::float32 ? 8 : 4;
  for (int w = 0; w < shape.directions; ++w) {
    a.directions[w] = directions[w];
    const Pixels& p = directions[w].grad_hidden;
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
