// hidden = the wavefront LSTM over gates (the input-to-state part, given or convolved of x), front by front.
//
// Tiling: a thread walks whole images, several in step, without waiting for any other; only images that are left over
// (fewer than threads) are shared, a front split among the threads and a barrier behind it. A front of the group is
// one product: rows = cells, each row the h of its taps and the x of its input taps side by side (gathered: at a fixed
// stride a diagonal would meet itself in the same sets of L1), columns = 4h gates in panels, then one elementwise pass.
// No skewed copy is made, and a cell outside the image is a pointer to the initial state.
//
// Traffic: gates that are given are brought into channels-last order once, straight into the buffer that is kept for
// backward, where the walk overwrites them. Gates that are convolved leave no trace: x, a quarter of them, is brought
// into that order instead (a convolution before the walk writes them to L3 or memory and runs at 85 % of peak for its
// short sums: forward takes 7-10 % longer with it at h = 64). hidden leaves likewise. Float32 tensors that are
// channels_last are read and written in place. Weights (4h floats for every float of a row) stream from L2 or L3 once
// a front, rows and sums stay within L2.
//
// Floor: 2 * (taps * h + input taps * channels) * 4h operations a cell. Bound: the multiply-add units for h >= 32 or
// so. Measured on AVX2, one thread: 67-71 % of their peak at h = 64 on a diagonal (two taps, one input tap), 78 % on
// rows (three and two). The products alone run at 90 %; the elementwise pass takes a sixth of the time at h = 64, a
// share that grows as 1 / h below. In L1 it is bound by its 5 exp and 5 divisions a channel (52 cycles a vector, of
// which the divisions are 30), and takes twice that for the cells that come from and go to L2 and L3.
#include "cpu/wavefront_lstm/forward_sweep.h"

namespace gk::GK_ISA {

bool wavefront_lstm_forward(const WavefrontLSTMForward& args) {
  const WavefrontLSTM& l = args.lstm;
  const Fronts f = fronts_of(l);
  const int threads = useful_threads(l, args.direction_count, args.threads);
  const int64_t h = l.hidden, pixels = l.height * l.width, group = group_units(l, args.direction_count, threads);
  bool needs_input = false, needs_x = false, needs_c = false, needs_hidden = false;
  for (int64_t w = 0; w < args.direction_count; ++w) {
    const WavefrontDirection& walk = args.directions[w];
    needs_input |= !l.convolves() && !walk.saved && !is_cells(walk.gates);
    needs_x |= l.convolves() && !is_cells(walk.x);
    needs_c |= !walk.saved;
    needs_hidden |= !is_cells(walk.hidden);
  }
  const int64_t packed_floats = padded(4 * h) * reductions_of(l);
  const int64_t input_floats = needs_input ? pixels * 4 * h : 0;  // of one unit, as the next three
  const int64_t x_floats = needs_x ? pixels * l.channels : 0;
  const int64_t c_floats = needs_c ? f.positions() * h : 0;
  const int64_t hidden_floats = needs_hidden ? pixels * h : 0;
  const int64_t group_floats = Scratch::round(group * (input_floats + x_floats + c_floats + hidden_floats) + IO);
  const int64_t limit = product_rows(l);
  const int64_t row_floats = Scratch::round(limit * reductions_of(l)), sum_floats = limit * padded(4 * h);
  const int64_t thread_floats = group_floats + row_floats + sum_floats;
  const Scratch scratch(args.direction_count * (packed_floats + constant_floats(l)) + threads * thread_floats);
  if (!scratch.data()) return false;
  for (int64_t w = 0; w < args.direction_count; ++w) {
    want_huge_pages(args.directions[w].hidden, l.batch * h * pixels);
    want_huge_pages(args.directions[w].saved, l.batch * pixels * 5 * h * sizeof(float));
  }
  float* const packed = scratch.data();
  float* const constants = packed + args.direction_count * packed_floats;
  float* const of_threads = constants + args.direction_count * constant_floats(l);

  FrontBarrier barrier;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for nowait
    for (int64_t i = 0; i < args.direction_count * panel_count(4 * h); ++i) {
      const int64_t w = i / panel_count(4 * h), panel = i % panel_count(4 * h);
      const WavefrontDirection& walk = args.directions[w];
      GK_BY_STORAGE(l.storage, pack_forward, l, walk, panel, packed + w * packed_floats);
      if (panel == 0) GK_BY_STORAGE(l.storage, read_constants, l, walk, constants + w * constant_floats(l));
    }
    barrier.wait(omp_get_num_threads());

    float* const own = of_threads + omp_get_thread_num() * thread_floats;
    const ProductScratch product{limit, own + group_floats, own + group_floats + row_floats};
    for_groups(args.direction_count * l.batch, group, &barrier, [&](int64_t first, int64_t count, const Share& share) {
      float* const inputs = share.count > 1 ? of_threads : own;
      float* const xs = inputs + group * input_floats;
      float* const cs = xs + group * x_floats;
      float* const hiddens = cs + group * c_floats;
      Unit units[UNITS_MAX];
      for (int64_t u = 0; u < count; ++u) {
        const int64_t w = (first + u) / l.batch, image = (first + u) % l.batch;
        const WavefrontDirection& walk = args.directions[w];
        float* const saved = walk.saved ? walk.saved + image * pixels * 5 * h : nullptr;
        float* const constant = constants + w * constant_floats(l);
        Unit& unit = units[u];
        unit = {w, image, walk.mirrored, {}, {}, saved, saved ? saved + pixels * 4 * h : cs + u * c_floats,
                saved != nullptr, {}, constant, constant + h};
        if (l.convolves()) {
          read_x(l, walk, f, share, constant, xs + u * x_floats, unit);
        } else if (is_cells(walk.gates)) {
          unit.input = cells_of(walk.gates, image);
        } else {
          unit.input = scratch_cells(saved ? saved : inputs + u * input_floats, l.width, 4 * h);
          load_lines(walk.gates, image, 4 * h, f, share, unit.input.data);
        }
        unit.hidden = is_cells(walk.hidden) ? cells_of(walk.hidden, image)
                                            : scratch_cells(hiddens + u * hidden_floats, l.width, h);
      }
      share.wait();
      walk_forward(l, units, count, share, packed, packed_floats, product);
      for (int64_t u = 0; u < count; ++u) {
        const WavefrontDirection& walk = args.directions[units[u].walk];
        if (!is_cells(walk.hidden)) store_lines(walk.hidden, units[u].image, h, f, share, units[u].hidden.data);
      }
    });
  }
  return true;
}

}  // namespace gk::GK_ISA
