// Runs a sampling program on the CPU in float32. See sampler/sampler.cpp for how it works, sampler_records.h for the records.
#pragma once

#include <cstdint>

#include "cpu/core/isa.h"
#include "sampler_records.h"

namespace gk {

struct SamplerProgram {
  int64_t height, width, grid_width, colours, levels;
  int64_t image_floats;  // what an image keeps
  int64_t table;         // in `floats`: [levels]
  const float* floats;
  const SamplerBuffer* buffers;
  int64_t buffer_count;
  const SamplerPlace* places;
  int64_t place_count;
  const SamplerInstruction* instructions;
  const SamplerGroup* groups;
  const SamplerRun* runs;
  const SamplerPhase* phases;  // the row's, then those of steps 0 .. colours
  int64_t most_segments, most_groups;
};

// A constant: one for each image, or image_stride 0. A vector is copied to `offset` of the image's memory.
struct SamplerConstant {
  const float* data;
  int64_t image_stride, offset, length;
};

struct SamplerCall {
  SamplerProgram program;
  int64_t images;
  uint8_t* levels;         // [images, C, H, W], read where known, written where free
  const uint8_t* free;     // the same shape
  const double* uniforms;  // the same shape
  float* logits;           // [images, levels, C, H, W], or nullptr
  double temperature;
  int64_t top_k;           // 0 for all
  int64_t last_row, last_column, last_colour;
  const SamplerConstant *maps, *vectors;
  int64_t vector_count;
  int threads;
  int64_t* undrawable;  // set to a sub-pixel whose logits are no distribution, where there is one; the run ends early
  // Called by the calling thread now and then with the number of rows that all images have finished; false ends the
  // run early.
  bool (*poll)(void* context, int64_t rows);
  void* context;
};

}  // namespace gk

// False when there is no memory.
GK_DECLARE_PER_ISA(bool, sampler_run, (const gk::SamplerCall& call))
// Columns of a panel of weights, and lanes of a register: the last panel of a weight is a whole number of these wide.
GK_DECLARE_PER_ISA(void, sampler_panel, (int64_t* columns, int64_t* lanes))
