// Winograd's F(TxT, 2x2) for kernels of 4 x 4 with stride 2, tiles of T = 4 or 2: 25 multiplications where there were
// 64, or 9 where there were 16.
//
// Such a convolution is four of 2 x 2 taps and stride 1, one per phase of the high image, be that the result (of a
// transposed product) or the input (of a strided one). In one dimension T neighbouring outputs of two taps take T + 1
// products: those of two polynomials at T + 1 points,
//   y = A' ((G g) * (B d)),  d: T + 1 inputs, g: 2 taps, y: T outputs,
// see conv_bn_act/winograd_points.h; in two dimensions (T + 1)^2 instead of 4 T^2, each a sum over channels, so a
// matrix product of its own ("component"). The gradient of the weight is the same trilinear form, G' ((A s) * (B d))
// with s the low image.
//
// Images are transformed once, pixel by pixel of channels side by side, to [phase][component][tile][channel], which all
// products read: a tile is T x T outputs of each phase.
//
// Every result is within 48 roundings of its terms (tests/helpers/grids.py; direct sums within 16), where numbers of an
// image are of similar size; others take the direct form (core/evenness.h), and all do with GENKERNELS_WINOGRAD=0.
// Exactness decides T. Sums over channels are taken in blocks of 32. With T = 4 (at the points of the smallest errors
// among some twenty sets) root mean square errors of random images are 0.7 to 1 times PyTorch's in strided products and
// 1.2 to 1.7 times for the weight. In transposed products, where fewer terms enter a sum, they are 1.3 to 1.6 times
// PyTorch's from 256 channels on and would be 1.8 to 2.9 times below: from 128 on blocks of 16 keep them at 1.6 to 1.9,
// and below T is 2 (0.8 to 1.2). The transposed algorithm for these products, which would transform the low image once
// for all phases, has twice the errors: its outputs are differences of large numbers.
// Source: Winograd 1980; Lavin, Gray 2016, section 4.
#pragma once

#include "cpu/conv_bn_act/axis.h"
#include "cpu/conv_bn_act/nhwc_image.h"
#include "cpu/core/gemm_tile.h"
#include "cpu/core/implementation.h"

namespace gk::GK_ISA::conv_bn_act {

bool winograd_suits_forward(const ConvForward& args);
bool winograd_suits_backward(const ConvBackward& args);
Outcome winograd_forward(const ConvForward& args);
Outcome winograd_backward(const ConvBackward& args);

constexpr int64_t PHASES = 4;
constexpr int64_t components_of(int64_t tile) { return (tile + 1) * (tile + 1); }

// The tile of strided products, and of the weight gradient, which shares the high image with them.
constexpr int64_t STRIDED_TILE = 4;
inline int64_t tile_of(const ConvShape& s, ConvKind kind) {
  return kind == ConvKind::transposed && s.low_channels < 128 ? 2 : STRIDED_TILE;
}

// One dimension of the tiles.
struct TileAxis {
  int64_t tiles;
  int64_t before, after;     // the border that the transformed image needs
  int64_t origin[2], step;   // a phase's first input, border included, and the distance to its next input
  int64_t out[2], out_step;  // a phase's first output, and the distance to its next one; strided: one phase of outputs

  TileAxis(const Axis& a, int64_t tile) {
    out_step = a.out_step();
    step = a.in_step();
    tiles = ceil_div(ceil_div(a.out, out_step), tile);
    for (int64_t f = 0; f < 2; ++f) {
      out[f] = a.transposed() ? (f + a.pad) % 2 : 0;  // its phase is f
      origin[f] = a.transposed() ? (out[f] + a.pad) / 2 - 1 : f - a.pad;
    }
    before = max64(0, -min64(origin[0], origin[1]));
    after = max64(0, max64(origin[0], origin[1]) + tile * tiles * step - (a.in - 1));
    for (int64_t& o : origin) o += before;
  }
  // The place in the kernel of tap t of a phase.
  static int64_t tap(ConvKind kind, int64_t phase, int64_t t) {
    return kind == ConvKind::transposed ? phase + (1 - t) * 2 : phase + t * 2;
  }
};

struct TileGrid {
  int64_t tile;
  TileAxis rows, cols;
  NhwcLayout layout;  // of the image that is transformed

  TileGrid(const ConvShape& s, ConvKind kind, int64_t tile)
      : tile(tile), rows(vertical(s, kind), tile), cols(horizontal(s, kind), tile),
        layout(kind == ConvKind::transposed ? low_layout(s) : high_layout(s)) {
    layout.top = rows.before;
    layout.bottom = rows.after;
    layout.left = cols.before;
    layout.right = cols.after;
  }
  int64_t tiles() const { return rows.tiles * cols.tiles; }  // of one image
};

// A transformed image: [phase][component][tile][channel]. Tiles are an odd number of cache lines apart and components
// one line more, so that what is read side by side does not meet in the same sets of a cache.
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

}  // namespace gk::GK_ISA::conv_bn_act
