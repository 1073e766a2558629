// hidden = the wavefront LSTM over gates (the input-to-state part, given or convolved of x), step by step.
//
// Tiling: a thread sweeps whole images, several together, without waiting for any other; only images that are left over
// (fewer than threads) are shared, a step split among the threads and a barrier behind it. A step of the group is
// one product: rows = cells, each row the h of its taps and the x of its input taps side by side (gathered: at a fixed
// stride a diagonal would meet itself in the same sets of L1), columns = 4h gates in panels, then one elementwise pass.
// No skewed copy is made, and a cell outside the image is a pointer to the initial state.
//
// Traffic: gates that are given are brought into channels-last order once, straight into the buffer that is kept for
// backward, where the sweep overwrites them. Gates that are convolved leave no trace: x, a quarter of them, is brought
// into that order instead (a convolution before the sweep writes them to L3 or memory and runs at 85 % of peak for its
// short sums: forward takes 7-10 % longer with it at h = 64). hidden leaves likewise. Float32 tensors that are
// channels_last are read and written in place. Weights (4h floats for every float of a row) stream from L2 or L3 once
// a step, rows and sums stay within L2.
//
// Floor: 2 * (taps * h + input taps * channels) * 4h operations a cell. Bound: the multiply-add units for h >= 32 or
// so. Measured on AVX2, one thread: 67-71 % of their peak at h = 64 on a diagonal (two taps, one input tap), 78 % on
// rows (three and two). The products alone run at 90 %; the elementwise pass takes a sixth of the time at h = 64, a
// slice that grows as 1 / h below. In L1 it is bound by its 5 exp and 5 divisions a channel (52 cycles a vector, of
// which the divisions are 30), and takes twice that for the cells that come from and go to L2 and L3.
#include "cpu/wavefront_lstm/forward_sweep.h"

namespace gk::GK_ISA::wavefront_lstm {
namespace {

// How a call is divided, and where its parts stand in scratch.
struct ForwardPlan {
  explicit ForwardPlan(const WavefrontLSTMForward& args);

  int threads;
  int64_t group;  // sequences of one sweep
  int64_t limit;  // cells of one product
  int64_t packed_floats, input_floats, x_floats, c_floats, hidden_floats;  // of one direction; of one sequence
  ScratchLayout shared, own;
  ScratchArray<float> packed, constants;           // of all directions
  ScratchArray<float> input, x, c, hidden, rows, sums;  // of a thread
};

ForwardPlan::ForwardPlan(const WavefrontLSTMForward& args) {
  const WavefrontLSTM& l = args.lstm;
  const int64_t h = l.hidden, pixels = l.height * l.width;
  threads = useful_threads(l, args.direction_count, args.threads);
  group = sequences_of_group(l, args.direction_count, threads);
  limit = product_rows(l);
  bool needs_input = false, needs_x = false, needs_c = false, needs_hidden = false;
  for (int64_t d = 0; d < args.direction_count; ++d) {
    const WavefrontDirection& direction = args.directions[d];
    needs_input |= !l.convolves() && !direction.saved && !is_cells(direction.gates);
    needs_x |= l.convolves() && !is_cells(direction.x);
    needs_c |= !direction.saved;
    needs_hidden |= !is_cells(direction.hidden);
  }
  packed_floats = padded(4 * h) * reductions_of(l);
  input_floats = needs_input ? pixels * 4 * h : 0;
  x_floats = needs_x ? pixels * l.channels : 0;
  c_floats = needs_c ? steps_of(l).positions() * h : 0;
  hidden_floats = needs_hidden ? pixels * h : 0;
  packed = shared.take<float>(args.direction_count * packed_floats);
  constants = shared.take<float>(args.direction_count * constant_floats(l));
  input = own.take<float>(group * input_floats);
  x = own.take<float>(group * x_floats);
  c = own.take<float>(group * c_floats);
  hidden = own.take<float>(group * hidden_floats + IO);  // store_lines reads behind it
  rows = own.take<float>(limit * reductions_of(l));
  sums = own.take<float>(limit * padded(4 * h));
}

// Sequence `first + index` of all, the one of this index in its group. Reads what its memory cannot serve as cells.
Sequence prepare(const WavefrontLSTMForward& args, const ForwardPlan& plan, const Scratch& scratch, int64_t first,
                 int64_t index, const ThreadSlice& slice) {
  const WavefrontLSTM& l = args.lstm;
  const Steps steps = steps_of(l);
  const int64_t h = l.hidden, pixels = l.height * l.width;
  const int64_t d = (first + index) / l.batch, image = (first + index) % l.batch;
  const int thread = slice.count > 1 ? 0 : omp_get_thread_num();  // whose scratch it is
  const WavefrontDirection& direction = args.directions[d];
  float* const saved = direction.saved ? direction.saved + image * pixels * 5 * h : nullptr;
  float* const constants = scratch.shared(plan.constants) + d * constant_floats(l);
  Sequence sequence{d, image, direction.mirrored, {}, {}, saved,
                    saved ? saved + pixels * 4 * h : scratch.own(plan.c, thread) + index * plan.c_floats,
                    saved != nullptr, {}, constants, constants + h};
  if (l.convolves()) {
    read_x(l, direction, steps, slice, constants, scratch.own(plan.x, thread) + index * plan.x_floats, sequence);
  } else if (is_cells(direction.gates)) {
    sequence.input = cells_of(direction.gates, image);
  } else {
    float* const input = saved ? saved : scratch.own(plan.input, thread) + index * plan.input_floats;
    sequence.input = scratch_cells(input, l.width, 4 * h);
    load_lines(direction.gates, image, 4 * h, steps, slice, input);
  }
  sequence.hidden = is_cells(direction.hidden)
                        ? cells_of(direction.hidden, image)
                        : scratch_cells(scratch.own(plan.hidden, thread) + index * plan.hidden_floats, l.width, h);
  return sequence;
}

bool forward(const WavefrontLSTMForward& args) {
  const WavefrontLSTM& l = args.lstm;
  const int64_t h = l.hidden, pixels = l.height * l.width, directions = args.direction_count;
  const ForwardPlan plan(args);
  const Scratch scratch(plan.shared, plan.own, plan.threads);
  if (!scratch.data()) return false;
  for (int64_t d = 0; d < directions; ++d) {
    want_huge_pages(args.directions[d].hidden, l.batch * h * pixels);
    want_huge_pages(args.directions[d].saved, l.batch * pixels * 5 * h * sizeof(float));
  }
  float* const packed = scratch.shared(plan.packed);
  float* const constants = scratch.shared(plan.constants);

  StepBarrier barrier;
#pragma omp parallel num_threads(plan.threads)
  {
#pragma omp for nowait
    for (int64_t i = 0; i < directions * panel_count(4 * h); ++i) {
      const int64_t d = i / panel_count(4 * h), panel = i % panel_count(4 * h);
      const WavefrontDirection& direction = args.directions[d];
      GK_BY_STORAGE(l.storage, pack_forward, l, direction, panel, packed + d * plan.packed_floats);
      if (panel == 0) GK_BY_STORAGE(l.storage, read_constants, l, direction, constants + d * constant_floats(l));
    }
    barrier.wait(omp_get_num_threads());

    const ProductScratch product{plan.limit, scratch.own(plan.rows), scratch.own(plan.sums)};
    for_groups(directions * l.batch, plan.group, &barrier, [&](int64_t first, int64_t count, const ThreadSlice& slice) {
      Sequence sequences[SEQUENCES_MAX];
      for (int64_t i = 0; i < count; ++i) sequences[i] = prepare(args, plan, scratch, first, i, slice);
      slice.wait();
      sweep_forward(l, sequences, count, slice, packed, plan.packed_floats, product);
      for (int64_t i = 0; i < count; ++i) {
        const Sequence& own = sequences[i];
        const ImageView& hidden = args.directions[own.direction].hidden;
        if (!is_cells(hidden)) store_lines(hidden, own.image, h, steps_of(l), slice, own.hidden.data);
      }
    });
  }
  return true;
}

}  // namespace
}  // namespace gk::GK_ISA::wavefront_lstm

bool gk::GK_ISA::wavefront_lstm_forward(const WavefrontLSTMForward& args) { return wavefront_lstm::forward(args); }
