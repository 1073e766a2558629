// Forward pass of the masked convolution for few channels, by patches gathered in rows (im2row).
//
// Tiling: tasks, packed weights and stores as in masked_conv/direct.cpp. The live taps of a pixel, runs so short that
// ending one costs as much as summing it, are gathered into one run, for some 64 pixels at a time. All panels then go
// over these, so that y is written from front to back.
//
// Bound: writing y for the first layer of a network, where C is 1 or 3.
#include "cpu/masked_conv/implementations.h"
#include "cpu/masked_conv/indirection.h"

namespace gk::GK_ISA::masked_conv {
namespace {

constexpr int64_t PATCH_PIXELS = 64;

// The taps of every pixel of the region side by side: [pixel][sum of their lengths]. Reads and writes up to IO - 1
// floats too far.
void gather_patches(const Region& region, const float* source, int64_t pitch, int64_t channels, const Indirection& taps,
                    float* patches) {
  for (int64_t y = 0; y < region.rows(); ++y)
    for (int64_t x = 0; x < region.columns(); ++x)
      for (int64_t s = 0; s < taps.count; ++s) {
        const float* from = source + (y * pitch + x) * channels + taps.segments[s].offset;
        for (int64_t k = 0; k < taps.segments[s].length; k += IO) store_block(patches + k, load_block(from + k));
        patches += taps.segments[s].length;
      }
}

}  // namespace

bool im2row_suits(const MaskedConvForward& args) { return args.conv.in_channels < 16 && args.conv.full_taps() > 0; }

Outcome im2row_forward(const MaskedConvForward& args) {
  const MaskedConv& c = args.conv;
  const int threads = useful_threads(c, args.threads);
  const int64_t taps = c.full_taps(), C = c.in_channels, patch = (taps + 1) * C;
  const MaskedGemm gemm = output_gemm(c, args.weight);
  const Tasks tasks = make_tasks(c, C, threads);
  const int64_t patch_lines = max64(1, PATCH_PIXELS / tasks.columns);

  ScratchLayout shared, own;
  const auto for_weights = shared.take<float>(packed_floats(gemm, taps));
  const auto for_bias = shared.take<float>(c.out_channels);
  const auto for_source = own.take<float>(bordered_pixels(c, tasks, tasks.columns) * C + IO);
  const auto for_patches = own.take<float>(patch_lines * tasks.columns * patch + IO);
  const auto for_staging = own.take<float>(staged_pixels(tasks) * PANEL_MAX);
  const auto for_segments = own.take<Segment>((taps + 1) * most_segments(C));
  const Scratch scratch(shared, own, threads);
  if (!scratch.data()) return Outcome::no_memory;
  float* const weights = scratch.shared(for_weights);
  const float* const bias = prepare_output(args, scratch.shared(for_bias));

#pragma omp parallel num_threads(threads)
  {
    float *const source = scratch.own(for_source), *const patches = scratch.own(for_patches);
    Segment* const segments = scratch.own(for_segments);
#pragma omp for
    for (int64_t p = 0; p < panel_count(c.out_channels); ++p)
      GK_BY_STORAGE(args.weight.storage, pack_panel, args.weight, gemm, c, p, weights);

#pragma omp for schedule(dynamic) nowait
    for (int64_t index = 0; index < tasks.count; ++index) {
      const Task task = tasks.at(c, index);
      const Region input = input_region(c, task.region);
      load_pixels({args.x, task.image, C, c.height, c.width, c.in_order, nullptr}, input, source);
      const int64_t pitch = input.columns(), base = c.reach_up() * pitch + c.reach_left();
      for (int64_t y = task.region.y0; y < task.region.y1; y += patch_lines) {
        const Region lines{y, min64(y + patch_lines, task.region.y1), task.region.x0, task.region.x1};
        const Indirection all = make_indirection(c, gemm, {{}, 0, C}, base, pitch, segments);
        gather_patches(lines, source + (y - task.region.y0) * pitch * C, pitch, C, all, patches);
        for (int64_t p = 0; p < panel_count(c.out_channels); ++p) {
          const MaskedPanel panel = masked_panel(gemm, p);
          const Indirection run{segments, cut_segment({0, taps * C + panel.hi}, segments)};
          multiply_region(lines, patches, lines.columns(), patch, run, panel, weights + p * PANEL_MAX * patch,
                          {args.y, task.image, panel.first, panel.columns, c.out_order, bias, args.relu},
                          scratch.own(for_staging));
        }
      }
    }
  }
  return Outcome::done;
}

}  // namespace gk::GK_ISA::masked_conv
