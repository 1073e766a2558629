// The product of conv_bn_act_product.h in Winograd's form, see conv_bn_act_winograd.h: forward passes and input
// gradients, up and down.
//
// A unit of work is one panel of output channels and a part of the images. Its weights are packed once; phase by phase
// they are transformed, in L2, and every component meets all tiles of a group of images as a plain matrix product:
// rows are tiles, 128 of them or so, read where the transformed images stand. The components of a tile then give 2 x 2
// pixels. Traffic: weights once per part, transformed images (9 times the small image up, 2.25 times the large one down)
// once per panel, from L3. Bound: the multiply-add units, at 9/16 of the direct multiplications.
#pragma once

#include "cpu/conv_bn_act_panel.h"
#include "cpu/conv_bn_act_winograd.h"
#include "cpu/scratch.h"

namespace gk::GK_ISA {

class WinogradProduct {
 public:
  static constexpr int64_t PIECE = 256;  // reduction steps: 16 KB of an AVX2 panel
  static constexpr int64_t TILES = 128;  // of a group of images

  // `images`: most that are there at a time.
  WinogradProduct(const ConvShape& s, bool up, int64_t images, const ColumnWeight& weight, const ImageView& out,
                  const Epilogue& epilogue, bool wants_moments, int threads)
      : grid_(s, up), up_(up), weight_(weight), height_(up ? s.large_h : s.small_h), width_(up ? s.large_w : s.small_w),
        output_(out, epilogue, width_), wants_moments_(wants_moments) {
    group_ = max64(1, min64(images, TILES / grid_.tiles()));
    group_ = ceil_div(images, ceil_div(images, group_));
    panels_ = column_panels(weight.columns);
    parts_ = min64(ceil_div(images, group_), ceil_div(4 * threads, panels_));
    joined_ = up ? 1 : max64(1, min64(PHASES, PIECE / weight.reductions));
    if (joined_ == 3) joined_ = 2;
  }

  const TileGrid& grid() const { return grid_; }
  int64_t units() const { return panels_ * parts_; }
  int64_t moments_floats() const { return wants_moments_ ? Scratch::round(units() * sizeof(Moments) / 4) : 0; }
  void set_moments(float* moments) {
    moments_ = reinterpret_cast<Moments*>(moments);
    if (wants_moments_) memset(moments, 0, units() * sizeof(Moments));
  }
  int64_t thread_floats() const {
    return packed_floats() + transformed_floats() + products_floats() + staging_floats() + table_floats();
  }

  // One unit for the images [n0, n1), of which `in` holds the transforms, in the scratch of a thread.
  void run_unit(int64_t unit, const Transformed& in, int64_t n0, int64_t n1, float* scratch) const {
    float* const packed = scratch;
    float* const weights = packed + packed_floats();
    float* const products = weights + transformed_floats();
    float* const staging = products + products_floats();
    int64_t* const table = reinterpret_cast<int64_t*>(staging + staging_floats());
    const ColumnPanel panel = column_panel(weight_.columns, unit / parts_);
    const int64_t part = unit % parts_, groups = ceil_div(n1 - n0, group_);
    const int64_t first_group = groups * part / parts_, last_group = groups * (part + 1) / parts_;
    if (first_group == last_group) return;
    int64_t places[16];
    for (int64_t i = 0; i < 16; ++i) places[i] = i;
    GK_BY_STORAGE(weight_.storage, pack_columns, weight_, panel, 4, 4, places, packed);
    for (int64_t g = first_group; g < last_group; ++g) {
      const int64_t begin = g * group_, end = min64(n1 - n0, begin + group_), images = end - begin;
      for (int64_t f = 0; f < PHASES; f += joined_) {
        for (int64_t i = 0; i < joined_; ++i) transform_phase(packed, panel, f + i, i, weights);
        multiply(in, begin * grid_.tiles(), images * grid_.tiles(), f, weights, panel, !up_ && f > 0, products);
        if (up_) write_tiles(products, images, f, panel, staging);
      }
      if (!up_) write_tiles(products, images, 0, panel, staging);
      for (int64_t p = 0; p < height_ * width_; ++p) table[p] = p * images * panel.width();
      output_.emit(staging, table, panel, n0 + begin, n0 + end, 0, height_, wants_moments_ ? moments_ + unit : nullptr);
    }
  }

  void write_statistics(float* statistics) const {
    PanelOutput::write_statistics(moments_, weight_.columns, parts_, statistics);
  }

 private:
  int64_t steps() const { return joined_ * weight_.reductions; }
  int64_t packed_floats() const { return Scratch::round(16 * weight_.reductions * PANEL_MAX); }
  int64_t transformed_floats() const { return Scratch::round((COMPONENTS * steps() + PREFETCH_STEPS) * PANEL_MAX); }
  int64_t products_floats() const { return COMPONENTS * group_ * grid_.tiles() * PANEL_MAX; }
  int64_t staging_floats() const { return Scratch::round(height_ * width_ * group_ * PANEL_MAX); }
  int64_t table_floats() const { return Scratch::round(height_ * width_ * sizeof(int64_t) / 4); }

  // Packed weights of a phase to weights[component][index][reduction][column].
  void transform_phase(const float* packed, const ColumnPanel& panel, int64_t phase, int64_t index, float* weights) const {
    const int64_t length = weight_.reductions * panel.width();
    const float* tap[4];
    for (int64_t t = 0; t < 4; ++t)
      tap[t] = packed + (TileAxis::tap(up_, phase / 2, t / 2) * 4 + TileAxis::tap(up_, phase % 2, t % 2)) * length;
    transform_weights(tap, length, weights + index * length, joined_ * length);
  }

  // products[component][tile][column] (+)= the phases [f, f + joined) of the tiles.
  void multiply(const Transformed& in, int64_t first_tile, int64_t tiles, int64_t f, const float* weights,
                const ColumnPanel& panel, bool adds, float* products) const {
    const int64_t C = weight_.reductions, width = panel.width();
    Segment segments[PHASES];
    for (int64_t k = 0; k < COMPONENTS; ++k)
      for (int64_t c = 0; c < C; c += PIECE) {
        const int64_t length = min64(PIECE, C - c);
        for (int64_t i = 0; i < joined_; ++i) segments[i] = {i * in.phase, length};
        const float* const from = in.data + f * in.phase + k * in.component + first_tile * in.pitch + c;
        const float* const columns = weights + (k * steps() + c) * width;
        for_row_tiles(tiles, [&](int64_t first, int64_t count) {
          const float* rows[MR_MAX];
          for (int64_t i = 0; i < count; ++i) rows[i] = from + (first + i) * in.pitch;
          const int mr = static_cast<int>(count);
          (adds || c > 0 ? tile_function<TileMode::add>(mr, panel.nr) : tile_function<TileMode::write>(mr, panel.nr))(
              rows, segments, joined_, columns, products + (k * tiles + first) * width, width);
        });
      }
  }

  // The outputs of one phase to the staging, [line][column][image].
  void write_tiles(const float* products, int64_t images, int64_t f, const ColumnPanel& panel, float* staging) const {
    const int64_t width = panel.width(), step = images * grid_.tiles() * width;
    const float* from = products;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t ty = 0; ty < grid_.rows.tiles; ++ty)
        for (int64_t tx = 0; tx < grid_.cols.tiles; ++tx, from += width) {
          float* out[2][2];
          for (int64_t i = 0; i < 4; ++i) {
            const int64_t y = grid_.rows.out[f / 2] + (2 * ty + i / 2) * grid_.rows.out_step;
            const int64_t x = grid_.cols.out[f % 2] + (2 * tx + i % 2) * grid_.cols.out_step;
            out[i / 2][i % 2] = y < height_ && x < width_ ? staging + ((y * width_ + x) * images + n) * width : nullptr;
          }
          transform_results(from, step, width, out);
        }
  }

  TileGrid grid_;
  bool up_;
  ColumnWeight weight_;
  int64_t height_, width_;
  PanelOutput output_;
  bool wants_moments_;
  int64_t group_, panels_, parts_, joined_;  // joined: phases that one product adds up
  Moments* moments_ = nullptr;
};

}  // namespace gk::GK_ISA
