// Forward pass and gradients of the convolution by Winograd's F(4x4, 2x2) and F(2x2, 2x2), see winograd.h: images are
// transformed round by round, and the tasks of the products meet the transforms.
#include "cpu/conv_bn_act/winograd.h"

#include "cpu/conv_bn_act/winograd_points.h"
#include "cpu/conv_bn_act/winograd_product.h"
#include "cpu/conv_bn_act/winograd_weight_gradient.h"

namespace gk::GK_ISA::conv_bn_act {
namespace {

constexpr int64_t ROUND_FLOATS = int64_t{3} << 20;  // 12 MB: a share of L3 that is there where other programs run too

// Where this pays: from 64 channels on (at 32 the transforms cost what the products save), and where the tiles, edges
// included, take at most 0.8 of the direct multiplications.
bool suits(const ConvShape& s) {
  if (!allows_winograd()) return false;
  if (s.kernel_h != 4 || s.kernel_w != 4 || s.stride_h != 2 || s.stride_w != 2) return false;
  if (min64(s.low_channels, s.high_channels) < 64) return false;
  const auto products = [&](ConvKind kind) {
    const int64_t tile = tile_of(s, kind);
    return TileGrid(s, kind, tile).tiles() * PHASES * components_of(tile);
  };
  const auto live = [](const Axis& a) {
    int64_t count = 0;
    for (int64_t o = 0; o < a.out; ++o) count += a.hi(o) - a.lo(o);
    return count;
  };
  const int64_t direct = live(vertical(s, ConvKind::strided)) * live(horizontal(s, ConvKind::strided));
  return s.low_h * s.low_w <= 2048 &&
         max64(products(ConvKind::transposed), products(ConvKind::strided)) * 5 <= direct * 4;
}

// As even as can be, of as many images as `floats` of transforms hold, but no fewer than keep the threads busy.
Rounds rounds_of(const ConvShape& s, int64_t floats_per_image, int64_t floats, int threads) {
  const int64_t most = max64(1, min64(s.batch, max64(floats / floats_per_image, threads)));
  const int64_t images = ceil_div(s.batch, ceil_div(s.batch, most));
  return {images, ceil_div(s.batch, images)};
}

// The low image as outputs, a factor of the weight gradient; its tiles are those of the strided product.
NhwcLayout outputs_layout(const ConvShape& s) {
  const TileGrid grid(s, ConvKind::strided, STRIDED_TILE);
  NhwcLayout layout = low_layout(s);
  layout.bottom = grid.rows.tiles * STRIDED_TILE - s.low_h;
  layout.right = grid.cols.tiles * STRIDED_TILE - s.low_w;
  return layout;
}

// An image in scratch, with its border.
void look_at_image(Evenness& evenness, const NhwcLayout& l, const float* image) {
  evenness.look_at(image, l.image_floats(), l.channels * l.height * l.width);
}

// B d B' for all phases of one image with its border.
template <int TILE>
void transform_inputs(const TileGrid& grid, const float* image, const Transformed& to, int64_t first_tile) {
  constexpr int P = TILE + 1;
  const int64_t C = grid.layout.channels, pitch = grid.layout.pitch();
  const int64_t down = grid.rows.step * pitch, right = grid.cols.step * C;
  for (int64_t f = 0; f < PHASES; ++f)
    for (int64_t ty = 0; ty < grid.rows.tiles; ++ty)
      for (int64_t tx = 0; tx < grid.cols.tiles; ++tx) {
        const float* const from = image + grid.rows.origin[f / 2] * pitch + TILE * ty * down +
                                  grid.cols.origin[f % 2] * C + TILE * tx * right;
        float* const out = to.data + f * to.phase + (first_tile + ty * grid.cols.tiles + tx) * to.pitch;
        for_blocks(C, [&](int64_t c) {
          transform_square<P, P>(from + c, down, right, out + c, to.component,
                                 Points<TILE>::template inputs_to<Block>);
        });
      }
}

// A s A' for one image in outputs_layout.
void transform_outputs(const NhwcLayout& layout, const float* image, const Transformed& to, int64_t first_tile) {
  constexpr int TILE = STRIDED_TILE;
  const int64_t C = layout.channels, pitch = layout.pitch();
  const int64_t rows = (layout.height + layout.bottom) / TILE, cols = (layout.width + layout.right) / TILE;
  for (int64_t ty = 0; ty < rows; ++ty)
    for (int64_t tx = 0; tx < cols; ++tx) {
      const float* const from = image + TILE * ty * pitch + TILE * tx * C;
      float* const out = to.data + (first_tile + ty * cols + tx) * to.pitch;
      for_blocks(C, [&](int64_t c) {
        transform_square<TILE, TILE + 1>(from + c, pitch, C, out + c, to.component, Points<TILE>::outputs_to<Block>);
      });
    }
}

template <int TILE>
Outcome forward(const ConvForward& args) {
  const ConvShape& s = args.shape;
  const int threads = useful_threads(s, args.threads);
  const TileGrid grid(s, args.kind, TILE);
  const int64_t weights = PHASES * components_of(TILE) * s.low_channels * s.high_channels;
  const Rounds rounds =
      rounds_of(s, Transformed::image_floats(grid, PHASES), max64(ROUND_FLOATS, weights), threads);
  Transformed in(grid.layout.channels, TILE, rounds.images * grid.tiles());
  WinogradProduct<TILE> product(s, args.kind, rounds, columns_of(s, args.weight, args.kind), args.y, epilogue_of(args),
                                threads);
  ScratchLayout shared, own;
  const auto for_product = shared.take<float>(product.shared_floats());
  const auto for_transforms = shared.take<float>(in.floats(PHASES));
  const auto for_image_or_unit = own.take<float>(max64(product.thread_floats(), grid.layout.image_floats()));
  const Scratch scratch(shared, own, threads);
  if (!scratch.data()) return Outcome::no_memory;
  Evenness evenness;
  product.set_shared(scratch.shared(for_product));
  in.data = scratch.shared(for_transforms);
#pragma omp parallel num_threads(threads)
  {
    float* const mine = scratch.own(for_image_or_unit);
    product.pack_shared(evenness);
    for (int64_t n0 = 0; n0 < s.batch; n0 += rounds.images) {
      const int64_t n1 = min64(s.batch, n0 + rounds.images);
#pragma omp for schedule(dynamic)
      for (int64_t n = n0; n < n1; ++n) {
        load_image(args.x, grid.layout, n, mine);
        look_at_image(evenness, grid.layout, mine);
        transform_inputs<TILE>(grid, mine, in, (n - n0) * grid.tiles());
      }
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < product.tasks(); ++task)
        if (!evenness.refused()) product.run_task(task, in, n0, n1, evenness, mine);
    }
  }
  if (evenness.refused()) return Outcome::uneven;
  if (args.statistics) product.write_statistics(args.statistics);
  return Outcome::done;
}

// The transforms of both gradients. The weight gradient takes the high image as inputs and the low one as outputs; the
// input gradient takes the same high inputs where its product is strided, and low inputs of its own where it is
// transposed.
template <int TILE>  // of the input gradient
class GradientTransforms {
 public:
  explicit GradientTransforms(const ConvBackward& args)
      : args_(args), wants_weight_(args.grad_weight.data),
        wants_high_(args.kind == ConvKind::transposed || wants_weight_),
        wants_low_(args.kind == ConvKind::strided && args.grad_x.data),
        high_grid_(args.shape, ConvKind::strided, STRIDED_TILE), low_grid_(args.shape, ConvKind::transposed, TILE),
        of_outputs_(outputs_layout(args.shape)) {}

  int64_t floats_per_image() const {
    return (wants_high_ ? Transformed::image_floats(high_grid_, PHASES) : 0) +
           (wants_low_ ? Transformed::image_floats(low_grid_, PHASES) : 0);
  }
  // Of the image that a thread transforms.
  int64_t thread_floats() const {
    return max64(max64(high_grid_.layout.image_floats(), low_grid_.layout.image_floats()), of_outputs_.image_floats());
  }
  int64_t tiles() const { return high_grid_.tiles(); }  // of one image in the weight gradient

  // Room for those of `images`.
  void take(int64_t images, ScratchLayout& layout) {
    const ConvShape& s = args_.shape;
    high = Transformed(s.high_channels, STRIDED_TILE, images * tiles());
    low = Transformed(s.low_channels, TILE, images * low_grid_.tiles());
    outputs = Transformed(s.low_channels, STRIDED_TILE, images * tiles());
    high_at_ = layout.take<float>(wants_high_ ? high.floats(PHASES) : 0);
    low_at_ = layout.take<float>(wants_low_ ? low.floats(PHASES) : 0);
    outputs_at_ = layout.take<float>(wants_weight_ ? outputs.floats(1) : 0);
  }
  void set(const Scratch& scratch) {
    high.data = scratch.shared(high_at_);
    low.data = scratch.shared(low_at_);
    outputs.data = scratch.shared(outputs_at_);
  }

  // Image n, the `index`th of its round, in the scratch of a thread.
  void make(int64_t n, int64_t index, Evenness& evenness, float* own) const {
    enum class Image { x, gradient };
    const Image high_image = args_.kind == ConvKind::transposed ? Image::gradient : Image::x;
    const Image low_image = args_.kind == ConvKind::transposed ? Image::x : Image::gradient;
    const auto load = [&](Image image, const NhwcLayout& layout) {
      if (image == Image::x)
        load_image(args_.x, layout, n, own);
      else
        load_gradient(args_.gradient, layout, n, own);
      look_at_image(evenness, layout, own);
    };
    if (wants_high_) {
      load(high_image, high_grid_.layout);
      transform_inputs<STRIDED_TILE>(high_grid_, own, high, index * tiles());
    }
    if (wants_low_) {
      load(low_image, low_grid_.layout);
      transform_inputs<TILE>(low_grid_, own, low, index * low_grid_.tiles());
    }
    if (wants_weight_) {
      load(low_image, of_outputs_);
      transform_outputs(of_outputs_, own, outputs, index * tiles());
    }
  }

  Transformed high{0, 0, 0}, low{0, 0, 0}, outputs{0, 0, 0};

 private:
  const ConvBackward& args_;
  bool wants_weight_, wants_high_, wants_low_;
  TileGrid high_grid_, low_grid_;
  NhwcLayout of_outputs_;
  ScratchArray<float> high_at_, low_at_, outputs_at_;
};

template <int TILE>  // of the input gradient
Outcome backward(const ConvBackward& args) {
  const ConvShape& s = args.shape;
  const int threads = useful_threads(s, args.threads);
  const bool wants_x = args.grad_x.data, wants_weight = args.grad_weight.data;
  const ConvKind kind = twin(args.kind);
  GradientTransforms<TILE> transforms(args);
  // Sums wait in memory between rounds: where they are many, fewer rounds are better.
  const int64_t sums = PHASES * WinogradWeightGradient::COMPONENTS * s.low_channels * s.high_channels;
  const Rounds rounds =
      rounds_of(s, transforms.floats_per_image(), max64(ROUND_FLOATS, wants_weight ? sums : 0), threads);
  WinogradProduct<TILE> product(s, kind, rounds, columns_of(s, args.weight, kind), args.grad_x, NO_EPILOGUE, threads);
  const WinogradWeightGradient weight_gradient(s, args.grad_weight, rounds.count, threads);
  ScratchLayout shared, own;
  transforms.take(rounds.images, shared);
  const auto for_sums = shared.take<float>(wants_weight ? weight_gradient.shared_floats() : 0);
  const auto for_product = shared.take<float>(wants_x ? product.shared_floats() : 0);
  const int64_t unit_floats =
      max64(wants_x ? product.thread_floats() : 0, wants_weight ? weight_gradient.thread_floats() : 0);
  const auto for_image_or_unit = own.take<float>(max64(transforms.thread_floats(), unit_floats));
  const Scratch scratch(shared, own, threads);
  if (!scratch.data()) return Outcome::no_memory;
  Evenness evenness;
  transforms.set(scratch);
  if (wants_x) product.set_shared(scratch.shared(for_product));
  const Transformed& in = kind == ConvKind::strided ? transforms.high : transforms.low;
  const int64_t x_tasks = wants_x ? product.tasks() : 0, weight_tasks = wants_weight ? weight_gradient.tasks() : 0;
#pragma omp parallel num_threads(threads)
  {
    float* const mine = scratch.own(for_image_or_unit);
    if (wants_x) product.pack_shared(evenness);
    for (int64_t n0 = 0, round = 0; n0 < s.batch; n0 += rounds.images, ++round) {
      const int64_t n1 = min64(s.batch, n0 + rounds.images), tiles = (n1 - n0) * transforms.tiles();
#pragma omp for schedule(dynamic)
      for (int64_t n = n0; n < n1; ++n) transforms.make(n, n - n0, evenness, mine);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < x_tasks + weight_tasks; ++task) {
        if (evenness.refused()) continue;
        if (task < x_tasks)
          product.run_task(task, in, n0, n1, evenness, mine);
        else
          weight_gradient.run_task(task - x_tasks, transforms.outputs, transforms.high, tiles, round,
                                   scratch.shared(for_sums), mine);
      }
    }
  }
  return evenness.refused() ? Outcome::uneven : Outcome::done;
}

}  // namespace

bool winograd_suits_forward(const ConvForward& args) { return suits(args.shape); }
bool winograd_suits_backward(const ConvBackward& args) { return suits(args.shape); }

Outcome winograd_forward(const ConvForward& args) {
  return tile_of(args.shape, args.kind) == 2 ? forward<2>(args) : forward<4>(args);
}
Outcome winograd_backward(const ConvBackward& args) {
  return tile_of(args.shape, twin(args.kind)) == 2 ? backward<2>(args) : backward<4>(args);
}

}  // namespace gk::GK_ISA::conv_bn_act
