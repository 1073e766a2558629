// Forward pass of the masked convolution for NCHW results of a first layer, 1 or 3 channels to many, and of a last one,
// 1x1 to more.
//
//   y[o][pixel] = sum over k  weight[o][k] * patches[k][pixel],  k = the live taps of all channels, and a one for bias
//
// Tiling: rows of a tile are six output channels, its columns a panel of pixels, so tiles leave the registers for good,
// in lines of y. A task's lines are joined to one run of pixels, its patches packed panel by panel (1.6 KB for a 7x7
// mask on one channel, a task's in L2); output channels six at a time then take all panels in turn, so y is written
// in six streams. The six weights of a step stand side by side: they are read through one pointer and a tile, with only
// some 25 to 75 steps, begins without fetching six.
// Traffic: y once; patches are 1 / out_channels of the arithmetic. Bound: writing y for K of 25, multiply-adds for 75
// (measured 60 to 79 % of the peak of one thread, on a machine that others share).
// Tried without gain: all rows on some panels that stay in L1 before the next ones (3-12 % slower: y is then written in
// short runs to many places), tasks of half as much scratch again, prefetching the lines of y.
#include "cpu/masked_conv/implementations.h"
#include "cpu/masked_conv/packing.h"

namespace gk::GK_ISA::masked_conv {
namespace {

// Weights and bias of rows first .. first + rows - 1: [taps][in], then the centre's live channels (zero where a colour
// is not seen), then the bias, each [rows].
template <class T>
void pack_rows(const MaskedConvForward& args, int64_t centre, int64_t first, int64_t rows, float* packed) {
  const MaskedConv& c = args.conv;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t o = first + row, to = c.out_order ? c.out_order[o] : o;
    const T* const from = static_cast<const T*>(args.weight.data) + to * args.weight.stride_out;
    const auto weight = [&](int64_t tap, int64_t i) {
      return load_one(from + (c.in_order ? c.in_order[i] : i) * args.weight.stride_in + tap * args.weight.stride_tap);
    };
    float* out = packed + row;
    const auto put = [&](float v) {
      *out = v;
      out += rows;
    };
    for (int64_t t = 0; t < c.full_taps(); ++t)
      for (int64_t i = 0; i < c.in_channels; ++i) put(weight(t, i));
    for (int64_t i = 0; i < centre; ++i) put(i < c.centre_end[o] ? weight(c.full_taps(), i) : 0.0f);
    put(args.bias ? load_one(static_cast<const T*>(args.bias) + to) : 0.0f);
  }
}

// Where the values of each k stand, from the place of the pixel in the first plane.
void patch_offsets(const MaskedConv& c, int64_t centre, int64_t pitch, int64_t area, int64_t* offsets) {
  for (int64_t t = 0; t <= c.full_taps(); ++t) {
    const int64_t dy = (t / c.kernel_w - c.kernel_h / 2) * c.dilation_h;
    const int64_t dx = (t % c.kernel_w - c.kernel_w / 2) * c.dilation_w;
    for (int64_t i = 0; i < (t < c.full_taps() ? c.in_channels : centre); ++i)
      *offsets++ = i * area + dy * pitch + dx;
  }
}

// patches[k][width] of pixels first .. first + count - 1 of the task. Whole vectors are moved from each line they
// touch, and what is too much is overwritten by the next line or the next k: reads and writes VL - 1 floats too far.
void pack_patches(int64_t first, int64_t count, int64_t columns, const float* source, int64_t pitch,
                         const int64_t* offsets, int64_t length, int64_t width, float* patches) {
  struct { int64_t lane; const float* from; } vectors[PANEL_MAX];
  int64_t vector_count = 0;
  for (int64_t lane = 0, run; lane < count; lane += run) {
    const int64_t y = (first + lane) / columns, x = (first + lane) % columns;
    run = min64(columns - x, count - lane);
    for (int64_t j = 0; j < run; j += VL) vectors[vector_count++] = {lane + j, source + y * pitch + x + j};
  }
  for (int64_t k = 0; k + 1 < length; ++k)
    for (int64_t i = 0; i < vector_count; ++i)
      store(patches + k * width + vectors[i].lane, load(vectors[i].from + offsets[k]));
  for (int64_t j = 0; j < width; j += VL) store(patches + (length - 1) * width + j, Vec{} + 1.0f);
}

// y of MR output channels at `pixels` pixels, to[row][pixel]: rows[k][MR] times patches[k][NR * VL], panel after panel.
template <int MR, int NR>
void multiply_patches(const float* rows, const float* patches, int64_t length, int64_t pixels, bool relu,
                      float* const* to) {
  for (int64_t p = 0; p < pixels; p += NR * VL) {
    Vec acc[MR][NR] = {};
    GK_TWICE for (int64_t k = 0; k < length; ++k, patches += NR * VL) {
      Vec b[NR];
      GK_UNROLL for (int j = 0; j < NR; ++j) b[j] = load(patches + j * VL);
      GK_UNROLL for (int j = 0; j < NR * VL; j += 16) __builtin_prefetch(patches + PREFETCH_STEPS * NR * VL + j);
      GK_UNROLL for (int i = 0; i < MR; ++i) {
        const Vec a = broadcast(rows[k * MR + i]);
        GK_UNROLL for (int j = 0; j < NR; ++j) acc[i][j] += a * b[j];
      }
    }
    GK_UNROLL for (int i = 0; i < MR; ++i)
      GK_UNROLL for (int j = 0; j < NR; ++j) {
        const int64_t at = p + j * VL;
        Vec v = acc[i][j];
        if (relu) v = v < Vec{} ? Vec{} : v;  // NaN stays NaN, as in torch
        if (NR == NR_MAX || at + VL <= pixels)  // the widest panels are whole
          store(to[i] + at, v);
        else
          memcpy(to[i] + at, &v, (pixels - at) * sizeof(float));
      }
  }
}

using PatchesFunction = void (*)(const float*, const float*, int64_t, int64_t, bool, float* const*);

template <int NR>
PatchesFunction patches_function(int64_t rows) {
  static constexpr PatchesFunction table[MR_MAX] = {multiply_patches<1, NR>, multiply_patches<2, NR>,
                                                    multiply_patches<3, NR>, multiply_patches<4, NR>,
                                                    multiply_patches<5, NR>, multiply_patches<6, NR>};
  return table[rows - 1];
}

// y of a task from its packed patches, six output channels at a time.
void multiply_task(const MaskedConvForward& args, const Task& task, const float* weights, const float* patches,
                   int64_t length) {
  const MaskedConv& c = args.conv;
  const int64_t pixels = task.region.pixels(), whole = pixels / PANEL_MAX * PANEL_MAX;
  float* const y = static_cast<float*>(const_cast<void*>(args.y.data)) + task.image * args.y.stride_n +
                   task.region.y0 * args.y.stride_h + task.region.x0;
  for_row_tiles(c.out_channels, [&](int64_t first, int64_t rows) {
    float *to[MR_MAX], *rest[MR_MAX];
    for (int64_t i = 0; i < rows; ++i) {
      to[i] = y + (c.out_order ? c.out_order[first + i] : first + i) * args.y.stride_c;
      rest[i] = to[i] + whole;
    }
    const float* const packed = weights + first * length;
    patches_function<NR_MAX>(rows)(packed, patches, length, whole, args.relu, to);
    patches_function<1>(rows)(packed, patches + whole * length, length, pixels - whole, args.relu, rest);
  });
}

}  // namespace

// Few channels to any number of them, or a 1x1 to more: the patches must be little work beside the product. The lines
// of y must follow each other.
bool first_layer_nchw_suits(const MaskedConvForward& args) {
  const MaskedConv& c = args.conv;
  const bool widens = c.full_taps() == 0 && c.in_channels < 256 && 2 * c.in_channels <= c.out_channels &&
                      c.centre_end[0] == c.in_channels;  // colours have an order: then everyone sees everything
  return (c.full_taps() > 0 ? c.in_channels < 16 : widens) && args.y.storage == Storage::float32 &&
         args.y.stride_w == 1 && args.y.stride_c != 1 && args.y.stride_h == c.width;
}

Outcome first_layer_nchw_forward(const MaskedConvForward& args) {
  const MaskedConv& c = args.conv;
  const int threads = useful_threads(c, args.threads);
  int64_t centre = 0;  // channels that anyone sees at the centre
  for (int64_t o = 0; o < c.out_channels; ++o) centre = max64(centre, c.centre_end[o]);
  const int64_t length = c.full_taps() * c.in_channels + centre + 1;
  Tasks tasks = make_tasks(c, c.in_channels + length, threads);
  if (tasks.column_blocks > 1)  // a cut line is no run of y: one whole line a task instead
    tasks = {1, c.width, c.height, 1, c.batch * c.height};

  ScratchLayout shared, own;
  const auto for_weights = shared.take<float>(c.out_channels * length);
  const auto for_source = own.take<float>(bordered_pixels(c, tasks, tasks.columns) * c.in_channels + PANEL_MAX + IO);
  const auto for_patches =
      own.take<float>(ceil_div(tasks.rows * tasks.columns, PANEL_MAX) * PANEL_MAX * length + PANEL_MAX);
  const auto for_offsets = own.take<int64_t>(length);
  const Scratch scratch(shared, own, threads);
  if (!scratch.data()) return Outcome::no_memory;
  want_huge_pages(args.y, c.batch * c.out_channels * c.height * c.width);
  float* const weights = scratch.shared(for_weights);
  for_row_tiles(c.out_channels, [&](int64_t first, int64_t rows) {
    GK_BY_STORAGE(args.weight.storage, pack_rows, args, centre, first, rows, weights + first * length);
  });

#pragma omp parallel num_threads(threads)
  {
    float *const source = scratch.own(for_source), *const patches = scratch.own(for_patches);
    int64_t* const offsets = scratch.own(for_offsets);

#pragma omp for schedule(dynamic) nowait
    for (int64_t index = 0; index < tasks.count; ++index) {
      const Task task = tasks.at(c, index);
      const Region input = input_region(c, task.region);
      load_planes({args.x, task.image, c.in_channels, c.height, c.width, c.in_order, nullptr}, input, source);
      const int64_t pitch = input.columns(), pixels = task.region.pixels(), whole = pixels / PANEL_MAX * PANEL_MAX;
      patch_offsets(c, centre, pitch, input.pixels(), offsets);
      // What is left after whole panels comes in panels of one vector.
      for (int64_t p = 0, width; p < pixels; p += width) {
        width = p < whole ? PANEL_MAX : VL;
        pack_patches(p, min64(width, pixels - p), task.region.columns(),
                     source + c.reach_up() * pitch + c.reach_left(), pitch, offsets, length, width,
                     patches + p * length);
      }
      multiply_task(args, task, weights, patches, length);
    }
  }
  return Outcome::done;
}

}  // namespace gk::GK_ISA::masked_conv
