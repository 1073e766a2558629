// Sampling programs on a GPU: images are drawn from the first pixel to the last in one launch.
//
// Tiling: a block takes a few images (as many as let all multiprocessors work) through the whole program, instruction
// after instruction, with a block barrier between: no block waits for another, nothing returns to the host. In the row
// phase rows of the products are all columns of all images of the block, on the tensor cores (sampler/row.h); at a
// pixel the images, with the reduction spread over lanes (sampler/pixel.h). All is float32, so levels are those of the
// other executors.
//
// Memory: the pixel phase's weights are read once for every pixel and up to four images: those that shared memory has
// room for from there, the others from L2. What images keep (rings of the few rows that are still read) lies in global
// memory, of which a block touches a few hundred KB at a time: L2.
//
// It is bound by latency: two barriers, a gather from L2 and a product for each of a pixel's instructions. PixelCNN
// of 7 layers, h = 64, 256 levels, 28 x 28, 128 images, one in each block of an H100, a pixel:
//   weights   308 KB, 220 KB of them resident: 1700 clocks at 128 bytes, and 88 KB from L2 at ~30 bytes: 2900 clocks
//   the rest  9 sums and a draw, each ~600 clocks of latency from the gather to the barrier: 6000 clocks
// about 11,000 clocks or 6 µs, 5 ms for the image; the row phase, 68 million multiply-adds, adds some 10 %. The floor
// over all multiprocessors (float32 multiply-adds alone) is 0.6 ms. A count, not a measurement: one H100 has run its
// tests (occupancy 25 %, one block a multiprocessor) but has not timed it, and the same kind of count was too low by a
// factor of six for the front of a recurrence.
// In a small batch one image is one block's work: blocks that share it would meet after every instruction.
#include "cuda/sampler/across.h"
#include "cuda/sampler/attention.h"
#include "cuda/sampler/block.h"
#include "cuda/sampler/draw.h"
#include "cuda/sampler/pixel.h"
#include "cuda/sampler/row.h"

namespace gk::cuda {
namespace {

// Mixtures, attention and the like leave room for half as many threads: they take more than 128 registers.
constexpr int most_threads(bool rich) { return rich ? 256 : 512; }
constexpr int LEAST_WARPS = 4;

// --- one by one: columns [x0, x1) of all images ---

template <bool RICH>
__device__ __forceinline__ void pointwise(const SamplerBlock& b, const DeviceInstruction& in, int x0, int x1) {
  const auto function = static_cast<SamplerFunction>(in.function);
  const Standing target = b.place(in.places), first = b.place(in.places + 1);
  const int columns = x1 - x0, count = in.rows * columns * b.images;
  for (int i = b.thread; i < count; i += b.threads) {
    const int n = i % in.rows, x = x0 + i / in.rows % columns, image = i / in.rows / columns;
    const auto channels = b.channels(in, n);
    const float one = b.at(first, image, x)[channels.operand[0]];
    float* const to = b.own(target, image, x) + channels.value;
    if (in.operands == 1) {
      *to = unary(b, in, one);
      continue;
    }
    const float other = b.at(b.place(in.places + 2), image, x)[channels.operand[1]];
    if constexpr (RICH) {
      if (in.operands > 2) {
        *to = ternary(function, one, other, b.at(b.place(in.places + 3), image, x)[channels.operand[2]]);
        continue;
      }
    }
    *to = binary(function, one, other);
  }
}

// A warp for a row of the table.
__device__ __forceinline__ void lookup(const SamplerBlock& b, const DeviceInstruction& in, int x0, int x1) {
  const Standing target = b.place(in.places), source = b.place(in.places + 1);
#pragma unroll 1
  for (int i = b.warp; i < (x1 - x0) * b.images; i += b.warps) {
    const int x = x0 + i % (x1 - x0), image = i / (x1 - x0);
    const float number = *b.at(source, image, x), last = static_cast<float>(in.number - 1);
    const int row = number > 0.0f ? static_cast<int>(number < last ? number : last) : 0;
    const float* const from = b.call.floats + in.weight + row * in.rows;
    float* const to = b.own(target, image, x);
#pragma unroll 1
    for (int n = b.lane; n < in.rows; n += WARP) to[n] = from[n];
  }
}

__device__ __forceinline__ void cell(const SamplerBlock& b, const DeviceInstruction& in, int x0, int x1) {
  const Standing hidden = b.place(in.places), state = b.place(in.places + 1), memory = b.place(in.places + 2);
  const Standing previous = b.place(in.places + 3), gates = b.place(in.places + 4);
  const int columns = x1 - x0, count = in.rows * columns * b.images, units = in.number;
  for (int i = b.thread; i < count; i += b.threads) {
    const int n = i % in.rows, x = x0 + i / in.rows % columns, image = i / in.rows / columns;
    const int unit = b.channels(in, n).value;
    const float* const gate = b.at(gates, image, x) + unit;
    const float input = MathFloat32::sigmoid(gate[0]), forget = MathFloat32::sigmoid(gate[units]);
    const float fresh = MathFloat32::tanh(gate[2 * units]), open = MathFloat32::sigmoid(gate[3 * units]);
    const float c = forget * b.at(previous, image, x)[unit] + input * fresh, h = open * MathFloat32::tanh(c);
    b.own(memory, image, x)[unit] = c;
    b.own(hidden, image, x)[unit] = h;
    b.own(state, image, x)[unit] = h;
  }
}

// --- the interpreter ---

// What few programs have, at columns [x0, x1); whether the instruction is one of these.
__device__ __forceinline__ bool seldom(const SamplerBlock& b, const DeviceInstruction& in, int y, int x0, int x1) {
  switch (static_cast<SamplerKind>(in.kind)) {
    case SamplerKind::lookup: lookup(b, in, x0, x1); return true;
    case SamplerKind::across: across(b, in, x0, x1); return true;
    case SamplerKind::attention: attention(b, in, y, x0, x1); return true;
    default: return false;
  }
}

template <bool RICH>
__device__ __forceinline__ void at_pixel(const SamplerBlock& b, const DeviceInstruction& in, int y, int x) {
  switch (static_cast<SamplerKind>(in.kind)) {
    case SamplerKind::affine: pixel_affine(b, in, x); break;
    case SamplerKind::pointwise: pointwise<RICH>(b, in, x, x + 1); break;
    case SamplerKind::cell: cell(b, in, x, x + 1); break;
    default:
      if constexpr (RICH) {
        if (seldom(b, in, y, x, x + 1)) break;
      }
      draw<RICH>(b, in, y, x);
  }
  __syncthreads();
}

template <bool RICH>
__device__ __forceinline__ void in_row(const SamplerBlock& b, const DeviceInstruction& in, int y) {
  switch (static_cast<SamplerKind>(in.kind)) {
    case SamplerKind::affine: row_affine(b, in); break;
    case SamplerKind::pointwise: pointwise<RICH>(b, in, in.first_column, in.last_column); break;
    case SamplerKind::cell: cell(b, in, in.first_column, in.last_column); break;
    default:  // a scan
      if constexpr (RICH) {
        if (seldom(b, in, y, in.first_column, in.last_column)) break;
      }
      for (int x = in.last_column - 1; x >= in.first_column; --x)
        for (int part = in.body; part < in.body + in.count; ++part) at_pixel<RICH>(b, b.instruction(part), y, x);
  }
  __syncthreads();
}

// RICH: whether the program has instructions that few have. A kernel for either: with all of them in one, usual
// programs would have half as many threads.
template <bool RICH>
__global__ void __launch_bounds__(most_threads(RICH), 1)
    sampler_walk_kernel(const __grid_constant__ SamplerLaunch call) {
  const SamplerBlock b(call, regions_of(call.shape, call.division));
  b.load();
  for (int y = 0; y <= call.last_row; ++y) {
    b.start_row(y);
    __syncthreads();
    const Pair<int> row = b.phase(0);
    for (int k = row.x; k < row.y; ++k) {
      const DeviceInstruction in = b.instruction(k);
      if (y >= in.first_row) in_row<RICH>(b, in, y);
    }
    const bool last_row = y == call.last_row;
    const int width = last_row ? call.last_column + 1 : call.shape.grid_width;
    for (int x = 0; x < width; ++x) {
      const int last_step = last_row && x == call.last_column ? call.last_colour : call.shape.colours;
      for (int step = 0; step <= last_step; ++step) {
        const Pair<int> phase = b.phase(1 + step);
        for (int k = phase.x; k < phase.y; ++k) {
          const DeviceInstruction in = b.instruction(k);
          if (x >= in.first_column && x < in.last_column && y >= in.first_row) at_pixel<RICH>(b, in, y, x);
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace

// As few images in a block as let all multiprocessors work, in as few waves as there must be; the weights have the rest
// of shared memory.
SamplerDivision divide_sampler(const SamplerShape& shape, int batch, const SamplerLimits& limits) {
  SamplerDivision d = {};
  int warps = LEAST_WARPS;
  const int most_warps = most_threads(shape.rich) / WARP;
  while (warps < shape.most_groups && warps < most_warps) warps *= 2;
  d.threads = warps * WARP;
  const int waves = ceil_div(batch, SAMPLER_MAX_IMAGES * limits.multiprocessors);
  for (d.images = ceil_div(batch, waves * limits.multiprocessors); d.images >= 1; --d.images) {
    d.slices = ceil_div(batch, d.images);
    d.shared_bytes = regions_of(shape, d).bytes;
    d.fits = d.shared_bytes <= limits.shared_bytes;
    if (!d.fits) continue;
    const int64_t left = (limits.shared_bytes - d.shared_bytes) / 16 * QUAD;
    d.resident = left < shape.pixel_weights ? static_cast<int>(left) : shape.pixel_weights / QUAD * QUAD;
    d.shared_bytes = regions_of(shape, d).bytes;
    break;
  }
  return d;
}

const char* launch_sampler(const SamplerLaunch& call, void* stream) {
  const SamplerDivision& d = call.division;
  const auto kernel = call.shape.rich ? sampler_walk_kernel<true> : sampler_walk_kernel<false>;
  return launch(kernel, {d.slices, d.threads, 1, d.shared_bytes}, stream, call);
}

}  // namespace gk::cuda
