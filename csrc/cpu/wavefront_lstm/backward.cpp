// Gradients of the wavefront LSTM: gates, weight and initial states.
//
// Tiling: the sweep of the forward pass in reverse, divided among threads in the same way. At a step, an elementwise
// pass turns the gradient of h into that of the gates (into scratch, or straight into grad_gates where that is float32
// and channels_last); one product (rows = cells, reduction = 4h gates, columns = taps * h) then gives what every cell
// sends to its taps. The step before reads its own part of that from two buffers in turn, so nothing is scattered
// and threads that share a step never write the same place; what falls outside the image is the gradient of the
// initial state. The carried gradient of c is kept by position, in place.
//   grad_weight follows after the sweep of a group: see wavefront_lstm/weight_gradient.h. Each thread has its own sums,
//   added in thread order at the end: the result depends on the thread count alone.
// Where nothing was kept, each group is first swept forward again.
//
// Traffic: saved (5h floats a cell) and grad_hidden once, h (recovered from o and c) and grad_gates twice (the sweep
// and the weight product).
// Floor: 2 * 2 * taps * h * 4h operations a cell. Bound: the multiply-add units for h >= 32 or so; measured as in
// wavefront_lstm/forward.cpp, 74 / 77 % of their peak on channels_last tensors, 69 / 75 % on NCHW.
#include "cpu/wavefront_lstm/forward_sweep.h"
#include "cpu/wavefront_lstm/weight_gradient.h"

namespace gk::GK_ISA::wavefront_lstm {
namespace {

// One cell: from the gradient of h, and that of c as the next step carried it here, to those of the gates (written
// twice) and to what is carried on. h itself comes along, in float32, for the gradient of the weight.
GK_INLINE void cell_backward(int64_t h, const float* grad_hidden, const float* carried, const float* gates,
                              const float* c, const float* c_before, float* hidden, float* carry, float* row,
                              float* grad_gates) {
  for_channels(h, [&](int64_t k, auto lanes) {
    const Vec i = lanes.get(gates + k), f = lanes.get(gates + h + k);
    const Vec g = lanes.get(gates + 2 * h + k), o = lanes.get(gates + 3 * h + k);
    const Vec dh = lanes.get(grad_hidden + k), tanh_c = tanh(lanes.get(c + k));
    const Vec dc = dh * o * (1.0f - tanh_c * tanh_c) + lanes.get(carried + k);
    const Vec di = dc * g * (i - i * i), df = dc * lanes.get(c_before + k) * (f - f * f);
    const Vec dg = dc * i * (1.0f - g * g), dout = dh * tanh_c * (o - o * o);
    lanes.put(hidden + k, o * tanh_c);
    lanes.put(carry + k, dc * f);
    lanes.put(row + k, di);
    lanes.put(row + h + k, df);
    lanes.put(row + 2 * h + k, dg);
    lanes.put(row + 3 * h + k, dout);
    lanes.put(grad_gates + k, di);
    lanes.put(grad_gates + h + k, df);
    lanes.put(grad_gates + 2 * h + k, dg);
    lanes.put(grad_gates + 3 * h + k, dout);
  });
}

GK_INLINE void add_to(int64_t h, float* sum, const float* values) {
  for_channels(h, [&](int64_t k, auto lanes) { lanes.put(sum + k, lanes.get(sum + k) + lanes.get(values + k)); });
}

// A sequence in backward, beside what forward has of it.
struct BackwardSequence {
  Cells grad_hidden, grad_gates;
  float* carry;          // [positions][h]: the gradient of c that goes to the step before
  float *grad_h0, *grad_c0;  // this thread's sums, or nullptr
};

struct BackwardScratch {
  float* rows;       // [limit][4h]: the gradient of the gates of the cells of a product
  int64_t limit;
  float* grad_h;     // [h]
  float* zeros;      // [h]
  float* sent[2];    // [sequence][longest step][padded(taps * h)]: what the cells of a step send to their taps, in turn
};

// packed[direction]: the weights of the backward product.
void sweep_backward(const WavefrontLSTM& l, const Sequence* sequences, const BackwardSequence* back,
                    int64_t sequence_count, const ThreadSlice& slice, const float* packed, int64_t packed_floats,
                    const BackwardScratch& scratch) {
  const Steps f = steps_of(l);
  const int64_t h = l.hidden, sent_stride = padded(l.tap_count * h);
  PrefetchQueue prefetches;
  for (int64_t s = f.count() - 1; s >= 0; --s) {
    const Span before = f.span(s - 1), after = f.span(s + 1);
    float* const sent = scratch.sent[s % 2];
    const float* const sent_by_next = scratch.sent[(s + 1) % 2];
    for_chunks(f, s, sequences, sequence_count, slice, scratch.limit,
               [&](const StepCell* cells, int64_t count, int64_t first) {
      for (int64_t n = 0; n < count; ++n) {
        const StepCell& cell = cells[n];
        const Sequence& sequence = sequences[cell.sequence];
        const BackwardSequence& own = back[cell.sequence];
        memcpy(scratch.grad_h, own.grad_hidden.at(cell.y, cell.x), h * sizeof(float));
        for (int64_t t = 0; t < l.tap_count; ++t) {
          const int64_t r = cell.r - l.taps[t];
          if (!after.has(r)) continue;
          const int64_t row = cell.sequence * after.length() + r - after.lo;
          add_to(h, scratch.grad_h, sent_by_next + row * sent_stride + t * h);
        }
        const int64_t pixel = cell.y * f.width + cell.x;
        float* const carry = own.carry + cell.r * h;
        cell_backward(h, scratch.grad_h, after.has(cell.r) ? carry : scratch.zeros, sequence.gates + pixel * 4 * h,
                       sequence.c + pixel * h, c_before(f, before, s, sequences, h, cell),
                       sequence.hidden.at(cell.y, cell.x), carry, scratch.rows + n * 4 * h,
                       own.grad_gates.at(cell.y, cell.x));
        if (own.grad_c0 && !before.has(cell.r)) add_to(h, own.grad_c0, carry);
        // The cell at the same position of the step before comes next; its c has been read just now.
        if (before.has(cell.r)) {
          const StepCell next = cell_at(f, s - 1, cell.r, sequences, cell.sequence);
          prefetches.add(gates_of(f, sequence, h, next), 4 * h);
          prefetches.add(own.grad_gates.at(next.y, next.x), 4 * h);
          prefetches.add(c_before(f, f.span(s - 2), s - 1, sequences, h, next), h);
          prefetches.add(own.grad_hidden.at(next.y, next.x), h);
          prefetches.add(sequence.hidden.at(next.y, next.x), h);
        }
      }
      const bool wants_h0 = back[cells[0].sequence].grad_h0;
      if (s == 0 && !wants_h0) return;
      float* const to = sent + first * sent_stride;
      multiply(scratch.rows, count, 4 * h, packed + sequences[cells[0].sequence].direction * packed_floats,
               l.tap_count * h, to, prefetches);
      for (int64_t n = 0; wants_h0 && n < count; ++n)
        for (int64_t t = 0; t < l.tap_count; ++t)
          if (!before.has(cells[n].r + l.taps[t]))
            add_to(h, back[cells[n].sequence].grad_h0, to + n * sent_stride + t * h);
    });
    slice.wait();
  }
}

// Adds the threads' sums of the gradient of an initial state and writes it.
template <class T>
void write_state(void* grad, int64_t h, const float* sums, int64_t thread_stride, int team) {
  for (int64_t k = 0; k < h; ++k) {
    float sum = 0;
    for (int i = 0; i < team; ++i) sum += sums[i * thread_stride + k];
    store_one(static_cast<T*>(grad) + k, sum);
  }
}

// How a call is divided, and where its parts stand in scratch.
struct BackwardPlan {
  explicit BackwardPlan(const WavefrontLSTMBackward& args);

  int threads;
  int64_t group;          // sequences of one sweep
  int64_t limit;          // cells of one product
  int64_t lines, blocks;  // of one block of the weight's gradient; of an image
  bool wants_weight = false, recomputes = false;
  int64_t forward_floats, packed_floats, weight_sums, state_sums;                           // of one direction
  int64_t saved_floats, x_floats, hidden_floats, grad_hidden_floats, grad_gates_floats, carry_floats;  // of a sequence
  ScratchLayout shared, own;
  ScratchArray<float> forward_packed, packed, constants;  // of all directions
  // Of a thread. Sums that are added across threads are those of all directions.
  ScratchArray<float> weights, states, saved, x, hidden, grad_hidden, grad_gates, carry, sent[2];
  ScratchArray<float> rows, sums, planes, panel, grad_h, zeros;
};

BackwardPlan::BackwardPlan(const WavefrontLSTMBackward& args) {
  const WavefrontLSTM& l = args.lstm;
  const int64_t h = l.hidden, pixels = l.height * l.width, taps_h = l.tap_count * h, directions = args.direction_count;
  threads = useful_threads(l, directions, args.threads);
  group = sequences_of_group(l, directions, threads);
  limit = product_rows(l);
  lines = block_lines(l);
  blocks = ceil_div(l.height, lines);
  bool needs_x = false, needs_grad_hidden = false, needs_grad_gates = false;  // in scratch
  for (int64_t d = 0; d < directions; ++d) {
    const WavefrontGradients& grads = args.gradients[d];
    wants_weight |= grads.grad_weight != nullptr;
    recomputes |= !args.directions[d].saved;
    needs_x |= !args.directions[d].saved && l.convolves() && !is_cells(args.directions[d].x);
    needs_grad_hidden |= !is_cells(grads.grad_hidden);
    needs_grad_gates |= !grads.grad_gates.data || !is_cells(grads.grad_gates);
  }
  forward_floats = recomputes ? padded(4 * h) * reductions_of(l) : 0;
  packed_floats = padded(taps_h) * 4 * h;
  weight_sums = wants_weight ? taps_h * padded(4 * h) : 0;
  state_sums = Scratch::round(2 * h);
  saved_floats = recomputes ? pixels * 5 * h : 0;
  x_floats = needs_x ? pixels * l.channels : 0;
  hidden_floats = pixels * h;
  grad_hidden_floats = needs_grad_hidden ? pixels * h : 0;
  grad_gates_floats = needs_grad_gates ? pixels * 4 * h : 0;
  carry_floats = steps_of(l).positions() * h;

  forward_packed = shared.take<float>(directions * forward_floats);
  packed = shared.take<float>(directions * packed_floats);
  constants = shared.take<float>(directions * constant_floats(l));
  weights = own.take<float>(directions * weight_sums);
  states = own.take<float>(directions * state_sums);
  saved = own.take<float>(group * saved_floats);
  x = own.take<float>(group * x_floats);
  hidden = own.take<float>(group * hidden_floats);
  grad_hidden = own.take<float>(group * grad_hidden_floats);
  grad_gates = own.take<float>(group * grad_gates_floats + IO);  // store_lines reads behind it
  carry = own.take<float>(group * carry_floats);
  for (ScratchArray<float>& turn : sent) turn = own.take<float>(group * steps_of(l).longest() * padded(taps_h));
  rows = own.take<float>(limit * max64(reductions_of(l), 4 * h));
  sums = own.take<float>(limit * padded(4 * h));
  planes = own.take<float>(wants_weight ? lines * l.width * taps_h : 0);
  panel = own.take<float>(wants_weight ? lines * l.width * PANEL_MAX : 0);
  grad_h = own.take<float>(h);
  zeros = own.take<float>(h);
}

// One call while it runs. Every function but write_states is to be called by all threads of the team.
class Backward {
 public:
  Backward(const WavefrontLSTMBackward& args, const BackwardPlan& plan, const Scratch& scratch)
      : args_(args), plan_(plan), scratch_(scratch) {}

  // Packs the weights, reads the constants and clears the thread's sums; a barrier has to follow.
  void prepare() const {
    for (int64_t d = 0; d < args_.direction_count; ++d) {
      const WavefrontDirection& direction = args_.directions[d];
#pragma omp single nowait
      GK_BY_STORAGE(l_.storage, read_constants, l_, direction, constants(d));
#pragma omp for nowait
      for (int64_t p = 0; p < panel_count(l_.tap_count * h_); ++p)
        GK_BY_STORAGE(l_.storage, pack_backward, l_, direction, p,
                      scratch_.shared(plan_.packed) + d * plan_.packed_floats);
      if (direction.saved) continue;
#pragma omp for nowait
      for (int64_t p = 0; p < panel_count(4 * h_); ++p)
        GK_BY_STORAGE(l_.storage, pack_forward, l_, direction, p,
                      scratch_.shared(plan_.forward_packed) + d * plan_.forward_floats);
    }
    memset(scratch_.own(plan_.weights), 0, args_.direction_count * plan_.weight_sums * sizeof(float));
    memset(scratch_.own(plan_.states), 0, args_.direction_count * plan_.state_sums * sizeof(float));
    memset(scratch_.own(plan_.zeros), 0, h_ * sizeof(float));
  }

  // Sequences first to first + count - 1 of all.
  void sweep(int64_t first, int64_t count, const ThreadSlice& slice) const {
    Sequence sequences[SEQUENCES_MAX];
    BackwardSequence back[SEQUENCES_MAX];
    bool recomputes = false;
    for (int64_t i = 0; i < count; ++i) {
      sequences[i] = forward_part(first, i, slice);
      back[i] = backward_part(sequences[i], i, slice);
      recomputes |= !args_.directions[sequences[i].direction].saved;
    }
    slice.wait();
    const int thread = owner(slice);
    float* const rows = scratch_.own(plan_.rows);
    if (recomputes)
      sweep_forward(l_, sequences, count, slice, scratch_.shared(plan_.forward_packed), plan_.forward_floats,
                    {plan_.limit, rows, scratch_.own(plan_.sums)});
    sweep_backward(l_, sequences, back, count, slice, scratch_.shared(plan_.packed), plan_.packed_floats,
                   {rows, plan_.limit, scratch_.own(plan_.grad_h), scratch_.own(plan_.zeros),
                    {scratch_.own(plan_.sent[0], thread), scratch_.own(plan_.sent[1], thread)}});
    add_weights(sequences, back, count, slice);
    for (int64_t i = 0; i < count; ++i) {
      const ImageView& target = args_.gradients[sequences[i].direction].grad_gates;
      if (target.data && !is_cells(target))
        store_lines(target, sequences[i].image, 4 * h_, steps_, slice, back[i].grad_gates.data);
    }
  }

  // Adds the sums of the team's threads and writes the gradients of the weights.
  void write_weights(int team) const {
    const int64_t pieces = ceil_div(4 * h_, IO);
#pragma omp for nowait
    for (int64_t i = 0; i < args_.direction_count * l_.tap_count * pieces; ++i) {
      const int64_t d = i / pieces / l_.tap_count, tap = i / pieces % l_.tap_count, j = i % pieces * IO;
      if (args_.gradients[d].grad_weight)
        GK_BY_STORAGE(l_.storage, write_weight, l_, args_.gradients[d].grad_weight, tap, j,
                      scratch_.own(plan_.weights, 0) + d * plan_.weight_sums, scratch_.thread_stride(), team);
    }
  }

  // The same of the gradients of the initial states; by one thread.
  void write_states(int team) const {
    for (int64_t d = 0; d < args_.direction_count; ++d) {
      const float* const sums = scratch_.own(plan_.states, 0) + d * plan_.state_sums;
      const WavefrontGradients& grads = args_.gradients[d];
      const int64_t stride = scratch_.thread_stride();
      if (grads.grad_h0) GK_BY_STORAGE(l_.storage, write_state, grads.grad_h0, h_, sums, stride, team);
      if (grads.grad_c0) GK_BY_STORAGE(l_.storage, write_state, grads.grad_c0, h_, sums + h_, stride, team);
    }
  }

 private:
  // The thread whose scratch holds the sequences: of shared ones the first.
  static int owner(const ThreadSlice& slice) { return slice.count > 1 ? 0 : omp_get_thread_num(); }
  float* constants(int64_t d) const { return scratch_.shared(plan_.constants) + d * constant_floats(l_); }

  // Sequence `first + index` of all, the one of this index in its group. Reads what a sweep forward would need.
  Sequence forward_part(int64_t first, int64_t index, const ThreadSlice& slice) const {
    const int64_t d = (first + index) / l_.batch, image = (first + index) % l_.batch, pixels = l_.height * l_.width;
    const int thread = owner(slice);
    const WavefrontDirection& direction = args_.directions[d];
    float* const saved = direction.saved ? direction.saved + image * pixels * 5 * h_
                                         : scratch_.own(plan_.saved, thread) + index * plan_.saved_floats;
    float* const hidden = scratch_.own(plan_.hidden, thread) + index * plan_.hidden_floats;
    Sequence sequence{d, image, direction.mirrored, scratch_cells(saved, l_.width, 4 * h_), {}, saved,
                      saved + pixels * 4 * h_, true, scratch_cells(hidden, l_.width, h_), constants(d),
                      constants(d) + h_};
    if (direction.saved) return sequence;
    if (l_.convolves())
      read_x(l_, direction, steps_, slice, constants(d), scratch_.own(plan_.x, thread) + index * plan_.x_floats,
             sequence);
    else if (is_cells(direction.gates))
      sequence.input = cells_of(direction.gates, image);
    else
      load_lines(direction.gates, image, 4 * h_, steps_, slice, saved);
    return sequence;
  }

  BackwardSequence backward_part(const Sequence& sequence, int64_t index, const ThreadSlice& slice) const {
    const WavefrontGradients& grads = args_.gradients[sequence.direction];
    const int thread = owner(slice);
    float* const states = scratch_.own(plan_.states) + sequence.direction * plan_.state_sums;
    float* const grad_gates = scratch_.own(plan_.grad_gates, thread) + index * plan_.grad_gates_floats;
    BackwardSequence back;
    back.grad_gates = grads.grad_gates.data && is_cells(grads.grad_gates)
                          ? cells_of(grads.grad_gates, sequence.image)
                          : scratch_cells(grad_gates, l_.width, 4 * h_);
    back.carry = scratch_.own(plan_.carry, thread) + index * plan_.carry_floats;
    back.grad_h0 = grads.grad_h0 ? states : nullptr;
    back.grad_c0 = grads.grad_c0 ? states + h_ : nullptr;
    if (is_cells(grads.grad_hidden)) {
      back.grad_hidden = cells_of(grads.grad_hidden, sequence.image);
    } else {
      float* const grad_hidden = scratch_.own(plan_.grad_hidden, thread) + index * plan_.grad_hidden_floats;
      back.grad_hidden = scratch_cells(grad_hidden, l_.width, h_);
      load_lines(grads.grad_hidden, sequence.image, h_, steps_, slice, grad_hidden);
    }
    return back;
  }

  void add_weights(const Sequence* sequences, const BackwardSequence* back, int64_t count,
                   const ThreadSlice& slice) const {
    const int64_t total = count * plan_.blocks;
    for (int64_t i = slice.begin(total); i < slice.end(total); ++i) {
      const Sequence& sequence = sequences[i / plan_.blocks];
      const int64_t y = i % plan_.blocks * plan_.lines;
      if (args_.gradients[sequence.direction].grad_weight)
        add_weight_block(l_, sequence, back[i / plan_.blocks].grad_gates,
                         {y, min64(y + plan_.lines, l_.height), 0, l_.width}, scratch_.own(plan_.planes),
                         scratch_.own(plan_.panel),
                         scratch_.own(plan_.weights) + sequence.direction * plan_.weight_sums);
    }
  }

  const WavefrontLSTMBackward& args_;
  const BackwardPlan& plan_;
  const Scratch& scratch_;
  const WavefrontLSTM& l_ = args_.lstm;
  const int64_t h_ = l_.hidden;
  const Steps steps_ = steps_of(l_);
};

bool backward(const WavefrontLSTMBackward& args) {
  const WavefrontLSTM& l = args.lstm;
  const BackwardPlan plan(args);
  const Scratch scratch(plan.shared, plan.own, plan.threads);
  if (!scratch.data()) return false;
  for (int64_t d = 0; d < args.direction_count; ++d)
    want_huge_pages(args.gradients[d].grad_gates, l.batch * 4 * l.hidden * l.height * l.width);
  const Backward call(args, plan, scratch);

  StepBarrier barrier;
  int team = 1;  // the threads that really came
#pragma omp parallel num_threads(plan.threads)
  {
#pragma omp single nowait
    team = omp_get_num_threads();
    call.prepare();
    barrier.wait(omp_get_num_threads());
    for_groups(args.direction_count * l.batch, plan.group, &barrier,
               [&](int64_t first, int64_t count, const ThreadSlice& slice) { call.sweep(first, count, slice); });
    if (plan.wants_weight) {
      barrier.wait(omp_get_num_threads());
      call.write_weights(team);
    }
  }
  call.write_states(team);
  return true;
}

}  // namespace
}  // namespace gk::GK_ISA::wavefront_lstm

bool gk::GK_ISA::wavefront_lstm_backward(const WavefrontLSTMBackward& args) { return wavefront_lstm::backward(args); }
