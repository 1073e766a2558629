// Gradients of x and weight by the direct products, or with that of x as col2im.
//
// The gradient of the product is made once, through activation and batch norm, while grad_y and z (or y) are read into
// scratch; both products read it there. grad_x is the twin product of the forward pass (of a strided one the transposed
// one, and the other way round), direct.cpp or col2im.cpp; the weight gradient is that of weight_gradient.cpp.
// Scratch, in float32: the gradient of the product as pixels, x in the order that the weight gradient takes (nothing
// where x already is so), and of a strided convolution the gradient's planes too. Tasks of both products share one
// queue. Traffic: grad_y, z and x once, the gradients once, scratch once per panel. Bound: the multiply-add units.
#include "cpu/conv_bn_act/col2im.h"
#include "cpu/conv_bn_act/direct.h"
#include "cpu/conv_bn_act/weight_gradient.h"

namespace gk::GK_ISA::conv_bn_act {
namespace {

// Whether x can serve as planes where it is: float32, a plane without gaps, one image at a time.
bool planes_in_place(const ImageView& v, const ConvShape& s, int64_t images) {
  return images == 1 && v.storage == Storage::float32 && v.stride_w == 1 && v.stride_h == s.low_w;
}

// Both to be called by all threads of a team.
void load_all(const ConvBackward& args, const NhwcLayout& of_gradient, float* gradient, const NhwcLayout& of_x,
              float* x) {
#pragma omp for schedule(dynamic) nowait
  for (int64_t n = 0; n < args.shape.batch; ++n)
    load_gradient(args.gradient, of_gradient, n, gradient + n * of_gradient.image_floats());
  if (x) {
#pragma omp for schedule(dynamic) nowait
    for (int64_t n = 0; n < args.shape.batch; ++n) load_image(args.x, of_x, n, x + n * of_x.image_floats());
  }
#pragma omp barrier
}

void make_all_planes(const ConvShape& s, const NhwcImage& low, int64_t images, int64_t stride_channel, float* planes) {
  const int64_t groups = ceil_div(s.low_channels, IO), blocks = ceil_div(s.batch, images);
#pragma omp for schedule(dynamic)
  for (int64_t i = 0; i < blocks * groups; ++i) {
    const int64_t n0 = i / groups * images;
    make_planes(low, s.low_h, s.low_w, n0, min64(images, s.batch - n0), i % groups * IO, stride_channel,
                planes + n0 * s.low_h * s.low_w);
  }
}

template <class Product>  // of the input gradient: DirectConv or Col2ImConv
Outcome backward(const ConvBackward& args, Product& product, int threads) {
  const ConvShape& s = args.shape;
  const bool transposed = args.kind == ConvKind::transposed;
  const bool wants_x = args.grad_x.data, wants_weight = args.grad_weight.data;
  const WeightGradient weight_gradient(s, args.grad_weight, threads);
  const NhwcLayout low = low_layout(s);
  const NhwcLayout high =
      weight_gradient.wants_border() ? DirectGeometry(s, ConvKind::strided).layout : high_layout(s);
  const NhwcLayout &of_gradient = transposed ? high : low, &of_x = transposed ? low : high;
  const bool x_as_planes = transposed && planes_in_place(args.x, s, weight_gradient.images());
  const bool makes_planes = wants_weight && !x_as_planes;  // of the low image
  const bool loads_x = makes_planes && !readable_in_place(args.x, of_x);
  const int64_t plane = s.batch * s.low_h * s.low_w;

  ScratchLayout shared, own;
  const auto for_product = shared.take<float>(wants_x ? product.shared_floats() : 0);
  const auto for_gradient = shared.take<float>(s.batch * of_gradient.image_floats());
  const auto for_x = shared.take<float>(loads_x ? s.batch * of_x.image_floats() : 0);
  const auto for_planes = shared.take<float>(makes_planes ? s.low_channels * plane : 0);
  const auto for_task = own.take<float>(
      max64(wants_x ? product.thread_floats() : 0, wants_weight ? weight_gradient.thread_floats() : 0));
  const Scratch scratch(shared, own, threads);
  if (!scratch.data()) return Outcome::no_memory;
  if (wants_x) product.prepare(scratch.shared(for_product));
  float* const x = loads_x ? scratch.shared(for_x) : nullptr;
  float* const planes = scratch.shared(for_planes);

  const NhwcImage gradient = image_in_scratch(of_gradient, scratch.shared(for_gradient));
  const NhwcImage x_image = loads_x ? image_in_scratch(of_x, x) : image_in_place(args.x, of_x);
  const NhwcImage &low_image = transposed ? x_image : gradient, &high_image = transposed ? gradient : x_image;
  NchwImage low_planes{planes, plane, weight_gradient.images() * s.low_h * s.low_w};
  if (x_as_planes) low_planes = {static_cast<const float*>(args.x.data), args.x.stride_c, args.x.stride_n};
  const int64_t x_tasks = wants_x ? product.tasks() : 0, weight_tasks = wants_weight ? weight_gradient.tasks() : 0;
#pragma omp parallel num_threads(threads)
  {
    load_all(args, of_gradient, scratch.shared(for_gradient), of_x, x);
    if (makes_planes) make_all_planes(s, low_image, weight_gradient.images(), plane, planes);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < x_tasks + weight_tasks; ++task) {
      if (task < x_tasks)
        product.run_task(task, gradient, scratch.own(for_task));
      else
        weight_gradient.run_task(task - x_tasks, low_planes, high_image, scratch.own(for_task));
    }
  }
  return Outcome::done;
}

}  // namespace

Outcome direct_backward(const ConvBackward& args) {
  const ConvShape& s = args.shape;
  const int threads = useful_threads(s, args.threads);
  const ConvKind kind = twin(args.kind);
  const ColumnWeight weight = columns_of(s, args.weight, kind);
  DirectConv product(DirectGeometry(s, kind), s.batch, weight, args.grad_x, NO_EPILOGUE, threads);
  return backward(args, product, threads);
}

Outcome col2im_backward(const ConvBackward& args) {
  const ConvShape& s = args.shape;
  Col2ImConv product(s, columns_of(s, args.weight, ConvKind::transposed), args.grad_x, NO_EPILOGUE);
  return backward(args, product, useful_threads(s, args.threads));
}

}  // namespace gk::GK_ISA::conv_bn_act
