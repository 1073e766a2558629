// Direct forward pass of the masked convolution: y = act(masked convolution of x + bias), for every call.
//
// Tiling: a task is some rows of one image. Its pixels and their border are brought into scratch as
// [row][column][channel] (zero outside the image), so that every live tap of a pixel is a run of C floats at a fixed
// offset from the pixel, and taps side by side are one run. The product is then gemm_tile with pixels as rows and the
// taps as segments, against weights packed per panel of output channels; results are staged per panel in L1 and leave
// with bias and ReLU applied, transposed where y is NCHW. Dead taps are never packed and cost nothing.
//
// Traffic: x and y once from and to memory (border rows again per task); the task's scratch stays in L2 and is read
// once per panel, a panel (K * PANEL floats) streams from L1 or L2 at one register row per six multiply-adds.
//
// Bound: the multiply-add units (measured 85-90 % of peak).
#include "cpu/masked_conv/implementations.h"
#include "cpu/masked_conv/indirection.h"

namespace gk::GK_ISA::masked_conv {

Outcome direct_forward(const MaskedConvForward& args) {
  const MaskedConv& c = args.conv;
  const int threads = useful_threads(c, args.threads);
  const int64_t taps = c.full_taps(), C = c.in_channels;
  const MaskedGemm gemm = output_gemm(c, args.weight);
  const Tasks tasks = make_tasks(c, C, threads);

  ScratchLayout shared, own;
  const auto for_weights = shared.take<float>(packed_floats(gemm, taps));
  const auto for_bias = shared.take<float>(c.out_channels);
  const auto for_source = own.take<float>(bordered_pixels(c, tasks, tasks.columns) * C);
  const auto for_staging = own.take<float>(staged_pixels(tasks) * PANEL_MAX);
  const auto for_segments = own.take<Segment>((taps + 1) * most_segments(C));
  const Scratch scratch(shared, own, threads);
  if (!scratch.data()) return Outcome::no_memory;
  float* const weights = scratch.shared(for_weights);
  const float* const bias = prepare_output(args, scratch.shared(for_bias));

#pragma omp parallel num_threads(threads)
  {
    float* const source = scratch.own(for_source);
#pragma omp for
    for (int64_t p = 0; p < panel_count(c.out_channels); ++p)
      GK_BY_STORAGE(args.weight.storage, pack_panel, args.weight, gemm, c, p, weights);

#pragma omp for schedule(dynamic) nowait
    for (int64_t index = 0; index < tasks.count; ++index) {
      const Task task = tasks.at(c, index);
      const Region input = input_region(c, task.region);
      load_pixels({args.x, task.image, C, c.height, c.width, c.in_order, nullptr}, input, source);
      const int64_t pitch = input.columns(), base = c.reach_up() * pitch + c.reach_left();
      for (int64_t p = 0; p < panel_count(c.out_channels); ++p) {
        const MaskedPanel panel = masked_panel(gemm, p);
        const Indirection live = make_indirection(c, gemm, panel, base, pitch, scratch.own(for_segments));
        multiply_region(task.region, source, pitch, C, live, panel, weights + p * PANEL_MAX * (taps + 1) * C,
                        {args.y, task.image, panel.first, panel.columns, c.out_order, bias, args.relu},
                        scratch.own(for_staging));
      }
    }
  }
  return Outcome::done;
}

}  // namespace gk::GK_ISA::masked_conv
