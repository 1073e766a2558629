// Direct gradients of the masked convolution: input, weight and bias in one pass over grad_y and x.
//
// Tiling: tasks as in the forward pass. For each, grad_y (zeroed where the ReLU was off) comes into scratch as
// [row][column][channel] with the border that the mirrored taps reach, x as [channel][row][column] with the forward
// border.
//   grad_x       gemm_tile, rows = pixels, segments = mirrored taps, panels = input channels.
//   grad_weight  gemm_tile, rows = (tap, input channel) planes of x shifted by the tap, segments = lines of the task,
//                panels = output channels of grad_y. Sums of a task are added to the thread's own [K][O] buffer, and
//                the buffers are added in thread order at the end: the result depends on the thread count alone.
//   grad_bias    summed while the panels of grad_y are packed.
// Traffic: grad_y (and y), x and grad_x once; scratch in L2; a panel of grad_y (task pixels * PANEL floats) in L1.
// Bound: the multiply-add units. Short lines cost most: a segment ends every W steps of grad_weight.
#include "cpu/masked_conv/gradient.h"
#include "cpu/masked_conv/implementations.h"
#include "cpu/masked_conv/indirection.h"

namespace gk::GK_ISA::masked_conv {
namespace {

// Packs a panel of the task's grad_y as [pixel][panel.width()] and adds its sum over the pixels to `bias`.
void pack_gradient_panel(const Region& region, const float* source, int64_t pitch, int64_t channels,
                         const Panel& panel, float* packed, float* bias) {
  Vec sum[NR_MAX] = {};
  for (int64_t y = 0; y < region.rows(); ++y)
    for (int64_t x = 0; x < region.columns(); ++x) {
      const float* from = source + (y * pitch + x) * channels + panel.first;
      if (panel.columns == panel.width()) {
        for (int j = 0; j < panel.nr; ++j) store(packed + j * VL, load(from + j * VL));
      } else {
        for (int64_t j = 0; j < panel.width(); ++j) packed[j] = j < panel.columns ? from[j] : 0.0f;
      }
      for (int j = 0; j < panel.nr; ++j) sum[j] += load(packed + j * VL);
      packed += panel.width();
    }
  for (int j = 0; j < panel.nr; ++j) store(bias + j * VL, load(bias + j * VL) + sum[j]);
}

// Adds the task's part of grad_weight for one panel: sums[tap * C + channel][column].
void accumulate_weight(const MaskedConv& c, const Region& region, const float* planes, int64_t pitch, int64_t area,
                       const MaskedPanel& panel, const float* gradient, Segment* lines, float* sums,
                       int64_t sums_stride) {
  int64_t line_count = 0;
  if (pitch == region.columns()) {
    line_count = cut_segment({0, region.pixels()}, lines);
  } else {
    for (int64_t y = 0; y < region.rows(); ++y)
      line_count += cut_segment({y * pitch, region.columns()}, lines + line_count);
  }
  const int64_t C = c.in_channels, base = c.reach_up() * pitch + c.reach_left();
  int64_t tap = 0, channel = 0;
  for_row_tiles(c.full_taps() * C + panel.hi, [&](int64_t first, int64_t count) {
    const float* rows[MR_MAX];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t dy = (tap / c.kernel_w - c.kernel_h / 2) * c.dilation_h;
      const int64_t dx = (tap % c.kernel_w - c.kernel_w / 2) * c.dilation_w;
      rows[i] = planes + channel * area + base + dy * pitch + dx;
      if (++channel < C) continue;
      channel = 0;
      ++tap;
    }
    tile_function(TileMode::add, static_cast<int>(count), panel.nr)(
        rows, lines, line_count, gradient, sums + first * sums_stride, sums_stride);
  });
}

class DirectBackward {
 public:
  explicit DirectBackward(const MaskedConvBackward& args)
      : args_(args),
        c_(args.conv),
        threads_(useful_threads(c_, args.threads)),
        to_x_(input_gradient_gemm(c_, args.weight)),
        to_y_(output_gemm(c_, args.weight)),
        tasks_(make_tasks(c_, c_.out_channels + (needs_weight(args_) ? c_.in_channels : 0), threads_)),
        sums_(args, (c_.full_taps() + 1) * c_.in_channels, own_) {
    const int64_t pixels = bordered_pixels(c_, tasks_, tasks_.columns), rows_max = tasks_.rows + c_.reach_up();
    const int64_t panel_floats = tasks_.rows * tasks_.columns * PANEL_MAX;
    weights_ = shared_.take<float>(needs_x(args_) ? packed_floats(to_x_, c_.full_taps()) : 0);
    gradient_ = own_.take<float>(pixels * c_.out_channels);
    planes_ = own_.take<float>(needs_weight(args_) ? pixels * c_.in_channels : 0);
    staging_ = own_.take<float>(panel_floats);
    packed_ = own_.take<float>(panel_floats);
    segments_ = own_.take<Segment>(max64((c_.full_taps() + 1) * most_segments(c_.out_channels),
                                         rows_max * most_segments(tasks_.columns)));
  }

  Outcome run() { return run_backward(*this, args_, tasks_, sums_, shared_, own_, threads_); }

  void pack_weights(int64_t p, const Scratch& scratch) const {
    GK_BY_STORAGE(args_.weight.storage, pack_panel, args_.weight, to_x_, c_, p, scratch.shared(weights_));
  }
  bool refused() const { return false; }

  void run_task(const Task& task, const Scratch& scratch) const {
    // The border is for grad_x alone.
    const Region below = needs_x(args_) ? gradient_region(c_, task.region) : task.region;
    load_pixels({args_.grad_y, task.image, c_.out_channels, c_.height, c_.width, c_.out_order,
                 args_.relu ? &args_.y : nullptr},
                below, scratch.own(gradient_));
    if (needs_x(args_)) input_gradient(task, below.columns(), scratch);
    if (needs_weight(args_) || args_.grad_bias) add_weight_gradient(task, below, scratch);
  }

  void input_gradient(const Task& task, int64_t pitch, const Scratch& scratch) const {
    const int64_t panel_floats = PANEL_MAX * (c_.full_taps() + 1) * c_.out_channels;
    for (int64_t p = 0; p < panel_count(c_.in_channels); ++p) {
      const MaskedPanel panel = masked_panel(to_x_, p);
      const Indirection taps = make_indirection(c_, to_x_, panel, c_.reach_right(), pitch, scratch.own(segments_));
      multiply_region(task.region, scratch.own(gradient_), pitch, c_.out_channels, taps, panel,
                      scratch.shared(weights_) + p * panel_floats,
                      {args_.grad_x, task.image, panel.first, panel.columns, c_.in_order, nullptr, /*relu=*/false},
                      scratch.own(staging_));
    }
  }

  // To the thread's sums for weight and bias; `below`: where the gradient in scratch lies.
  void add_weight_gradient(const Task& task, const Region& below, const Scratch& scratch) const {
    const Region& region = task.region;
    const Region above = input_region(c_, region);
    const int64_t O = c_.out_channels;
    if (needs_weight(args_))
      load_planes({args_.x, task.image, c_.in_channels, c_.height, c_.width, c_.in_order, nullptr}, above,
                  scratch.own(planes_));
    for (int64_t p = 0; p < panel_count(O); ++p) {
      const MaskedPanel panel = masked_panel(to_y_, p);
      pack_gradient_panel(region, scratch.own(gradient_) + (region.x0 - below.x0) * O, below.columns(), O, panel,
                          scratch.own(packed_), scratch.own(sums_.bias) + p * PANEL_MAX);
      if (needs_weight(args_))
        accumulate_weight(c_, region, scratch.own(planes_), above.columns(), above.pixels(), panel,
                          scratch.own(packed_), scratch.own(segments_), scratch.own(sums_.weight) + p * PANEL_MAX,
                          sums_.stride);
    }
  }

  // The taps of input channel k for a panel, over all threads: to[tap][PANEL_MAX].
  void sum_taps(const Scratch& scratch, int team, int64_t p, int64_t k, float* to) const {
    const float* const first = scratch.own(sums_.weight, 0) + p * PANEL_MAX;
    const int nr = panel_at(c_.out_channels, p).nr;
    for (int64_t t = 0; t <= c_.full_taps(); ++t)
      for (int j = 0; j < nr; ++j)
        store(to + t * PANEL_MAX + j * VL, sum_threads(first + (t * c_.in_channels + k) * sums_.stride + j * VL,
                                                       scratch.thread_stride(), team));
  }

 private:
  const MaskedConvBackward& args_;
  const MaskedConv& c_;
  int threads_;
  MaskedGemm to_x_, to_y_;
  Tasks tasks_;
  ScratchLayout shared_, own_;
  GradientSums sums_;
  ScratchArray<float> weights_;  // packed for grad_x
  ScratchArray<float> gradient_, planes_, staging_, packed_;
  ScratchArray<Segment> segments_;
};

}  // namespace

Outcome direct_backward(const MaskedConvBackward& args) { return DirectBackward(args).run(); }

}  // namespace gk::GK_ISA::masked_conv
