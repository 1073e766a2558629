// Sampling programs on the CPU in float32: how sampler/sampler.cpp is called; sampler_records.h has the records.
#pragma once

#include <cstdint>

#include "cpu/core/isa.h"
#include "sampler_records.h"

namespace gk {

struct SamplerProgram {
  SamplerSizes sizes;
  const float* floats;
  const SamplerBuffer* buffers;
  int64_t buffer_count;
  const SamplerVector* vectors;
  int64_t vector_count;
  const SamplerPlace* places;
  int64_t place_count;
  const SamplerInstruction* instructions;
  const SamplerGroup* groups;
  const SamplerSpan* spans;
  const SamplerPhase* phases;  // the row's, then those of steps 0 .. colours
  int64_t most_segments, most_groups;
  bool has_attention;
};

struct SamplerCall {
  SamplerProgram program;
  SamplerRun run;
  const SamplerConstant *maps, *vectors;
  int threads;
  int64_t* undrawable;  // set to a sub-pixel whose logits are no distribution, where there is one; the run ends early
  // Called by the calling thread now and then with the number of rows that all images have finished; false ends the
  // run early.
  bool (*poll)(void* context, int64_t rows);
  void* context;
};

// A run that stops before every draw, for levels that somebody else decides on.
struct SamplerWalkCall {
  SamplerCall call;      // of one thread; nothing is `free`, a draw shows the model the level that stands in `levels`
  const uint8_t* known;  // [C, H, W]: sub-pixels at which it does not stop
  bool together;         // it stops once for all colours of a pixel
  float* parameters;     // at the place: [images, channels], or all predictions, [images, predictions, channels]
};

}  // namespace gk

// False when there is no memory.
GK_DECLARE_PER_ISA(bool, sampler_run, (const gk::SamplerCall& call))
// A walk at its begin; nullptr when there is no memory. The call is copied, what it points to is not.
GK_DECLARE_PER_ISA(void*, sampler_walk_begin, (const gk::SamplerWalkCall& call))
// Goes on to the next place, row, column, colour; false at the end. The levels of the last place have been filled in.
GK_DECLARE_PER_ISA(bool, sampler_walk_next, (void* walk, int64_t* place))
GK_DECLARE_PER_ISA(void, sampler_walk_end, (void* walk))
// Columns of a panel of weights, and lanes of a register: the last panel of a weight is a whole number of these wide.
GK_DECLARE_PER_ISA(void, sampler_panel, (int64_t* columns, int64_t* lanes))
