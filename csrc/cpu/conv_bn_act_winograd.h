// Winograd's F(2x2, 2x2) for kernels of 4 x 4 with stride 2: 9 multiplications where there were 16.
//
// Such a convolution is four of 2 x 2 taps and stride 1, one per phase: of the large image where that is the result
// (up), else of the large image as the input (down). Two neighbouring outputs of two taps take three products instead of
// four:
//   y0 = d0 g0 + d1 g1,  y1 = d1 g0 + d2 g1;   m0 = (d0 - d1) g0,  m1 = d1 (g0 + g1),  m2 = (d2 - d1) g1;
//   y0 = m0 + m1,  y1 = m1 + m2
// and in two dimensions 9 instead of 16, each a sum over channels, so a matrix product of its own ("component"). Only
// sums enter, no factor but 1: float32 errors stay near those of the direct products, whose sums are four times as long
// (0.3 to 1.5 times PyTorch's; 3 to 4 times where all channels are equal, so that the roundings of the sums are too).
// The gradients are the same bilinear form: of the weight, d stays as it is, a small pair (s0, s1) goes to
// (s0, s0 + s1, s1), and the products m give g0 = m0 + m1, g1 = m1 + m2.
//
// Images are transformed once, pixel by pixel of channels side by side, to [phase][component][tile][channel], which all
// three products read: a tile is 2 x 2 outputs of each phase. Source: Winograd 1980; Lavin, Gray 2016, section 4.
#pragma once

#include "cpu/conv_bn_act_image.h"
#include "cpu/conv_bn_act_weights.h"

namespace gk::GK_ISA {

constexpr int64_t PHASES = 4, COMPONENTS = 9;

// One dimension of the tiles.
struct TileAxis {
  int64_t tiles;
  int64_t before, after;     // the border that the transformed image needs
  int64_t origin[2], step;   // a phase's first input, border included, and the distance to its next input
  int64_t out[2], out_step;  // a phase's first output, and the distance to its next one; down has one phase of outputs

  TileAxis(const Axis& a) {
    if (a.up) {
      tiles = ceil_div(ceil_div(a.out, 2), 2), step = 1, out_step = 2;
      for (int64_t f = 0; f < 2; ++f) {
        out[f] = (f + a.pad) % 2;  // its phase is f
        origin[f] = (out[f] + a.pad) / 2 - 1;
      }
    } else {
      tiles = ceil_div(a.out, 2), step = 2, out_step = 1;
      for (int64_t f = 0; f < 2; ++f) out[f] = 0, origin[f] = f - a.pad;
    }
    before = max64(0, -min64(origin[0], origin[1]));
    after = max64(0, max64(origin[0], origin[1]) + 2 * tiles * step - (a.in - 1));
    for (int64_t& o : origin) o += before;
  }
  // The place in the kernel of tap t of a phase.
  static int64_t tap(bool up, int64_t phase, int64_t t) { return up ? phase + (1 - t) * 2 : phase + t * 2; }
};

struct TileGrid {
  TileAxis rows, cols;
  PixelLayout layout;  // of the image that is transformed

  TileGrid(const ConvShape& s, bool up)
      : rows(vertical(s, up)), cols(horizontal(s, up)),
        layout{up ? s.small_channels : s.large_channels, up ? s.small_h : s.large_h, up ? s.small_w : s.large_w,
               rows.before, rows.after, cols.before, cols.after} {}
  int64_t tiles() const { return rows.tiles * cols.tiles; }  // of one image
};

// The small image in pairs of pixels, the other factor of a weight gradient; its tiles are those of "down".
inline PixelLayout pair_layout(const ConvShape& s) {
  return {s.small_channels, s.small_h, s.small_w, 0, s.small_h % 2, 0, s.small_w % 2};
}

// Where this pays: from 64 channels on (at 32 the transforms cost what the products save), and where the tiles, edges
// included, take at most 0.8 of the direct multiplications.
inline bool winograd_suits(const ConvShape& s) {
  if (s.kernel_h != 4 || s.kernel_w != 4 || s.stride_h != 2 || s.stride_w != 2) return false;
  if (min64(s.small_channels, s.large_channels) < 64) return false;
  const int64_t tiles = TileGrid(s, true).tiles(), most = max64(tiles, TileGrid(s, false).tiles());
  const auto live = [](const Axis& a) {
    int64_t count = 0;
    for (int64_t o = 0; o < a.out; ++o) count += a.hi(o) - a.lo(o);
    return count;
  };
  const int64_t direct = live(vertical(s, false)) * live(horizontal(s, false));
  return most <= 512 && most * PHASES * COMPONENTS * 5 <= direct * 4;
}

// How many images are transformed and multiplied at a time, in rounds as even as can be: as many as `floats` of transforms
// hold, but no fewer than keep the threads busy.
inline int64_t winograd_round(const ConvShape& s, int64_t floats_per_image, int64_t floats, int threads) {
  const int64_t images = max64(1, min64(s.batch, max64(floats / floats_per_image, threads)));
  return ceil_div(s.batch, ceil_div(s.batch, images));
}
constexpr int64_t ROUND_FLOATS = int64_t{3} << 19;  // 6 MB: a share of L3 that is there where other programs run too

// A transformed image: [phase][component][tile][channel]. Tiles are an odd number of cache lines apart and components
// one line more, so that what is walked side by side does not meet in the same sets of a cache.
struct Transformed {
  float* data;
  int64_t pitch, component, phase;

  Transformed(int64_t channels, int64_t tiles)
      : data(nullptr), pitch((ceil_div(channels, 16) | 1) * 16), component(tiles * pitch + 16),
        phase(COMPONENTS * component) {}
  static int64_t image_floats(const TileGrid& grid, int64_t phases) {
    return phases * COMPONENTS * grid.tiles() * Transformed(grid.layout.channels, 0).pitch;
  }
  int64_t floats(int64_t phases) const { return phases * phase + PANEL_MAX; }
};

// d to (d0 - d1, d1, d2 - d1) along both dimensions, for all phases of one image with its border.
inline void transform_inputs(const TileGrid& grid, const float* image, const Transformed& to, int64_t first_tile) {
  const int64_t C = grid.layout.channels, pitch = grid.layout.pitch();
  const int64_t down = grid.rows.step * pitch, right = grid.cols.step * C;
  for (int64_t f = 0; f < PHASES; ++f)
    for (int64_t ty = 0; ty < grid.rows.tiles; ++ty)
      for (int64_t tx = 0; tx < grid.cols.tiles; ++tx) {
        const float* const from = image + grid.rows.origin[f / 2] * pitch + 2 * ty * down +
                                  grid.cols.origin[f % 2] * C + 2 * tx * right;
        float* const out = to.data + f * to.phase + (first_tile + ty * grid.cols.tiles + tx) * to.pitch;
        for_blocks(C, [&](int64_t c) {
          Block v[3][3];
          GK_UNROLL for (int x = 0; x < 3; ++x) {
            const float* const column = from + x * right + c;
            v[1][x] = load_block(column + down);
            v[0][x] = load_block(column) - v[1][x];
            v[2][x] = load_block(column + 2 * down) - v[1][x];
          }
          GK_UNROLL for (int y = 0; y < 3; ++y) {
            float* const at = out + 3 * y * to.component + c;
            store_block(at, v[y][0] - v[y][1]);
            store_block(at + to.component, v[y][1]);
            store_block(at + 2 * to.component, v[y][2] - v[y][1]);
          }
        });
      }
}

// s to (s0, s0 + s1, s1) along both dimensions, for one image in pair_layout.
inline void transform_pairs(const PixelLayout& layout, const float* image, const Transformed& to, int64_t first_tile) {
  const int64_t C = layout.channels, pitch = layout.pitch();
  const int64_t rows = (layout.height + layout.bottom) / 2, cols = (layout.width + layout.right) / 2;
  for (int64_t ty = 0; ty < rows; ++ty)
    for (int64_t tx = 0; tx < cols; ++tx) {
      const float* const from = image + 2 * ty * pitch + 2 * tx * C;
      float* const out = to.data + (first_tile + ty * cols + tx) * to.pitch;
      for_blocks(C, [&](int64_t c) {
        Block v[3][2];
        GK_UNROLL for (int x = 0; x < 2; ++x) {
          v[0][x] = load_block(from + x * C + c);
          v[2][x] = load_block(from + pitch + x * C + c);
          v[1][x] = v[0][x] + v[2][x];
        }
        GK_UNROLL for (int y = 0; y < 3; ++y) {
          float* const at = out + 3 * y * to.component + c;
          store_block(at, v[y][0]);
          store_block(at + to.component, v[y][0] + v[y][1]);
          store_block(at + 2 * to.component, v[y][1]);
        }
      });
    }
}

// The weights of one phase, `length` floats each at tap[2 * ty + tx], to components `to_step` apart.
GK_INLINE void transform_weights(const float* const (&tap)[4], int64_t length, float* to, int64_t to_step) {
  for (int64_t i = 0; i < length; i += VL) {
    Vec v[3][2];
    GK_UNROLL for (int x = 0; x < 2; ++x) {
      v[0][x] = load(tap[x] + i);
      v[2][x] = load(tap[2 + x] + i);
      v[1][x] = v[0][x] + v[2][x];
    }
    GK_UNROLL for (int y = 0; y < 3; ++y) {
      float* const at = to + 3 * y * to_step + i;
      store(at, v[y][0]);
      store(at + to_step, v[y][0] + v[y][1]);
      store(at + 2 * to_step, v[y][1]);
    }
  }
}

// m to (m0 + m1, m1 + m2) along both dimensions: `width` floats of each component, `step` apart, to out[y][x].
GK_INLINE void transform_results(const float* m, int64_t step, int64_t width, float* const (&out)[2][2]) {
  for (int64_t i = 0; i < width; i += VL) {
    Vec v[2][3];
    GK_UNROLL for (int x = 0; x < 3; ++x) {
      const Vec middle = load(m + (3 + x) * step + i);
      v[0][x] = load(m + x * step + i) + middle;
      v[1][x] = load(m + (6 + x) * step + i) + middle;
    }
    GK_UNROLL for (int y = 0; y < 2; ++y)
      GK_UNROLL for (int x = 0; x < 2; ++x)
        if (out[y][x]) store(out[y][x] + i, v[y][x] + v[y][x + 1]);
  }
}

}  // namespace gk::GK_ISA
