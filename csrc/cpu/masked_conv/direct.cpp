// y = act(masked convolution of x + bias).
//
// Tiling: a unit is some rows of one image. Its pixels and their border are brought into scratch as
// [row][column][channel] (zero outside the image), so that every live tap of a pixel is a run of C floats at a fixed
// offset from the pixel, and taps side by side are one run. The product is then gemm_tile with pixels as rows and the
// taps as segments, against weights packed per panel of output channels; results are staged per panel in L1 and leave
// with bias and ReLU applied, transposed where y is NCHW. Dead taps are never packed and cost nothing.
//
// Traffic: x and y once from and to memory (border rows again per unit); the unit's scratch stays in L2 and is read
// once per panel, a panel (K * PANEL floats) streams from L1 or L2 at one register row per six multiply-adds.
//
// Bound: the multiply-add units for C >= 16 or so (measured 85-90 % of peak); writing y for the first layer of a
// network, where C is 1 or 3. Many channels, where the mask is one for all of them, go to masked_conv/winograd_f23.cpp.
#include "cpu/masked_conv/winograd_f23.cpp"
#include "cpu/masked_conv/first_layer_nchw.cpp"
#include "cpu/masked_conv/packing.h"

namespace gk::GK_ISA {

constexpr int64_t PATCH_PIXELS = 64;

bool masked_conv_forward(const MaskedConvForward& args) {
  const MaskedConv& c = args.conv;
  const int threads = useful_threads(c, args.threads);
  if (planar_pays(args)) return masked_conv_forward_planar(args, threads);
  if (pairs_pay(c)) {
    const Outcome outcome = masked_conv_forward_pairs(args, threads);
    if (outcome != Outcome::uneven) return outcome == Outcome::done;
  }
  const int64_t taps = c.full_taps();
  const MaskedGemm product{c.out_channels,   c.in_channels, args.weight.stride_out, args.weight.stride_in,
                        c.out_order,      c.in_order,    nullptr,                c.centre_end,
                        /*centre_first=*/false};
  // Few channels: the live taps of a pixel are gathered into one run, for a few pixels at a time. All panels then go
  // over these, so that y, which is what bounds this case, is written from front to back.
  const bool gathers = c.in_channels < 16 && taps > 0;
  const int64_t patch = (taps + 1) * c.in_channels;
  const Tiling tiling = make_tiling(c, c.in_channels, threads);
  const int64_t pitch_max = tiling.columns + c.reach_left() + c.reach_right();
  const int64_t source_floats = Scratch::round((tiling.rows + c.reach_up()) * pitch_max * c.in_channels + IO);
  const int64_t patch_lines = max64(1, PATCH_PIXELS / tiling.columns);
  const int64_t patch_floats = gathers ? Scratch::round(patch_lines * tiling.columns * patch + IO) : 0;
  const int64_t staging_floats = Scratch::round(staged_pixels(tiling) * PANEL_MAX);
  const int64_t segment_floats = Scratch::round((taps + 1) * most_segments(c.in_channels) * (sizeof(Segment) / sizeof(float)));
  const int64_t thread_floats = source_floats + patch_floats + staging_floats + segment_floats;
  const ForwardScratch scratch(args, packed_floats(product, taps), thread_floats, threads);
  if (!scratch) return false;
  float* const weights = scratch.weights();

#pragma omp parallel num_threads(threads)
  {
    float* const source = scratch.own();
    float* const patches = source + source_floats;
    float* const staging = patches + patch_floats;
    Segment* const segments = reinterpret_cast<Segment*>(staging + staging_floats);
#pragma omp for
    for (int64_t p = 0; p < panel_count(c.out_channels); ++p)
      GK_BY_STORAGE(args.weight.storage, pack_panel, args.weight, product, c, p, weights);

#pragma omp for schedule(dynamic) nowait
    for (int64_t unit = 0; unit < tiling.units; ++unit) {
      int64_t image;
      const Region region = tiling.region(c, unit, &image);
      const Region bordered{region.y0 - c.reach_up(), region.y1, region.x0 - c.reach_left(),
                            region.x1 + c.reach_right()};
      load_pixels({args.x, image, c.in_channels, c.height, c.width, c.in_order, nullptr}, bordered, source);
      const int64_t pitch = bordered.columns(), base = c.reach_up() * pitch + c.reach_left();
      const auto multiply = [&](const Region& part, int64_t p, const float* rows, int64_t row_pitch, int64_t row_floats,
                                int64_t segment_count, const Panel& panel) {
        const Target target{args.y, image, panel.first, panel.columns, c.out_order, scratch.bias(), args.relu};
        multiply_unit(part, rows, row_pitch, row_floats, segments, segment_count, panel,
                      weights + p * PANEL_MAX * patch, target, staging);
      };
      if (gathers) {
        for (int64_t y = region.y0; y < region.y1; y += patch_lines) {
          const Region part{y, min64(y + patch_lines, region.y1), region.x0, region.x1};
          const Panel all{0, 0, 0, 0, c.in_channels};
          const int64_t count = make_segments(c, product, all, base, pitch, 1, segments);
          gather_patches(part, source + (y - region.y0) * pitch * c.in_channels, pitch, c.in_channels, segments, count,
                         patches);
          for (int64_t p = 0; p < panel_count(c.out_channels); ++p) {
            const Panel panel = make_panel(product, p);
            const int64_t whole = cut_segment({0, taps * c.in_channels + panel.hi}, segments);
            multiply(part, p, patches, region.columns(), patch, whole, panel);
          }
        }
      } else {
        for (int64_t p = 0; p < panel_count(c.out_channels); ++p) {
          const Panel panel = make_panel(product, p);
          const int64_t count = make_segments(c, product, panel, base, pitch, 1, segments);
          multiply(region, p, source, pitch, c.in_channels, count, panel);
        }
      }
    }
  }
  return true;
}

}  // namespace gk::GK_ISA
