// Sampling programs on a GPU: arguments of the launch, and the division of a batch among blocks.
// sampler_records.h has the records as they arrive, sampler/sampler.cu the kernel.
#pragma once

#include <cstdint>

#include "sampler_records.h"

namespace gk::cuda {

constexpr int SAMPLER_MAX_MAPS = 16;
constexpr int SAMPLER_MAX_IMAGES = 16;  // of a block
constexpr int SAMPLER_MAX_LEVELS = 65536;
constexpr int SAMPLER_FEW_LEVELS = 256;
constexpr int SAMPLER_MAX_COMPONENTS = 128;  // of a mixture
constexpr int SAMPLER_MAX_HEAD = 128;        // channels of a head of attention
constexpr int SAMPLER_SEGMENT = 32;  // reductions of a segment at most, and none reaches beyond a multiple of it

// gk::SamplerInstruction, as blocks keep it in shared memory. `weight` counts floats of the pixel phase's weights, or,
// in an affine instruction of the row phase, of `floats`, as `bias` does. A row of the pixel phase's weights is
// `reductions` filled up to whole quads, then a quad with the bias; `lanes` of a warp share it.
struct alignas(16) DeviceInstruction {
  int kind, first_row, first_column, last_column;
  int function, parameters, accumulate, lanes;
  int places, operands, segments, spans;
  int span_count, rows, reductions, weight;  // rows: of the weight, or channels
  int bias, body, count, number;
};

// A place at row y, column x of an image: base + (y + dy mod rows) * row_stride + x * column_stride, in the image's own
// memory or that of a map. A segment has `span`: its first reduction << 6 | its length.
struct alignas(16) DevicePlace {
  int base, dy, rows, row_stride;
  int column_stride, external, span, unused;
};

// gk::SamplerSpan; `steps` has a bit for each operand.
struct alignas(16) DeviceSpan {
  int at, length, channel, operand0;
  int operand1, operand2, operand3, steps;
};

// A program's sizes. `tables` on the device holds instructions, spans, phases (pairs of first and last, filled up to
// whole quads) and places, in this order.
struct SamplerShape {
  int height, width, grid_width, colours, levels;
  int channels, predictions, components;  // of what a level is drawn from
  int image_floats;
  int table;  // of levels, in `floats`
  int instructions, spans, places;
  int pixel_weights;   // floats
  int most_columns;    // of a pixel phase's weight, without the bias
  int most_groups;     // of rows that a warp multiplies at once
  int rich;            // whether it has a mixture, many levels, or instructions that few programs have
};

struct SamplerLimits {
  int multiprocessors;
  int64_t shared_bytes;  // that one block can have
};

// A block draws `images` images from the first pixel to the last.
struct SamplerDivision {
  bool fits;
  int images, slices, threads;
  int resident;          // floats of the pixel phase's weights that stay in shared memory: the first ones
  int64_t shared_bytes;  // of a block; where it does not fit, what it would need at least
};

SamplerDivision divide_sampler(const SamplerShape& shape, int batch, const SamplerLimits& limits);

struct SamplerLaunch {
  SamplerShape shape;
  SamplerDivision division;
  const int* tables;
  const float *weights, *floats;
  float* memory;  // [images, image_floats]: zero, or what is read outside of a value, and the vectors
  SamplerConstant maps[SAMPLER_MAX_MAPS];
  int images;
  int32_t* levels;         // [images, C, H, W], read where known, written where free
  const uint8_t* free;     // the same shape
  const double* uniforms;  // the same shape
  float* logits;           // [images, channels, predictions, H, W], or nullptr
  double temperature;
  int top_k;               // 0 for all
  int last_row, last_column, last_colour;
  int64_t* undrawable;     // set to a sub-pixel whose logits are no distribution, where there is one
};

// nullptr, or what went wrong.
const char* launch_sampler(const SamplerLaunch& call, void* stream);

}  // namespace gk::cuda
