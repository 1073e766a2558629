// Gradients of x and weight.
//
// The gradient of the convolution's result is made once, through activation and batch norm, while grad_y and z (or y)
// are read into scratch; both products read it there. grad_x is the twin product of conv_bn_act/direct.h (of a
// convolution the transposed one, and the other way round), the weight gradient that of conv_bn_act/weight_gradient.h; kernels of
// 4 x 4 with stride 2 and many channels take both in Winograd's form, conv_bn_act/winograd.h.
// Scratch, in float32: the result's gradient as pixels, x in the order that the weight gradient wants (nothing where x
// already is so), and of a plain convolution the gradient's planes too. Units of both products share one queue.
// Traffic: grad_y, z and x once, the gradients once, scratch once per panel. Bound: the multiply-add units.
#include "cpu/conv_bn_act/col2im.cpp"
#include "cpu/conv_bn_act/weight_gradient.cpp"
#include "cpu/conv_bn_act/winograd_product.cpp"
#include "cpu/conv_bn_act/winograd_weight_gradient.cpp"

namespace gk::GK_ISA {
namespace {

// Whether x can serve as planes where it is: float32, a plane without gaps, one image at a time.
bool planes_in_place(const ImageView& v, const ConvShape& s, int64_t images) {
  return images == 1 && v.storage == Storage::float32 && v.stride_w == 1 && v.stride_h == s.small_w;
}

int64_t aligned(bool wanted, int64_t floats) { return wanted ? Scratch::round(floats) : 0; }

// Both gradients in Winograd's form. The weight gradient takes the large image as inputs and the small one as outputs;
// the input gradient takes the same large inputs where it goes down, and small inputs of its own where it goes up.
template <int TILE>  // of the input gradient
Outcome backward_winograd(const ConvBackward& args, int threads) {
  const ConvShape& s = args.shape;
  const bool up = args.up, wants_x = args.grad_x.data, wants_weight = args.grad_weight.data;
  const bool wants_large = up || wants_weight, wants_small = !up && wants_x;
  const TileGrid large_grid(s, false, DOWN_TILE), small_grid(s, true, TILE);
  const PixelLayout of_outputs = outputs_layout(s);
  const int64_t image_floats = (wants_large ? Transformed::image_floats(large_grid, PHASES) : 0) +
                               (wants_small ? Transformed::image_floats(small_grid, PHASES) : 0);
  // Sums wait in memory between rounds: where they are many, fewer rounds are better.
  const int64_t sums = wants_weight ? PHASES * WinogradWeightGradient::COMPONENTS * s.small_channels * s.large_channels : 0;
  const int64_t images = winograd_round(s, image_floats, max64(ROUND_FLOATS, sums), threads);
  const int64_t rounds = ceil_div(s.batch, images), tiles = large_grid.tiles();
  const Epilogue none{nullptr, nullptr, {Activation::none, 0}};
  WinogradProduct<TILE> product(s, !up, images, rounds, columns_of(s, args.weight, !up), args.grad_x, none, false, threads);
  const WinogradWeightGradient weight_gradient(s, args.grad_weight, rounds, threads);

  Transformed large(s.large_channels, DOWN_TILE, images * tiles), outputs(s.small_channels, DOWN_TILE, images * tiles);
  Transformed small(s.small_channels, TILE, images * small_grid.tiles());
  const int64_t large_floats = aligned(wants_large, large.floats(PHASES));
  const int64_t small_floats = aligned(wants_small, small.floats(PHASES));
  const int64_t outputs_floats = aligned(wants_weight, outputs.floats(1));
  const int64_t sums_floats = wants_weight ? weight_gradient.shared_floats() : 0;
  const int64_t product_floats = wants_x ? product.shared_floats() : 0;
  const int64_t image = max64(max64(large_grid.layout.image_floats(), small_grid.layout.image_floats()),
                              of_outputs.image_floats());
  const int64_t thread_floats = Scratch::round(max64(image, max64(wants_x ? product.thread_floats() : 0,
                                                                  wants_weight ? weight_gradient.thread_floats() : 0)));
  const int64_t shared_floats = large_floats + small_floats + outputs_floats + sums_floats + product_floats;
  const Scratch scratch(shared_floats + threads * thread_floats);
  if (!scratch.data()) return Outcome::no_memory;
  Evenness evenness;
  large.data = scratch.data();
  small.data = large.data + large_floats;
  outputs.data = small.data + small_floats;
  float* const shared_sums = outputs.data + outputs_floats;
  if (wants_x) product.set_shared(shared_sums + sums_floats);

  const int64_t x_units = wants_x ? product.units() : 0, weight_units = wants_weight ? weight_gradient.units() : 0;
#pragma omp parallel num_threads(threads)
  {
    float* const own = scratch.data() + shared_floats + omp_get_thread_num() * thread_floats;
    const auto load = [&](bool of_gradient, const PixelLayout& layout, int64_t n) {
      if (of_gradient)
        load_gradient(args.gradient, layout, n, own);
      else
        load_image(args.x, layout, n, own);
      look_at_image(evenness, layout, own);
    };
    if (wants_x) product.pack_shared(evenness);
    for (int64_t n0 = 0, round = 0; n0 < s.batch; n0 += images, ++round) {
      const int64_t n1 = min64(s.batch, n0 + images);
#pragma omp for schedule(dynamic)
      for (int64_t n = n0; n < n1; ++n) {
        if (wants_large) {
          load(up, large_grid.layout, n);
          transform_inputs<DOWN_TILE>(large_grid, own, large, (n - n0) * tiles);
        }
        if (wants_small) {
          load(true, small_grid.layout, n);
          transform_inputs<TILE>(small_grid, own, small, (n - n0) * small_grid.tiles());
        }
        if (wants_weight) {
          load(!up, of_outputs, n);
          transform_outputs(of_outputs, own, outputs, (n - n0) * tiles);
        }
      }
#pragma omp for schedule(dynamic)
      for (int64_t unit = 0; unit < x_units + weight_units; ++unit) {
        if (evenness.refused()) continue;
        if (unit < x_units)
          product.run_unit(unit, up ? large : small, n0, n1, evenness, own);
        else
          weight_gradient.run_unit(unit - x_units, outputs, large, (n1 - n0) * tiles, round, shared_sums, own);
      }
    }
  }
  return evenness.refused() ? Outcome::uneven : Outcome::done;
}

}  // namespace

bool conv_backward(const ConvBackward& args) {
  const ConvShape& s = args.shape;
  const int threads = useful_threads(s, args.threads);
  if (winograd_suits(s)) {
    const Outcome outcome =
        tile_of(s, !args.up) == 2 ? backward_winograd<2>(args, threads) : backward_winograd<4>(args, threads);
    if (outcome != Outcome::uneven) return outcome == Outcome::done;
  }
  const bool up = args.up, wants_x = args.grad_x.data, wants_weight = args.grad_weight.data;
  const bool scattered = !up && ScatterProduct::suits(s);

  const ProductGeometry twin(s, !up);  // reads the gradient, writes grad_x
  const WeightGradient weight_gradient(s, args.grad_weight, threads);
  const Epilogue none{nullptr, nullptr, {Activation::none, 0}};
  const ColumnWeight weight = columns_of(s, args.weight, !up);
  DirectConv product(twin.rows, twin.cols, s.batch, weight, args.grad_x, none, false, threads);
  ScatterProduct scatter(s, weight, args.grad_x, none, nullptr);

  // The large image with the border that either product asks for.
  const ProductGeometry down(s, false);
  PixelLayout large{s.large_channels, s.large_h, s.large_w, 0, 0, 0, 0};
  if (weight_gradient.wants_border()) large = down.layout;
  const PixelLayout small{s.small_channels, s.small_h, s.small_w, 0, 0, 0, 0};
  const PixelLayout& of_gradient = up ? large : small;
  const PixelLayout& of_x = up ? small : large;

  const bool x_as_planes = up && planes_in_place(args.x, s, weight_gradient.images());
  const bool x_in_place = readable_in_place(args.x, of_x);
  const bool makes_planes = wants_weight && !x_as_planes;  // of x when up, else of the gradient
  const bool loads_x = wants_weight && !x_as_planes && !x_in_place;
  const int64_t gradient_floats = Scratch::round(s.batch * of_gradient.image_floats());
  const int64_t x_floats = aligned(loads_x, s.batch * of_x.image_floats());
  const int64_t plane = s.batch * s.small_h * s.small_w;
  const int64_t plane_floats = aligned(makes_planes, s.small_channels * plane);
  const int64_t shared_floats = !wants_x ? 0 : scattered ? scatter.shared_floats() : product.shared_floats();
  const int64_t thread_floats =
      max64(!wants_x ? 0 : scattered ? scatter.thread_floats() : product.thread_floats(),
            wants_weight ? weight_gradient.thread_floats() : 0);
  const Scratch scratch(shared_floats + gradient_floats + x_floats + plane_floats + threads * thread_floats);
  if (!scratch.data()) return false;
  float* const gradient = scratch.data() + shared_floats;
  float* const x = gradient + gradient_floats;
  float* const planes = x + x_floats;
  float* const first_thread = planes + plane_floats;
  if (wants_x && scattered) scatter.set_shared(scratch.data());
  if (wants_x && !scattered) product.set_shared(scratch.data());
  if (wants_x && scattered) scatter.pack();

  const Pixels gradient_pixels = pixels_in_scratch(of_gradient, gradient);
  const Pixels x_pixels = loads_x ? pixels_in_scratch(of_x, x) : pixels_in_place(args.x, of_x);
  const Pixels& large_pixels = up ? gradient_pixels : x_pixels;
  const Pixels& small_pixels = up ? x_pixels : gradient_pixels;
  const int64_t images = weight_gradient.images(), blocks = ceil_div(s.batch, images);
  Planes small_planes{planes, plane, images * s.small_h * s.small_w};
  if (x_as_planes) small_planes = {static_cast<const float*>(args.x.data), args.x.stride_c, args.x.stride_n};
  const int64_t x_units = !wants_x ? 0 : scattered ? scatter.units() : product.units();
  const int64_t weight_units = wants_weight ? weight_gradient.units() : 0;

#pragma omp parallel num_threads(threads)
  {
    float* const own = first_thread + omp_get_thread_num() * thread_floats;
#pragma omp for schedule(dynamic) nowait
    for (int64_t n = 0; n < s.batch; ++n) load_gradient(args.gradient, of_gradient, n, gradient + n * of_gradient.image_floats());
    if (loads_x) {
#pragma omp for schedule(dynamic) nowait
      for (int64_t n = 0; n < s.batch; ++n) load_image(args.x, of_x, n, x + n * of_x.image_floats());
    }
#pragma omp barrier
    if (makes_planes) {
      const int64_t groups = ceil_div(s.small_channels, IO);
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < blocks * groups; ++i) {
        const int64_t n0 = i / groups * images;
        make_planes(small_pixels, s.small_h, s.small_w, n0, min64(images, s.batch - n0), i % groups * IO, plane,
                    planes + n0 * s.small_h * s.small_w);
      }
    }
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < x_units + weight_units; ++unit) {
      if (unit >= x_units)
        weight_gradient.run_unit(unit - x_units, small_planes, large_pixels, own);
      else if (scattered)
        scatter.run_unit(unit, gradient_pixels, own);
      else
        product.run_unit(unit, gradient_pixels, own);
    }
  }
  return true;
}

}  // namespace gk::GK_ISA
