// Winograd's F(TxT, 2x2) for kernels of 4 x 4 with stride 2, tiles of T = 4 or 2: 25 multiplications where there were
// 64, or 9 where there were 16.
//
// Such a convolution is four of 2 x 2 taps and stride 1, one per phase: of the large image where that is the result
// (up), else of the large image as the input (down). In one dimension T neighbouring outputs of two taps take T + 1
// products: those of two polynomials at T + 1 points,
//   y = A' ((G g) * (B d)),  d: T + 1 inputs, g: 2 taps, y: T outputs,
// see conv_bn_act/winograd_points.h; in two dimensions (T + 1)^2 instead of 4 T^2, each a sum over channels, so a
// matrix product of its own ("component"). The gradient of the weight is the same trilinear form, G' ((A s) * (B d))
// with s the small image.
//
// Images are transformed once, pixel by pixel of channels side by side, to [phase][component][tile][channel], which all
// products read: a tile is T x T outputs of each phase.
//
// Every result is within 48 roundings of its terms (tests/helpers/grids.py; direct sums within 16), where numbers of an image are
// of similar size; others take the direct form (core/evenness.h), and all do with GENKERNELS_WINOGRAD=0.
// Exactness decides T. Sums over channels are taken in blocks of 32. With T = 4 (at the points of the smallest errors
// among some twenty sets) root mean square errors of random images are 0.7 to 1 times PyTorch's down and 1.2 to 1.7
// times for the weight. Up, where fewer terms enter a sum, they are 1.3 to 1.6 times PyTorch's from 256 channels on and
// would be 1.8 to 2.9 times below: from 128 on blocks of 16 keep them at 1.6 to 1.9, and below T is 2 (0.8 to 1.2).
// The transposed form of the product that goes up, which would transform the small image once for all phases, has twice
// the errors: its outputs are differences of large numbers.
// Source: Winograd 1980; Lavin, Gray 2016, section 4.
#pragma once

#include "cpu/conv_bn_act/nhwc_image.h"
#include "cpu/conv_bn_act/packing.h"
#include "cpu/conv_bn_act/winograd_points.h"
#include "cpu/core/evenness.h"

namespace gk::GK_ISA {

constexpr int64_t PHASES = 4;
constexpr int64_t components_of(int64_t tile) { return (tile + 1) * (tile + 1); }

// The tile of the product that goes `up` or down; the weight gradient shares the large image with the one down.
constexpr int64_t DOWN_TILE = 4;
inline int64_t tile_of(const ConvShape& s, bool up) { return up && s.small_channels < 128 ? 2 : DOWN_TILE; }

// One dimension of the tiles.
struct TileAxis {
  int64_t tiles;
  int64_t before, after;     // the border that the transformed image needs
  int64_t origin[2], step;   // a phase's first input, border included, and the distance to its next input
  int64_t out[2], out_step;  // a phase's first output, and the distance to its next one; down has one phase of outputs

  TileAxis(const Axis& a, int64_t tile) {
    if (a.up) {
      tiles = ceil_div(ceil_div(a.out, 2), tile), step = 1, out_step = 2;
      for (int64_t f = 0; f < 2; ++f) {
        out[f] = (f + a.pad) % 2;  // its phase is f
        origin[f] = (out[f] + a.pad) / 2 - 1;
      }
    } else {
      tiles = ceil_div(a.out, tile), step = 2, out_step = 1;
      for (int64_t f = 0; f < 2; ++f) out[f] = 0, origin[f] = f - a.pad;
    }
    before = max64(0, -min64(origin[0], origin[1]));
    after = max64(0, max64(origin[0], origin[1]) + tile * tiles * step - (a.in - 1));
    for (int64_t& o : origin) o += before;
  }
  // The place in the kernel of tap t of a phase.
  static int64_t tap(bool up, int64_t phase, int64_t t) { return up ? phase + (1 - t) * 2 : phase + t * 2; }
};

struct TileGrid {
  int64_t tile;
  TileAxis rows, cols;
  PixelLayout layout;  // of the image that is transformed

  TileGrid(const ConvShape& s, bool up, int64_t tile)
      : tile(tile), rows(vertical(s, up), tile), cols(horizontal(s, up), tile),
        layout{up ? s.small_channels : s.large_channels, up ? s.small_h : s.large_h, up ? s.small_w : s.large_w,
               rows.before, rows.after, cols.before, cols.after} {}
  int64_t tiles() const { return rows.tiles * cols.tiles; }  // of one image
};

// The small image as outputs, a factor of the weight gradient; its tiles are those of "down".
inline PixelLayout outputs_layout(const ConvShape& s) {
  const TileGrid grid(s, false, DOWN_TILE);
  return {s.small_channels, s.small_h, s.small_w, 0, grid.rows.tiles * DOWN_TILE - s.small_h,
          0,                grid.cols.tiles * DOWN_TILE - s.small_w};
}

// Where this pays: from 64 channels on (at 32 the transforms cost what the products save), and where the tiles, edges
// included, take at most 0.8 of the direct multiplications.
inline bool winograd_suits(const ConvShape& s) {
  if (!allows_winograd()) return false;
  if (s.kernel_h != 4 || s.kernel_w != 4 || s.stride_h != 2 || s.stride_w != 2) return false;
  if (min64(s.small_channels, s.large_channels) < 64) return false;
  const auto products = [&](bool up) {
    const int64_t tile = tile_of(s, up);
    return TileGrid(s, up, tile).tiles() * PHASES * components_of(tile);
  };
  const auto live = [](const Axis& a) {
    int64_t count = 0;
    for (int64_t o = 0; o < a.out; ++o) count += a.hi(o) - a.lo(o);
    return count;
  };
  const int64_t direct = live(vertical(s, false)) * live(horizontal(s, false));
  return s.small_h * s.small_w <= 2048 && max64(products(true), products(false)) * 5 <= direct * 4;
}

// An image in scratch, with its border.
inline void look_at_image(Evenness& evenness, const PixelLayout& l, const float* image) {
  evenness.look_at(image, l.image_floats(), l.channels * l.height * l.width);
}

// How many images are transformed and multiplied at a time, in rounds as even as can be: as many as `floats` of
// transforms hold, but no fewer than keep the threads busy.
inline int64_t winograd_round(const ConvShape& s, int64_t floats_per_image, int64_t floats, int threads) {
  const int64_t images = max64(1, min64(s.batch, max64(floats / floats_per_image, threads)));
  return ceil_div(s.batch, ceil_div(s.batch, images));
}
constexpr int64_t ROUND_FLOATS = int64_t{3} << 20;  // 12 MB: a share of L3 that is there where other programs run too

// A transformed image: [phase][component][tile][channel]. Tiles are an odd number of cache lines apart and components
// one line more, so that what is walked side by side does not meet in the same sets of a cache.
struct Transformed {
  float* data;
  int64_t pitch, component, phase;

  Transformed(int64_t channels, int64_t tile, int64_t tiles)
      : data(nullptr), pitch((ceil_div(channels, 16) | 1) * 16), component(tiles * pitch + 16),
        phase(components_of(tile) * component) {}
  static int64_t image_floats(const TileGrid& grid, int64_t phases) {
    return phases * components_of(grid.tile) * grid.tiles() * Transformed(grid.layout.channels, grid.tile, 0).pitch;
  }
  int64_t floats(int64_t phases) const { return phases * phase + PANEL_MAX; }
};

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
          transform_square<P, P>(from + c, down, right, out + c, to.component, Points<TILE>::template inputs_to<Block>);
        });
      }
}

// A s A' for one image in outputs_layout.
inline void transform_outputs(const PixelLayout& layout, const float* image, const Transformed& to,
                              int64_t first_tile) {
  constexpr int TILE = DOWN_TILE;
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

}  // namespace gk::GK_ISA
