// y = act(scale * product + shift), or the product with the mean and spread of each of its channels.
//
// See conv_bn_act/direct.h for the tiling; kernels of 4 x 4 with stride 2 and many channels go by
// conv_bn_act/winograd_product.h, up to 7 output channels of a transposed convolution by conv_bn_act/col2im.h.
// Traffic: x once into scratch (none for float32 channels_last) and from there once per panel of 16 outputs, y once,
// the weights once per part. Bound: the multiply-add units; taps on the border are not multiplied.
#include "cpu/conv_bn_act/col2im.cpp"
#include "cpu/conv_bn_act/winograd_product.cpp"

namespace gk::GK_ISA {
namespace {

// Brings the images [first, first + count) of x into scratch, split among the threads of a team.
void load_images(const ImageView& x, const PixelLayout& layout, int64_t batch, float* out) {
#pragma omp for schedule(dynamic)
  for (int64_t n = 0; n < batch; ++n) load_image(x, layout, n, out + n * layout.image_floats());
}

bool forward_scattered(const ConvForward& args, const ColumnWeight& weight, const Epilogue& epilogue, int threads) {
  const ConvShape& s = args.shape;
  const PixelLayout layout{s.small_channels, s.small_h, s.small_w, 0, 0, 0, 0};
  ScatterProduct product(s, weight, args.y, epilogue, args.statistics);
  const bool in_place = readable_in_place(args.x, layout);
  const int64_t image_floats = in_place ? 0 : Scratch::round(layout.image_floats());
  const int64_t thread_floats = product.thread_floats() + image_floats;
  const Scratch scratch(product.shared_floats() + threads * thread_floats);
  if (!scratch.data()) return false;
  product.set_shared(scratch.data());
  product.pack();
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t n = 0; n < s.batch; ++n) {
    float* const own = scratch.data() + product.shared_floats() + omp_get_thread_num() * thread_floats;
    if (in_place) {
      product.run_unit(n, pixels_in_place(args.x, layout), own);
    } else {
      float* const image = own + product.thread_floats();
      load_image(args.x, layout, n, image);
      product.run_unit(n, {image, layout.channels, 0, layout.pitch()}, own);
    }
  }
  if (args.statistics) product.write_statistics();
  return true;
}

template <int TILE>
Outcome forward_winograd(const ConvForward& args, const ColumnWeight& weight, const Epilogue& epilogue, int threads) {
  const ConvShape& s = args.shape;
  const TileGrid grid(s, args.up, TILE);
  const int64_t weights = PHASES * components_of(TILE) * s.small_channels * s.large_channels;
  const int64_t images =
      winograd_round(s, Transformed::image_floats(grid, PHASES), max64(ROUND_FLOATS, weights), threads);
  const int64_t rounds = ceil_div(s.batch, images);
  Transformed in(grid.layout.channels, TILE, images * grid.tiles());
  WinogradProduct<TILE> product(s, args.up, images, rounds, weight, args.y, epilogue, args.statistics != nullptr, threads);
  const int64_t thread_floats = Scratch::round(max64(product.thread_floats(), grid.layout.image_floats()));
  const int64_t in_floats = Scratch::round(in.floats(PHASES)), shared_floats = product.shared_floats() + in_floats;
  const Scratch scratch(shared_floats + threads * thread_floats);
  if (!scratch.data()) return Outcome::no_memory;
  Evenness evenness;
  product.set_shared(scratch.data());
  in.data = scratch.data() + product.shared_floats();
#pragma omp parallel num_threads(threads)
  {
    float* const own = scratch.data() + shared_floats + omp_get_thread_num() * thread_floats;
    product.pack_shared(evenness);
    for (int64_t n0 = 0; n0 < s.batch; n0 += images) {
      const int64_t n1 = min64(s.batch, n0 + images);
#pragma omp for schedule(dynamic)
      for (int64_t n = n0; n < n1; ++n) {
        load_image(args.x, grid.layout, n, own);
        look_at_image(evenness, grid.layout, own);
        transform_inputs<TILE>(grid, own, in, (n - n0) * grid.tiles());
      }
#pragma omp for schedule(dynamic)
      for (int64_t unit = 0; unit < product.units(); ++unit)
        if (!evenness.refused()) product.run_unit(unit, in, n0, n1, evenness, own);
    }
  }
  if (evenness.refused()) return Outcome::uneven;
  if (args.statistics) product.write_statistics(args.statistics);
  return Outcome::done;
}

}  // namespace

bool conv_forward(const ConvForward& args) {
  const ConvShape& s = args.shape;
  const int threads = useful_threads(s, args.threads);
  const ColumnWeight weight = columns_of(s, args.weight, args.up);
  const Epilogue epilogue{args.scale, args.shift, args.activation};
  if (args.up && ScatterProduct::suits(s)) return forward_scattered(args, weight, epilogue, threads);

  if (winograd_suits(s)) {
    const Outcome outcome = tile_of(s, args.up) == 2 ? forward_winograd<2>(args, weight, epilogue, threads)
                                                     : forward_winograd<4>(args, weight, epilogue, threads);
    if (outcome != Outcome::uneven) return outcome == Outcome::done;
  }

  const ProductGeometry geometry(s, args.up);
  DirectConv product(geometry.rows, geometry.cols, s.batch, weight, args.y, epilogue, args.statistics != nullptr, threads);
  const bool in_place = readable_in_place(args.x, geometry.layout);
  const int64_t x_floats = in_place ? 0 : Scratch::round(s.batch * geometry.layout.image_floats());
  const Scratch scratch(product.shared_floats() + x_floats + threads * product.thread_floats());
  if (!scratch.data()) return false;
  product.set_shared(scratch.data());
  float* const x = scratch.data() + product.shared_floats();
  const Pixels in = in_place ? pixels_in_place(args.x, geometry.layout) : pixels_in_scratch(geometry.layout, x);
#pragma omp parallel num_threads(threads)
  {
    if (!in_place) load_images(args.x, geometry.layout, s.batch, x);
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < product.units(); ++unit)
      product.run_unit(unit, in, x + x_floats + omp_get_thread_num() * product.thread_floats());
  }
  if (args.statistics) product.write_statistics(args.statistics);
  return true;
}

}  // namespace gk::GK_ISA
