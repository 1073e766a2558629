// Gradients of the masked convolution: input, weight and bias in one pass over grad_y and x.
//
// Tiling: units as in the forward pass. For each, grad_y (zeroed where the ReLU was off) comes into scratch as
// [row][column][channel] with the border that the mirrored taps reach, x as [channel][row][column] with the forward
// border.
//   grad_x       gemm_tile, rows = pixels, segments = mirrored taps, panels = input channels.
//   grad_weight  gemm_tile, rows = (tap, input channel) planes of x shifted by the tap, segments = lines of the unit,
//                panels = output channels of grad_y. Sums of a unit are added to the thread's own [K][O] buffer, and
//                the buffers are added in thread order at the end: the result depends on the thread count alone.
//   grad_bias    summed while the panels of grad_y are packed.
// Traffic: grad_y (and y), x and grad_x once; scratch in L2; a panel of grad_y (unit pixels * PANEL floats) in L1.
// Bound: the multiply-add units. Short lines cost most: a segment ends every W steps of grad_weight.
// Many channels, where the mask is one for all of them, go to masked_conv/winograd_f23_backward.cpp.
#include "cpu/masked_conv/winograd_f23_backward.cpp"

namespace gk::GK_ISA {
namespace {

// Packs a panel of the unit's grad_y as [pixel][panel.width()] and adds its sum over the pixels to `bias`.
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

// Adds the unit's share of grad_weight for one panel: sums[tap * C + channel][column].
void accumulate_weight(const MaskedConv& c, const Region& region, const float* planes, int64_t pitch, int64_t area,
                       const Panel& panel, const float* gradient, Segment* lines, float* sums, int64_t sums_stride) {
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
      if (++channel == C) channel = 0, ++tap;
    }
    tile_function(TileMode::add, static_cast<int>(count), panel.nr)(
        rows, lines, line_count, gradient, sums + first * sums_stride, sums_stride);
  });
}

}  // namespace

bool masked_conv_backward(const MaskedConvBackward& args) {
  const MaskedConv& c = args.conv;
  const bool wants_x = args.grad_x.data, wants_weight = args.grad_weight.data, wants_bias = args.grad_bias;
  const int threads = useful_threads(c, args.threads);
  if (pairs_pay(c)) {
    const Outcome outcome = masked_conv_backward_pairs(args, threads);
    if (outcome != Outcome::uneven) return outcome == Outcome::done;
  }
  const int64_t taps = c.full_taps(), C = c.in_channels, O = c.out_channels;
  const MaskedGemm to_x{C, O, args.weight.stride_in, args.weight.stride_out, c.in_order, c.out_order,
                     c.centre_begin, nullptr, /*centre_first=*/true};
  const MaskedGemm to_weight{O, C, 0, 0, c.out_order, c.in_order, nullptr, c.centre_end, /*centre_first=*/false};

  const Tiling tiling = make_tiling(c, O + (wants_weight ? C : 0), threads);
  const int64_t rows_max = tiling.rows + c.reach_up();
  const int64_t area_max = rows_max * (tiling.columns + c.reach_left() + c.reach_right());
  const int64_t panel_floats = Scratch::round(tiling.rows * tiling.columns * PANEL_MAX);
  const int64_t gradient_floats = Scratch::round(area_max * O);
  const int64_t plane_floats = wants_weight ? Scratch::round(area_max * C) : 0;
  const int64_t segments_max = max64((taps + 1) * most_segments(O), rows_max * most_segments(tiling.columns));
  const int64_t segment_floats = Scratch::round(segments_max * (sizeof(Segment) / sizeof(float)));
  const int64_t sums_stride = panel_count(O) * PANEL_MAX;
  const int64_t sums_floats = wants_weight ? (taps + 1) * C * sums_stride : 0;
  const int64_t buffer_floats = wants_weight ? Scratch::round(c.kernel_h * c.kernel_w * PANEL_MAX) : 0;
  // Sums first: what is added across threads stands at a fixed distance.
  const int64_t thread_floats = sums_floats + sums_stride + gradient_floats + plane_floats + 2 * panel_floats +
                                segment_floats + buffer_floats;
  const int64_t weight_floats = wants_x ? Scratch::round(packed_floats(to_x, taps)) : 0;
  const Scratch scratch(weight_floats + threads * thread_floats);
  if (!scratch.data()) return false;
  want_huge_pages(args.grad_x, c.batch * c.in_channels * c.height * c.width);
  float* const weights = scratch.data();
  float* const first_sums = weights + weight_floats;

  int team = 1;  // the threads that really came
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    team = omp_get_num_threads();
    float* const sums = first_sums + omp_get_thread_num() * thread_floats;
    float* const bias_sums = sums + sums_floats;
    float* const gradient = bias_sums + sums_stride;
    float* const planes = gradient + gradient_floats;
    float* const staging = planes + plane_floats;
    float* const packed = staging + panel_floats;
    Segment* const segments = reinterpret_cast<Segment*>(packed + panel_floats);
    float* const buffer = packed + panel_floats + segment_floats;
    memset(sums, 0, (sums_floats + sums_stride) * sizeof(float));
    if (wants_x) {
#pragma omp for
      for (int64_t p = 0; p < panel_count(C); ++p)
        GK_BY_STORAGE(args.weight.storage, pack_panel, args.weight, to_x, c, p, weights);
    }

#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < tiling.units; ++unit) {
      int64_t image;
      const Region region = tiling.region(c, unit, &image);
      // The border is for grad_x alone.
      const Region below = !wants_x ? region
                                    : Region{region.y0, region.y1 + c.reach_up(), region.x0 - c.reach_right(),
                                             region.x1 + c.reach_left()};
      const int64_t pitch = below.columns();
      load_pixels({args.grad_y, image, O, c.height, c.width, c.out_order, args.relu ? &args.y : nullptr}, below,
                  gradient);
      if (wants_x) {
        for (int64_t p = 0; p < panel_count(C); ++p) {
          const Panel panel = make_panel(to_x, p);
          const int64_t count = make_segments(c, to_x, panel, c.reach_right(), pitch, -1, segments);
          const Target target{args.grad_x, image, panel.first, panel.columns, c.in_order, nullptr, false};
          multiply_unit(region, gradient, pitch, O, segments, count, panel, weights + p * PANEL_MAX * (taps + 1) * O,
                        target, staging);
        }
      }
      if (!wants_weight && !wants_bias) continue;
      const Region above{region.y0 - c.reach_up(), region.y1, region.x0 - c.reach_left(),
                         region.x1 + c.reach_right()};
      if (wants_weight) load_planes({args.x, image, C, c.height, c.width, c.in_order, nullptr}, above, planes);
      for (int64_t p = 0; p < panel_count(O); ++p) {
        const Panel panel = make_panel(to_weight, p);
        pack_gradient_panel(region, gradient + (region.x0 - below.x0) * O, pitch, O, panel, packed,
                            bias_sums + p * PANEL_MAX);
        if (wants_weight)
          accumulate_weight(c, region, planes, above.columns(), above.pixels(), panel, packed, segments,
                            sums + p * PANEL_MAX, sums_stride);
      }
    }

    if (wants_weight) {
#pragma omp for
      for (int64_t p = 0; p < panel_count(O); ++p) {
        const Panel panel = make_panel(to_weight, p);
        const auto sum_taps = [&](int64_t k, float* to) {
          for (int64_t t = 0; t <= taps; ++t)
            for (int j = 0; j < panel.nr; ++j)
              store(to + t * PANEL_MAX + j * VL,
                    sum_threads(first_sums + (t * C + k) * sums_stride + p * PANEL_MAX + j * VL, thread_floats, team));
        };
        GK_BY_STORAGE(args.grad_weight.storage, write_weight, args, panel, sum_taps, buffer);
      }
    }
  }
  if (wants_bias)
    GK_BY_STORAGE(args.weight.storage, write_bias, args, first_sums + sums_floats, thread_floats, team);
  return true;
}

}  // namespace gk::GK_ISA
