// hidden = the wavefront LSTM over gates (the input-to-state part), step by step.
//
// Tiling: a cluster sweeps a few images in one direction to the end. Each of its blocks owns some units, all four gates
// of them; every block holds h of the step before, of all units, in the operands' type. A warp multiplies up to four
// tiles of 16 rows by the 32 columns that are the gates i, f, g, o of eight units: a lane then holds all four gates of
// its units and finishes them in registers. It writes h to every block of the cluster, into the other of two buffers,
// and one barrier ends the step. Weights stay in shared memory, as far as they fit; the others are read from L2 at
// every step. No skewed copy: a tap is a row of shared memory, a place outside the image is the row that holds h0.
//
// Traffic: gates in, hidden out, once each; for backward, 4 activations in the storage type and c in float32 a unit.
//
// What bounds it is the latency of a step. Batch 64, h = 128, 32 x 32, two taps, bfloat16, both directions: 64 clusters
// of 2 blocks with 2 images each, weights of 128 KiB a block all in shared memory. A full step of 64 rows takes
//   tensor cores   64 x 256 x 256 multiply-adds, 2048 a clock at what mma.sync reaches    2050 clocks
//   shared memory  weights once, h by 8 warps: 128 + 256 KiB at 128 bytes a clock         3070 clocks
//   elementwise    5 tanh for each of 4096 units, 16 a clock                              1280 clocks
//   cluster barrier, and gates from L2, loaded before the product                          ~700 clocks
// of which the first two overlap: about 5000 clocks or 2.9 µs at 1.75 GHz, half of that on the average step of a
// diagonal. The floor over all multiprocessors (tensor cores alone) is 0.6 µs a step.
// Measured on one H100 at commit bff14a1: 18 µs a step, six times that count (1.14 ms; 9.6 µs for batch 16, h = 64,
// 28 x 28), at 8 warps a multiprocessor. What the count leaves out is waiting: in the machine code each load of a gate
// is followed at once by an instruction that needs it, so that the loads of a step do not overlap.
#include "cuda/wavefront_lstm/block.h"

namespace gk::cuda {
namespace {

struct Arguments {
  WavefrontShape shape;
  WavefrontPlan plan;
  WavefrontForward directions[MAX_DIRECTIONS];
  void* activations;
  float* cells;
  bool even;  // units can be read and written in pairs
};

struct Regions {
  Region weights, h, c, rows;
  int64_t bytes;
};

template <class T>
__host__ __device__ int tap_steps(const WavefrontShape& l) {
  return ceil_div(l.hidden, STEP<T>);
}

template <class T>
__host__ __device__ Regions regions_of(const WavefrontShape& l, const WavefrontPlan& plan) {
  SharedLayout layout;
  Regions r;
  r.weights = layout.take<uint4>(static_cast<int64_t>(plan.groups) * plan.resident * 2 * WARP);
  r.h = layout.take<T>(2 * static_cast<int64_t>(plan.rows + 1) * row_stride<T>(tap_steps<T>(l)));
  r.c = layout.take<float>(static_cast<int64_t>(plan.rows) * unit_stride(plan.groups));
  r.rows = layout.take<uint32_t>(plan.rows);
  r.bytes = layout.bytes();
  return r;
}

template <class Math>
class LstmForwardBlock {
 public:
  using T = typename Math::T;

  __device__ LstmForwardBlock(const Arguments& a, const Regions& regions)
      : a_(a),
        l_(a.shape),
        plan_(a.plan),
        rank_(cluster_rank()),
        direction_index_(static_cast<int>(blockIdx.x) / plan_.cluster / plan_.slices),
        first_image_(static_cast<int>(blockIdx.x) / plan_.cluster % plan_.slices * plan_.images),
        images_(min(plan_.images, l_.batch - first_image_)),
        direction_(a.directions[direction_index_]),
        groups_(min(plan_.groups, ceil_div(l_.hidden, 8) - rank_ * plan_.groups)),
        stride_(row_stride<T>(tap_steps<T>(l_))),
        weights_(regions.weights,
                 static_cast<const uint4*>(direction_.packed) +
                     static_cast<int64_t>(rank_) * plan_.groups * plan_.steps * 2 * WARP,
                 plan_.steps, plan_.resident),
        h_(regions.h),
        c_(regions.c),
        rows_(regions.rows) {}

  __device__ __forceinline__ void run() {
    prepare();
    cluster_sync(plan_.cluster);
    for (int s = 0; s < step_count(l_); ++s) {
      const Span before = span_of(l_, s - 1), now = span_of(l_, s);
      const uint64_t live = live_tiles(plan_.rows, position_count(l_), images_, now);
      for_items<sizeof(T) == 2 ? 4 : 2>(
          live, groups_, [&](const auto& tiles, int group) { finish_tiles(s, before, now, tiles, group); });
      cluster_sync(plan_.cluster);
    }
  }

 private:
  static __device__ int min(int a, int b) { return a < b ? a : b; }

  // Weights, the rows' table, c0 for every row, and h: zero where no unit is, h0 in the row for outside.
  __device__ __forceinline__ void prepare() const {
    weights_.load(groups_);
    rows_.fill(plan_.rows, position_count(l_), images_);
    const int own = 8 * plan_.groups;
    for (int i = threadIdx.x; i < plan_.rows * own; i += THREADS)
      c_.put(i / own * unit_stride(plan_.groups) + i % own, state_at<T>(direction_.c0, rank_ * own + i % own, l_.hidden));
    const int outside = plan_.rows * stride_, both = 2 * (plan_.rows + 1) * stride_;
    for (int i = threadIdx.x; i < both; i += THREADS) {
      const int unit = i % ((plan_.rows + 1) * stride_) - outside;
      h_.put(i, unit < 0 ? from_float<T>(0.0f) : Math::operand(state_at<T>(direction_.h0, unit, l_.hidden)));
    }
  }

  template <int M>
  __device__ __forceinline__ void finish_tiles(int s, Span before, Span now, const int (&tiles)[M], int group) const {
    const int lane = threadIdx.x % WARP;
    const int local = group * 8 + lane % 4 * 2, unit = rank_ * 8 * plan_.groups + local, h = l_.hidden;

    // Two rows of each tile are this lane's. Their gates are loaded before the product, and used behind it.
    Pair<T> gates[M][2][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Row row = rows_.get(tiles[m] * TILE + lane / 4 + 8 * half);
        const bool live = now.has(row.position);
        const T* const from = static_cast<const T*>(direction_.gates.data) + offset_of(direction_.gates, s, row);
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          gates[m][half][gate] = {from_float<T>(0.0f), from_float<T>(0.0f)};
          if (live) gates[m][half][gate] = load_pair(from + gate * h, unit, h, a_.even);
        }
      }
    }

    float sums[M][4][4] = {};
    const int read = (s + 1) % 2 * (plan_.rows + 1) * stride_, write = s % 2 * (plan_.rows + 1) * stride_;
    for (int tap = 0; tap < l_.tap_count; ++tap) {
      int at[M];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const int row = tiles[m] * TILE + lane % 16, position = rows_.get(row).position;
        const bool inside = position != NO_POSITION && before.has(position + l_.taps[tap]);
        at[m] = read + (inside ? row + l_.taps[tap] : plan_.rows) * stride_ + lane / 16 * (STEP<T> / 2);
      }
      weights_.multiply_rows<Math>(sums, h_, at, group, tap * tap_steps<T>(l_), tap_steps<T>(l_));
    }

#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tiles[m] * TILE + lane / 4 + 8 * half;
        const Row at = rows_.get(row);
        if (!now.has(at.position)) continue;
        const Pair<float> c_before = c_.template get<Pair<float>>(row * unit_stride(plan_.groups) + local);
        float c[2] = {c_before.x, c_before.y}, hidden[2];
        Quad<T> active[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float x[4];
#pragma unroll
          for (int gate = 0; gate < 4; ++gate) {
            const Pair<T> pair = gates[m][half][gate];
            x[gate] = sums[m][gate][2 * half + e] + to_float(e == 0 ? pair.x : pair.y);
          }
          const float i = Math::sigmoid(x[0]), f = Math::sigmoid(x[1]), g = Math::tanh(x[2]), o = Math::sigmoid(x[3]);
          c[e] = f * c[e] + i * g;
          hidden[e] = o * Math::tanh(c[e]);
          active[e] = {{from_float<T>(i), from_float<T>(f), from_float<T>(g), from_float<T>(o)}};
        }
        c_.put(row * unit_stride(plan_.groups) + local, Pair<float>{c[0], c[1]});
        const Pair<T> operand{Math::operand(hidden[0]), Math::operand(hidden[1])};
        if (plan_.cluster == 1) {
          h_.put(write + row * stride_ + unit, operand);
        } else {
          for (int rank = 0; rank < plan_.cluster; ++rank) h_.put_to(rank, write + row * stride_ + unit, operand);
        }
        store(s, at, unit, c, hidden, active);
      }
    }
  }

  __device__ __forceinline__ int64_t offset_of(const Pixels& image, int s, Row row) const {
    const Place at = place_of(l_, direction_.mirrored, s, row.position);
    return (first_image_ + row.image) * image.stride_n + at.y * image.stride_h + at.x * image.stride_w;
  }

  // What leaves for global memory: hidden, and what backward needs.
  __device__ __forceinline__ void store(int s, Row row, int unit, const float (&c)[2], const float (&hidden)[2],
                                        const Quad<T> (&active)[2]) const {
    T* const to = static_cast<T*>(direction_.hidden.data) + offset_of(direction_.hidden, s, row);
    store_pair(to, unit, l_.hidden, a_.even, Pair<T>{from_float<T>(hidden[0]), from_float<T>(hidden[1])});
    if (!a_.cells) return;
    const Place at = place_of(l_, direction_.mirrored, s, row.position);
    const int64_t image = static_cast<int64_t>(direction_index_) * l_.batch + first_image_ + row.image;
    const int64_t first = ((image * l_.height + at.y) * l_.width + at.x) * l_.hidden;
    Quad<T>* const activations = static_cast<Quad<T>*>(a_.activations) + first + unit;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (unit + e < l_.hidden) activations[e] = active[e];
    }
    store_pair(a_.cells + first, unit, l_.hidden, l_.hidden % 2 == 0, Pair<float>{c[0], c[1]});
  }

  const Arguments& a_;
  const WavefrontShape& l_;
  const WavefrontPlan& plan_;
  const int rank_, direction_index_, first_image_, images_;
  const WavefrontForward& direction_;
  const int groups_, stride_;
  const Weights weights_;
  const Shared<T> h_;
  const Shared<float> c_;
  const RowTable rows_;
};

template <class Math>
__global__ void __launch_bounds__(THREADS, 1) wavefront_lstm_forward_kernel(const __grid_constant__ Arguments a) {
  LstmForwardBlock<Math>(a, regions_of<typename Math::T>(a.shape, a.plan)).run();
}

// Column 8 q + j of group g is gate q of unit 8 g + j; step k of a tap holds the next h of a row.
template <class Math>
__global__ void __launch_bounds__(THREADS) wavefront_lstm_forward_pack(const __grid_constant__ Arguments a) {
  using T = typename Math::T;
  const int h = a.shape.hidden, steps = tap_steps<T>(a.shape);
  for (int d = 0; d < a.shape.directions; ++d) {
    const T* const weight = static_cast<const T*>(a.directions[d].weight);
    pack_words(a.directions[d].packed, a.plan.packed_bytes, a.plan.steps, [&](int group, int step, int w, int column) {
      const int unit = group * 8 + column % 8, gate = column / 8, tap = step / steps;
      const T* const line = weight + (static_cast<int64_t>(tap) * 4 * h + gate * h + unit) * h;
      return word_of<Math>(step % steps, w, [&](int k) { return unit < h && k < h ? to_float(line[k]) : 0.0f; });
    });
  }
}

}  // namespace

// For the plan: what a division needs, of which `resident` is not yet decided.
WavefrontPlan forward_needs(const WavefrontShape& l, WavefrontPlan plan) {
  plan.groups = ceil_div(ceil_div(l.hidden, 8), plan.cluster);
  plan.columns = plan.groups;
  return by_math(l, [&](auto math) {
    using T = typename decltype(math)::T;
    plan.steps = l.tap_count * tap_steps<T>(l);
    plan.shared_bytes = regions_of<T>(l, plan).bytes;
    plan.packed_bytes = static_cast<int64_t>(plan.cluster) * plan.groups * plan.steps * 32 * WARP;
    return plan;
  });
}

const char* wavefront_lstm_forward(const WavefrontShape& shape, const WavefrontPlan& plan,
                                   const WavefrontForward* directions, float* saved, void* stream) {
  Arguments a{shape, plan, {}, saved, nullptr, shape.hidden % 2 == 0};
  const int64_t units = static_cast<int64_t>(shape.directions) * shape.batch * shape.height * shape.width * shape.hidden;
  if (saved) a.cells = saved + 4 * units;
  const int pair_bytes = shape.storage == Storage::float32 ? 8 : 4;
  for (int w = 0; w < shape.directions; ++w) {
    a.directions[w] = directions[w];
    for (const Pixels& p : {directions[w].gates, directions[w].hidden})
      a.even &= reinterpret_cast<uintptr_t>(p.data) % pair_bytes == 0 && (p.stride_n | p.stride_h | p.stride_w) % 2 == 0;
  }
  return by_math(shape, [&](auto math) {
    using Math = decltype(math);
    const int blocks = ceil_div(static_cast<int>(plan.packed_bytes / 16), THREADS);
    const char* const error =
        launch(wavefront_lstm_forward_pack<Math>, {blocks < 256 ? blocks : 256, THREADS, 1, 0}, stream, a);
    if (error) return error;
    return launch(wavefront_lstm_forward_kernel<Math>,
                  {plan.cluster * plan.slices * shape.directions, THREADS, plan.cluster, plan.shared_bytes}, stream, a);
  });
}

}  // namespace gk::cuda
