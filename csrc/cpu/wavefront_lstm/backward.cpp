// Gradients of the wavefront LSTM: gates, weight and initial states.
//
// Tiling: the walk of the forward pass in reverse, divided among threads in the same way. At a front, an elementwise
// pass turns the gradient of h into that of the gates (into scratch, or straight into grad_gates where that is float32
// and channels_last); one product (rows = cells, reduction = 4h gates, columns = taps * h) then gives what every cell
// sends to its taps. The front before reads its own share of that from two buffers in turn, so nothing is scattered
// and threads that share a front never write the same place; what falls outside the image is the gradient of the
// initial state. The carried gradient of c is kept by position, in place.
//   grad_weight follows after the walk of a group: see wavefront_lstm/weight_gradient.h. Each thread has its own sums, added in
//   thread order at the end: the result depends on the thread count alone.
// Where nothing was kept, each group is first walked forward again.
//
// Traffic: saved (5h floats a cell) and grad_hidden once, h (recovered from o and c) and grad_gates twice (the walk and
// the weight product).
// Floor: 2 * 2 * taps * h * 4h operations a cell. Bound: the multiply-add units for h >= 32 or so; measured as in
// wavefront_lstm/forward.cpp, 74 / 77 % of their peak on channels_last tensors, 69 / 75 % on NCHW.
#include "cpu/wavefront_lstm/forward_sweep.h"
#include "cpu/wavefront_lstm/weight_gradient.h"

namespace gk::GK_ISA {
namespace {

// One cell: from the gradient of h, and that of c as the next front carried it here, to those of the gates (written
// twice) and to what is carried on. h itself comes along, in float32, for the gradient of the weight.
GK_INLINE void step_cell_back(int64_t h, const float* grad_hidden, const float* carried, const float* gates,
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

// What backward knows of a unit beside the forward part.
struct BackUnit {
  Cells grad_hidden, grad_gates;
  float* carry;          // [positions][h]: the gradient of c that goes to the front before
  float *grad_h0, *grad_c0;  // this thread's sums, or nullptr
};

struct BackScratch {
  float* rows;       // [limit][4h]: the gradient of the gates of the cells of a product
  int64_t limit;
  float* grad_h;     // [h]
  float* zeros;      // [h]
  float* sent[2];    // [unit][longest front][padded(taps * h)]: what the cells of a front send to their taps, in turn
};

// packed[walk]: the weights of the backward product.
void walk_backward(const WavefrontLSTM& l, const Unit* units, const BackUnit* back, int64_t unit_count,
                   const Share& share, const float* packed, int64_t packed_floats, const BackScratch& scratch) {
  const Fronts f = fronts_of(l);
  const int64_t h = l.hidden, sent_stride = padded(l.tap_count * h);
  Lookahead ahead;
  for (int64_t s = f.count() - 1; s >= 0; --s) {
    const Span before = f.span(s - 1), after = f.span(s + 1);
    float* const sent = scratch.sent[s % 2];
    const float* const sent_by_next = scratch.sent[(s + 1) % 2];
    for_chunks(f, s, units, unit_count, share, scratch.limit,
               [&](const FrontCell* cells, int64_t count, int64_t first) {
      for (int64_t n = 0; n < count; ++n) {
        const FrontCell& cell = cells[n];
        const Unit& unit = units[cell.unit];
        const BackUnit& own = back[cell.unit];
        memcpy(scratch.grad_h, own.grad_hidden.at(cell.y, cell.x), h * sizeof(float));
        for (int64_t t = 0; t < l.tap_count; ++t) {
          const int64_t r = cell.r - l.taps[t];
          if (!after.has(r)) continue;
          const int64_t row = cell.unit * after.length() + r - after.lo;
          add_to(h, scratch.grad_h, sent_by_next + row * sent_stride + t * h);
        }
        const int64_t pixel = cell.y * f.width + cell.x;
        float* const carry = own.carry + cell.r * h;
        step_cell_back(h, scratch.grad_h, after.has(cell.r) ? carry : scratch.zeros, unit.gates + pixel * 4 * h,
                       unit.c + pixel * h, c_before(f, before, s, units, h, cell),
                       unit.hidden.at(cell.y, cell.x), carry, scratch.rows + n * 4 * h,
                       own.grad_gates.at(cell.y, cell.x));
        if (own.grad_c0 && !before.has(cell.r)) add_to(h, own.grad_c0, carry);
        // The cell at the same position of the front before comes next; its c has been read just now.
        if (before.has(cell.r)) {
          const FrontCell next = front_cell(f, s - 1, cell.r, units, cell.unit);
          ahead.add(gates_of(f, unit, h, next), 4 * h);
          ahead.add(own.grad_gates.at(next.y, next.x), 4 * h);
          ahead.add(c_before(f, f.span(s - 2), s - 1, units, h, next), h);
          ahead.add(own.grad_hidden.at(next.y, next.x), h);
          ahead.add(unit.hidden.at(next.y, next.x), h);
        }
      }
      const bool wants_h0 = back[cells[0].unit].grad_h0;
      if (s == 0 && !wants_h0) return;
      float* const to = sent + first * sent_stride;
      multiply(scratch.rows, count, 4 * h, packed + units[cells[0].unit].walk * packed_floats, l.tap_count * h, to,
               ahead);
      for (int64_t n = 0; wants_h0 && n < count; ++n)
        for (int64_t t = 0; t < l.tap_count; ++t)
          if (!before.has(cells[n].r + l.taps[t]))
            add_to(h, back[cells[n].unit].grad_h0, to + n * sent_stride + t * h);
    });
    share.wait();
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

}  // namespace

bool wavefront_lstm_backward(const WavefrontLSTMBackward& args) {
  const WavefrontLSTM& l = args.lstm;
  const Fronts f = fronts_of(l);
  const int64_t walks = args.direction_count;
  const int threads = useful_threads(l, walks, args.threads);
  const int64_t h = l.hidden, pixels = l.height * l.width, group = group_units(l, walks, threads);
  bool wants_weight = false, recomputes = false;
  bool needs_x = false, needs_grad_hidden = false, needs_grad_gates = false;  // in scratch
  for (int64_t w = 0; w < walks; ++w) {
    const WavefrontGradients& grads = args.gradients[w];
    wants_weight |= grads.grad_weight != nullptr;
    recomputes |= !args.directions[w].saved;
    needs_x |= !args.directions[w].saved && l.convolves() && !is_cells(args.directions[w].x);
    needs_grad_hidden |= !is_cells(grads.grad_hidden);
    needs_grad_gates |= !grads.grad_gates.data || !is_cells(grads.grad_gates);
  }
  const int64_t taps_h = l.tap_count * h, state_floats = Scratch::round(2 * h);
  const int64_t forward_floats = recomputes ? padded(4 * h) * reductions_of(l) : 0;
  const int64_t packed_floats = padded(taps_h) * 4 * h;
  const int64_t walk_floats = forward_floats + packed_floats + constant_floats(l);

  // Of one unit.
  const int64_t saved_floats = recomputes ? pixels * 5 * h : 0, x_floats = needs_x ? pixels * l.channels : 0;
  const int64_t grad_hidden_floats = needs_grad_hidden ? pixels * h : 0;
  const int64_t grad_gates_floats = needs_grad_gates ? pixels * 4 * h : 0;
  const int64_t carry_floats = f.positions() * h, sent_floats = f.longest() * padded(taps_h);
  const int64_t unit_floats =
      saved_floats + x_floats + pixels * h + grad_hidden_floats + grad_gates_floats + carry_floats + 2 * sent_floats;
  const int64_t group_floats = Scratch::round(group * unit_floats + IO);
  // Of one thread. Sums first: what is added across threads stands at a fixed distance.
  const int64_t weight_sums = wants_weight ? taps_h * padded(4 * h) : 0;
  const int64_t sums_floats = walks * (weight_sums + state_floats);
  const int64_t limit = product_rows(l);
  const int64_t row_floats = Scratch::round(limit * max64(reductions_of(l), 4 * h));
  const int64_t product_sums = limit * padded(4 * h);
  const int64_t lines = block_lines(l), blocks = ceil_div(l.height, lines);
  const int64_t plane_floats = wants_weight ? Scratch::round(lines * l.width * taps_h) : 0;
  const int64_t panel_floats = wants_weight ? lines * l.width * PANEL_MAX : 0;
  const int64_t thread_floats =
      sums_floats + group_floats + row_floats + product_sums + plane_floats + panel_floats + state_floats;
  const Scratch scratch(walks * walk_floats + threads * thread_floats);
  if (!scratch.data()) return false;
  for (int64_t w = 0; w < walks; ++w) want_huge_pages(args.gradients[w].grad_gates, l.batch * 4 * h * pixels);
  float* const forward_packed = scratch.data();
  float* const packed = forward_packed + walks * forward_floats;
  float* const constants = packed + walks * packed_floats;
  float* const of_threads = constants + walks * constant_floats(l);

  FrontBarrier barrier;
  int team = 1;  // the threads that really came
#pragma omp parallel num_threads(threads)
  {
#pragma omp single nowait
    team = omp_get_num_threads();
    for (int64_t w = 0; w < walks; ++w) {
      const WavefrontDirection& walk = args.directions[w];
#pragma omp single nowait
      GK_BY_STORAGE(l.storage, read_constants, l, walk, constants + w * constant_floats(l));
#pragma omp for nowait
      for (int64_t p = 0; p < panel_count(taps_h); ++p)
        GK_BY_STORAGE(l.storage, pack_backward, l, walk, p, packed + w * packed_floats);
      if (!walk.saved) {
#pragma omp for nowait
        for (int64_t p = 0; p < panel_count(4 * h); ++p)
          GK_BY_STORAGE(l.storage, pack_forward, l, walk, p, forward_packed + w * forward_floats);
      }
    }
    float* const sums = of_threads + omp_get_thread_num() * thread_floats;
    float* const own_group = sums + sums_floats;
    float* const rows = own_group + group_floats;
    float* const product = rows + row_floats;
    float* const planes = product + product_sums;
    float* const panel = planes + plane_floats;
    float* const small = panel + panel_floats;
    memset(sums, 0, sums_floats * sizeof(float));
    memset(small, 0, state_floats * sizeof(float));
    barrier.wait(omp_get_num_threads());

    for_groups(walks * l.batch, group, &barrier, [&](int64_t first, int64_t count, const Share& share) {
      float* const saveds = share.count > 1 ? of_threads + sums_floats : own_group;
      float* const xs = saveds + group * saved_floats;
      float* const hiddens = xs + group * x_floats;
      float* const grad_hiddens = hiddens + group * pixels * h;
      float* const grad_gates = grad_hiddens + group * grad_hidden_floats;
      float* const carries = grad_gates + group * grad_gates_floats;
      float* const sents = carries + group * carry_floats;
      Unit units[UNITS_MAX];
      BackUnit back[UNITS_MAX];
      bool walks_forward = false;
      for (int64_t u = 0; u < count; ++u) {
        const int64_t w = (first + u) / l.batch, image = (first + u) % l.batch;
        const WavefrontDirection& walk = args.directions[w];
        const WavefrontGradients& grads = args.gradients[w];
        float* const saved = walk.saved ? walk.saved + image * pixels * 5 * h : saveds + u * saved_floats;
        float* const constant = constants + w * constant_floats(l);
        Unit& unit = units[u];
        unit = {w, image, walk.mirrored, scratch_cells(saved, l.width, 4 * h), {}, saved, saved + pixels * 4 * h, true,
                scratch_cells(hiddens + u * pixels * h, l.width, h), constant, constant + h};
        if (!walk.saved) {
          walks_forward = true;
          if (l.convolves())
            read_x(l, walk, f, share, constant, xs + u * x_floats, unit);
          else if (is_cells(walk.gates))
            unit.input = cells_of(walk.gates, image);
          else
            load_lines(walk.gates, image, 4 * h, f, share, saved);
        }
        BackUnit& b = back[u];
        float* const state_sums = sums + walks * weight_sums + w * state_floats;
        b.grad_gates = scratch_cells(grad_gates + u * grad_gates_floats, l.width, 4 * h);
        if (grads.grad_gates.data && is_cells(grads.grad_gates)) b.grad_gates = cells_of(grads.grad_gates, image);
        b.carry = carries + u * carry_floats;
        b.grad_h0 = grads.grad_h0 ? state_sums : nullptr;
        b.grad_c0 = grads.grad_c0 ? state_sums + h : nullptr;
        if (is_cells(grads.grad_hidden)) {
          b.grad_hidden = cells_of(grads.grad_hidden, image);
        } else {
          b.grad_hidden = scratch_cells(grad_hiddens + u * grad_hidden_floats, l.width, h);
          load_lines(grads.grad_hidden, image, h, f, share, b.grad_hidden.data);
        }
      }
      share.wait();
      if (walks_forward) walk_forward(l, units, count, share, forward_packed, forward_floats, {limit, rows, product});
      walk_backward(l, units, back, count, share, packed, packed_floats,
                    {rows, limit, small, small + h, {sents, sents + group * sent_floats}});

      for (int64_t i = share.begin(count * blocks); i < share.end(count * blocks); ++i) {
        const Unit& unit = units[i / blocks];
        const int64_t y = i % blocks * lines;
        if (args.gradients[unit.walk].grad_weight)
          add_weight_block(l, unit, back[i / blocks].grad_gates, {y, min64(y + lines, l.height), 0, l.width}, planes,
                           panel, sums + unit.walk * weight_sums);
      }
      for (int64_t u = 0; u < count; ++u) {
        const ImageView& target = args.gradients[units[u].walk].grad_gates;
        if (target.data && !is_cells(target))
          store_lines(target, units[u].image, 4 * h, f, share, back[u].grad_gates.data);
      }
    });

    if (wants_weight) {
      const int64_t pieces = ceil_div(4 * h, IO);
      barrier.wait(omp_get_num_threads());
#pragma omp for nowait
      for (int64_t i = 0; i < walks * l.tap_count * pieces; ++i) {
        const int64_t w = i / pieces / l.tap_count, tap = i / pieces % l.tap_count, j = i % pieces * IO;
        if (args.gradients[w].grad_weight)
          GK_BY_STORAGE(l.storage, write_weight, l, args.gradients[w].grad_weight, tap, j,
                        of_threads + w * weight_sums, thread_floats, team);
      }
    }
  }
  for (int64_t w = 0; w < walks; ++w) {
    const float* const state_sums = of_threads + walks * weight_sums + w * state_floats;
    const WavefrontGradients& grads = args.gradients[w];
    if (grads.grad_h0) GK_BY_STORAGE(l.storage, write_state, grads.grad_h0, h, state_sums, thread_floats, team);
    if (grads.grad_c0) GK_BY_STORAGE(l.storage, write_state, grads.grad_c0, h, state_sums + h, thread_floats, team);
  }
  return true;
}

}  // namespace gk::GK_ISA
