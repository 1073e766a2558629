// Softmax and negative log-likelihood behind a linear layer, forward and backward, a block of rows at a time.
//
// Tiling: a thread takes blocks of ROWS pixels. Of one colour of a block, the logits are a product (rows = pixels,
// panels = levels, reduction = features) that stays in L2; two passes over them give the maximum, and the sum of the
// exponentials. Backward computes the logits once more, turns them into the gradient d in place, and multiplies it
// twice: by the weight (rows = d, panels = features, a segment for each panel of levels) for x, and with x for the
// weight (rows = features of the block, each a line of its pixels; panels = d as it lies there, which is why the logits
// are kept panel by panel). A thread adds up the weight's gradient of its blocks, which are its own for good: the result
// depends on how many threads there are alone.
//
// Traffic: x is read once forward, twice backward; packed weights (4 * features * levels bytes a colour) stream from L2
// once a block. The logits, 4 * levels bytes for each sub-pixel, never leave the caches: in memory they would be the
// largest tensor of a model by far, written and read some six times.
// Where the gradient of every sub-pixel is known before its likelihood (they are going to be summed), one pass makes
// both, and the logits are computed once.
// Floor: 2 * live features * levels operations a sub-pixel forward, 6 backward, 6 for both at once. Bound: the multiply-add units; exp takes
// some 20 operations a logit, a tenth of the work at 100 features.
#include "cpu/softmax_nll/softmax_nll.h"

#include <math.h>
#include <omp.h>

#include "cpu/core/panel.h"
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"
#include "cpu/core/vector_math.h"

namespace gk::GK_ISA {
namespace softmax_nll {
namespace {

constexpr int64_t BLOCK_FLOATS = 16384;  // logits of a block: 64 KiB of L2
constexpr int64_t ROWS_LEAST = 4 * MR_MAX, ROWS_MOST = 32 * MR_MAX;
constexpr int64_t REDUCTIONS_MAX = 256;  // of one segment

// Sizes that follow from the shape, and the buffers of a call.
struct Plan {
  explicit Plan(const SoftmaxNllShape& shape, int threads_wanted, bool wants_x, bool wants_weight);

  const SoftmaxNllShape& s;
  int64_t panels, padded_levels;      // of the levels of a colour
  int64_t rows;                       // of a block
  int64_t blocks;
  int64_t wide;                       // features in whole panels
  int threads;
  ScratchLayout shared, own;
  ScratchArray<float> forward;        // [colour][panel][live][width]: weights that make the logits
  ScratchArray<float> bias;           // [colour][padded_levels], -inf behind the last level
  ScratchArray<float> backward;       // [colour][panel of features][levels][width]: weights that make grad_x
  ScratchArray<float> logits;         // [panel][row][PANEL_MAX], of one colour of a block
  ScratchArray<float> grad_x;         // [row][wide]
  ScratchArray<float> planes;         // [feature][row]
  ScratchArray<float> weight_sums;    // [colour][feature][padded_levels]
  ScratchArray<float> bias_sums;      // [colour][padded_levels]
};

Plan::Plan(const SoftmaxNllShape& shape, int threads_wanted, bool wants_x, bool wants_weight)
    : s(shape), panels(panel_count(shape.levels)), padded_levels(panels * PANEL_MAX),
      wide(panel_count(shape.features) * PANEL_MAX) {
  const int64_t wanted = BLOCK_FLOATS / padded_levels / MR_MAX * MR_MAX;
  rows = max64(ROWS_LEAST, min64(ROWS_MOST, wanted));
  blocks = ceil_div(s.rows, rows);
  const int64_t work = s.rows * s.features * s.colours * s.levels;
  threads = useful_threads(work, PRODUCTS_PER_THREAD, static_cast<int>(min64(threads_wanted, blocks)));
  forward = shared.take<float>(s.colours * padded_levels * s.features);
  bias = shared.take<float>(s.colours * padded_levels);
  backward = shared.take<float>(wants_x ? s.colours * padded_levels * wide : 0);
  logits = own.take<float>(rows * padded_levels);
  grad_x = own.take<float>(wants_x ? rows * wide : 0);
  planes = own.take<float>(wants_weight ? rows * s.features : 0);
  weight_sums = own.take<float>(wants_weight ? s.colours * s.features * padded_levels : 0);
  bias_sums = own.take<float>(wants_weight ? s.colours * padded_levels : 0);
}

// --- packing ---------------------------------------------------------------------------------------------------------

float* forward_panel(const Plan& plan, const Scratch& scratch, int64_t colour, int64_t panel) {
  return scratch.shared(plan.forward) + (colour * plan.padded_levels + panel * PANEL_MAX) * plan.s.features;
}

void pack_forward(const Plan& plan, const float* weight, const float* bias, int64_t colour, int64_t index,
                  const Scratch& scratch) {
  const SoftmaxNllShape& s = plan.s;
  const Panel panel = panel_at(s.levels, index);
  float* const to = forward_panel(plan, scratch, colour, index);
  float* const to_bias = scratch.shared(plan.bias) + colour * plan.padded_levels + panel.first;
  for (int64_t j = 0; j < PANEL_MAX; ++j) {
    const bool there = j < panel.columns;
    const int64_t level = colour * s.levels + panel.first + j;
    to_bias[j] = !there ? -INFINITY : bias ? bias[level] : 0.0f;
    if (j >= panel.width()) continue;
    for (int64_t k = 0; k < s.live[colour]; ++k)
      to[k * panel.width() + j] = there ? weight[level * s.features + k] : 0.0f;
  }
}

float* backward_panel(const Plan& plan, const Scratch& scratch, int64_t colour, int64_t panel) {
  return scratch.shared(plan.backward) + (colour * plan.wide + panel * PANEL_MAX) * plan.padded_levels;
}

void pack_backward(const Plan& plan, const float* weight, int64_t colour, int64_t index, const Scratch& scratch) {
  const SoftmaxNllShape& s = plan.s;
  const Panel panel = panel_at(s.live[colour], index);
  float* const to = backward_panel(plan, scratch, colour, index);
  for (int64_t l = 0; l < s.levels; ++l)
    for (int64_t j = 0; j < panel.width(); ++j)
      to[l * panel.width() + j] =
          j < panel.columns ? weight[(colour * s.levels + l) * s.features + panel.first + j] : 0.0f;
}

// --- one colour of one block -----------------------------------------------------------------------------------------

struct Block {
  int64_t first, count;  // rows
};

// At most REDUCTIONS_MAX features each.
int64_t split(int64_t length, Segment* segments) {
  int64_t count = 0;
  for (int64_t k = 0; k < length; k += REDUCTIONS_MAX) segments[count++] = {k, min64(REDUCTIONS_MAX, length - k)};
  return count;
}
constexpr int64_t SEGMENTS_MAX = 256;  // 65,536 features, or panels of levels

void compute_logits(const Plan& plan, const float* x, int64_t colour, const Block& block, const Scratch& scratch) {
  const SoftmaxNllShape& s = plan.s;
  Segment segments[SEGMENTS_MAX];
  const int64_t segment_count = split(s.live[colour], segments);
  float* const logits = scratch.own(plan.logits);
  for (int64_t p = 0; p < plan.panels; ++p) {
    const Panel panel = panel_at(s.levels, p);
    const float* const packed = forward_panel(plan, scratch, colour, p);
    const Finish finish{scratch.shared(plan.bias) + colour * plan.padded_levels + panel.first, false};
    for_row_tiles(block.count, [&](int64_t first, int64_t count) {
      const float* row[MR_MAX];
      for (int64_t i = 0; i < count; ++i) row[i] = x + (block.first + first + i) * s.features;
      finish_function(static_cast<int>(count), panel.nr)(row, segments, segment_count, packed,
                                                         logits + (p * plan.rows + first) * PANEL_MAX, PANEL_MAX,
                                                         finish);
    });
  }
}

// Calls each(vector) for the vectors of a row of logits; those behind the last level hold -inf.
template <class Each>
GK_INLINE void for_row(const Plan& plan, float* logits, int64_t row, const Each& each) {
  for (int64_t p = 0; p < plan.panels; ++p) {
    float* const line = logits + (p * plan.rows + row) * PANEL_MAX;
    const int64_t width = panel_at(plan.s.levels, p).width();
    for (int64_t j = 0; j < width; j += VL) each(line + j);
  }
}

GK_INLINE float* logit_at(const Plan& plan, float* logits, int64_t row, int64_t level) {
  return logits + (level / PANEL_MAX * plan.rows + row) * PANEL_MAX + level % PANEL_MAX;
}

GK_INLINE float highest_logit(const Plan& plan, float* logits, int64_t row) {
  Vec most = broadcast(-INFINITY);
  for_row(plan, logits, row, [&](const float* p) {
    const Vec v = load(p);
    most = v > most ? v : most;  // a NaN is passed over here, and comes back in the sum
  });
  float highest = most[0];
  for (int i = 1; i < VL; ++i) highest = most[i] > highest ? most[i] : highest;
  return highest;
}

// The sum of exp(logit - highest), which also take the place of the logits, if KEEP.
template <bool KEEP>
GK_INLINE float sum_exp(const Plan& plan, float* logits, int64_t row, float highest) {
  Vec sum{};
  for_row(plan, logits, row, [&](float* p) {
    const Vec e = exp(load(p) - broadcast(highest));
    sum += e;
    if (KEEP) store(p, e);
  });
  float total = 0;
  for (int i = 0; i < VL; ++i) total += sum[i];
  return total;
}

// The gradient of the logits of a row in their place: grad * (softmax - one-hot).
GK_INLINE void to_gradient(const Plan& plan, float* logits, int64_t row, float lse, float grad, int64_t target) {
  for_row(plan, logits, row, [&](float* p) { store(p, exp(load(p) - broadcast(lse)) * broadcast(grad)); });
  *logit_at(plan, logits, row, target) -= grad;
}

// The same where the sum of the exponentials is not known yet; returns the negative log-likelihood.
GK_INLINE float to_likelihood_and_gradient(const Plan& plan, float* logits, int64_t row, float grad, int64_t target) {
  const float named = *logit_at(plan, logits, row, target), highest = highest_logit(plan, logits, row);
  const float total = sum_exp<true>(plan, logits, row, highest), share = grad / total;
  for_row(plan, logits, row, [&](float* p) { store(p, load(p) * broadcast(share)); });
  *logit_at(plan, logits, row, target) -= grad;
  return highest + logf(total) - named;
}

// Behind the last level stands exp(-inf) = e^-87 times the gradient, which must not reach a sum.
GK_INLINE void clear_padding(const Plan& plan, float* logits, int64_t row) {
  const Panel last = panel_at(plan.s.levels, plan.panels - 1);
  float* const line = logits + ((plan.panels - 1) * plan.rows + row) * PANEL_MAX;
  for (int64_t j = last.columns; j < last.width(); ++j) line[j] = 0;
}

// grad_x of the block += d @ weight of this colour.
void add_grad_x(const Plan& plan, int64_t colour, const Block& block, const Scratch& scratch) {
  const SoftmaxNllShape& s = plan.s;
  Segment segments[SEGMENTS_MAX];
  for (int64_t p = 0; p < plan.panels; ++p)
    segments[p] = {p * plan.rows * PANEL_MAX, panel_at(s.levels, p).columns};
  const float* const logits = scratch.own(plan.logits);
  float* const grad_x = scratch.own(plan.grad_x);
  for (int64_t p = 0; p < panel_count(s.live[colour]); ++p) {
    const Panel panel = panel_at(s.live[colour], p);
    for_row_tiles(block.count, [&](int64_t first, int64_t count) {
      const float* row[MR_MAX];
      for (int64_t i = 0; i < count; ++i) row[i] = logits + (first + i) * PANEL_MAX;
      tile_function(TileMode::add, static_cast<int>(count), panel.nr)(
          row, segments, plan.panels, backward_panel(plan, scratch, colour, p),
          grad_x + first * plan.wide + panel.first, plan.wide);
    });
  }
}

// The thread's sums of the weight's and the bias' gradient += those of the block.
void add_grad_weight(const Plan& plan, int64_t colour, const Block& block, const Scratch& scratch) {
  const SoftmaxNllShape& s = plan.s;
  float* const sums = scratch.own(plan.weight_sums) + colour * s.features * plan.padded_levels;
  float* const bias = scratch.own(plan.bias_sums) + colour * plan.padded_levels;
  const float* const planes = scratch.own(plan.planes);
  const Segment all{0, block.count};
  for (int64_t p = 0; p < plan.panels; ++p) {
    const Panel panel = panel_at(s.levels, p);
    float* const gradients = scratch.own(plan.logits) + p * plan.rows * PANEL_MAX;
    for (int64_t j = 0; j < panel.width(); j += VL) {
      Vec total = load(bias + panel.first + j);
      for (int64_t i = 0; i < block.count; ++i) total += load(gradients + i * PANEL_MAX + j);
      store(bias + panel.first + j, total);
    }
    // A panel is packed as wide as it is; rows here are PANEL_MAX apart.
    if (panel.width() < PANEL_MAX)
      for (int64_t i = 1; i < block.count; ++i)
        for (int64_t j = 0; j < panel.width(); j += VL)
          store(gradients + i * panel.width() + j, load(gradients + i * PANEL_MAX + j));
    for_row_tiles(s.live[colour], [&](int64_t first, int64_t count) {
      const float* row[MR_MAX];
      for (int64_t i = 0; i < count; ++i) row[i] = planes + (first + i) * plan.rows;
      tile_function(TileMode::add, static_cast<int>(count), panel.nr)(
          row, &all, 1, gradients, sums + first * plan.padded_levels + panel.first, plan.padded_levels);
    });
  }
}

void fill_planes(const Plan& plan, const float* x, const Block& block, float* planes) {
  for (int64_t i = 0; i < block.count; ++i)
    for (int64_t k = 0; k < plan.s.features; ++k) planes[k * plan.rows + i] = x[(block.first + i) * plan.s.features + k];
}

// --- the passes ------------------------------------------------------------------------------------------------------

template <class Work>
GK_INLINE void for_blocks_of_rows(const Plan& plan, const Work& work) {
#pragma omp for schedule(static)
  for (int64_t b = 0; b < plan.blocks; ++b) {
    const int64_t first = b * plan.rows;
    work(Block{first, min64(plan.rows, plan.s.rows - first)});
  }
}

bool forward(const SoftmaxNllForward& args) {
  const Plan plan(args.shape, args.threads, false, false);
  const Scratch scratch(plan.shared, plan.own, plan.threads);
  if (!scratch.data()) return false;
  const int64_t colours = args.shape.colours;
#pragma omp parallel num_threads(plan.threads)
  {
#pragma omp for
    for (int64_t i = 0; i < colours * plan.panels; ++i)
      pack_forward(plan, args.weight, args.bias, i / plan.panels, i % plan.panels, scratch);
    float* const logits = scratch.own(plan.logits);
    for_blocks_of_rows(plan, [&](const Block& block) {
      for (int64_t c = 0; c < colours; ++c) {
        compute_logits(plan, args.x, c, block, scratch);
        for (int64_t i = 0; i < block.count; ++i) {
          const int64_t at = (block.first + i) * colours + c;
          const float highest = highest_logit(plan, logits, i);
          args.log_sum_exp[at] = highest + logf(sum_exp<false>(plan, logits, i, highest));
          args.nll[at] = args.log_sum_exp[at] - *logit_at(plan, logits, i, args.target[at]);
        }
      }
    });
  }
  return true;
}

// Adds the threads' sums and writes the gradients of feature k of all levels, zero where it is not live.
void write_grad_weight(const Plan& plan, const SoftmaxNllBackward& args, int64_t colour, int64_t k, int team,
                       const Scratch& scratch) {
  const SoftmaxNllShape& s = plan.s;
  const float* const sums =
      scratch.own(plan.weight_sums, 0) + (colour * s.features + k) * plan.padded_levels;
  for (int64_t l = 0; l < s.levels; ++l) {
    float total = 0;
    for (int i = 0; k < s.live[colour] && i < team; ++i) total += sums[i * scratch.thread_stride() + l];
    args.grad_weight[(colour * s.levels + l) * s.features + k] = total;
  }
}

bool backward(const SoftmaxNllBackward& args) {
  const bool wants_weight = args.grad_weight || args.grad_bias;
  const Plan plan(args.shape, args.threads, args.grad_x, wants_weight);
  const Scratch scratch(plan.shared, plan.own, plan.threads);
  if (!scratch.data()) return false;
  const SoftmaxNllShape& s = args.shape;
  const int64_t feature_panels = args.grad_x ? panel_count(s.features) : 0;
  int team = 1;  // the threads that really came
#pragma omp parallel num_threads(plan.threads)
  {
#pragma omp single
    team = omp_get_num_threads();
#pragma omp for nowait
    for (int64_t i = 0; i < s.colours * plan.panels; ++i)
      pack_forward(plan, args.weight, args.bias, i / plan.panels, i % plan.panels, scratch);
#pragma omp for
    for (int64_t i = 0; i < s.colours * feature_panels; ++i)
      if (i % feature_panels < panel_count(s.live[i / feature_panels]))
        pack_backward(plan, args.weight, i / feature_panels, i % feature_panels, scratch);
    float* const logits = scratch.own(plan.logits);
    float* const grad_x = scratch.own(plan.grad_x);
    if (wants_weight) {
      memset(scratch.own(plan.weight_sums), 0, s.colours * s.features * plan.padded_levels * sizeof(float));
      memset(scratch.own(plan.bias_sums), 0, s.colours * plan.padded_levels * sizeof(float));
    }
    for_blocks_of_rows(plan, [&](const Block& block) {
      if (wants_weight) fill_planes(plan, args.x, block, scratch.own(plan.planes));
      if (args.grad_x) memset(grad_x, 0, block.count * plan.wide * sizeof(float));
      for (int64_t c = 0; c < s.colours; ++c) {
        compute_logits(plan, args.x, c, block, scratch);
        for (int64_t i = 0; i < block.count; ++i) {
          const int64_t at = (block.first + i) * s.colours + c;
          if (args.nll)
            args.nll[at] = to_likelihood_and_gradient(plan, logits, i, args.grad[at], args.target[at]);
          else
            to_gradient(plan, logits, i, args.log_sum_exp[at], args.grad[at], args.target[at]);
          clear_padding(plan, logits, i);
        }
        if (args.grad_x) add_grad_x(plan, c, block, scratch);
        if (wants_weight) add_grad_weight(plan, c, block, scratch);
      }
      for (int64_t i = 0; args.grad_x && i < block.count; ++i)
        memcpy(args.grad_x + (block.first + i) * s.features, grad_x + i * plan.wide, s.features * sizeof(float));
    });
    if (args.grad_weight) {
#pragma omp for
      for (int64_t i = 0; i < s.colours * s.features; ++i)
        write_grad_weight(plan, args, i / s.features, i % s.features, team, scratch);
    }
  }
  if (args.grad_bias)
    for (int64_t i = 0; i < s.colours * s.levels; ++i) {
      const float* const sums = scratch.own(plan.bias_sums, 0) + i / s.levels * plan.padded_levels + i % s.levels;
      float total = 0;
      for (int thread = 0; thread < team; ++thread) total += sums[thread * scratch.thread_stride()];
      args.grad_bias[i] = total;
    }
  return true;
}

}  // namespace
}  // namespace softmax_nll

bool softmax_nll_forward(const SoftmaxNllForward& args) { return softmax_nll::forward(args); }
bool softmax_nll_backward(const SoftmaxNllBackward& args) { return softmax_nll::backward(args); }

}  // namespace gk::GK_ISA
