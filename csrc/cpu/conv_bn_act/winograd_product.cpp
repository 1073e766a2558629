// The product of conv_bn_act/direct.h in Winograd's form, see conv_bn_act/winograd.h: forward passes and input
// gradients, up and down.
//
// A unit of work is a pair of panels of output channels and a part of the images that are there. Phase by phase and a
// piece of the input channels at a time its packed weights are transformed, in L2, and every component meets all tiles
// of a group of images as a plain matrix product: rows are tiles, 96 of them or so (128 of 2 x 2), read where the
// transformed images stand, and meet both panels; sums grow in L2 too. The components of a tile then give its pixels.
// Traffic: weights once (and once more per round), transformed images (6.25 or 9 times the small image up, 1.56 times
// the large one down) once per pair of panels, from L3. Bound: the multiply-add units, at 25/64 or 9/16 of the direct
// multiplications, which run at 90 % of their peak; transforms, and the way in and out, take as long again as a half of
// the products (images of 16 x 16) to all of them (4 x 4, where a weight meets 16 tiles only).
#pragma once

#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/conv_bn_act/winograd.h"
#include "cpu/conv_bn_act/winograd_tile.h"
#include "cpu/core/scratch.h"

namespace gk::GK_ISA {

template <int TILE>
class WinogradProduct {
 public:
  static constexpr int64_t COMPONENTS = components_of(TILE);
  static constexpr int64_t WIDE = NR_MAX == 2 ? 2 : 1;  // panels of a unit
  static constexpr int64_t PIECE = 32;  // reduction steps
  static constexpr int64_t TILES = TILE == 4 ? 96 : 128;  // of a group of images

  // `images`: most that are there at a time; `rounds`: how many times run_unit is called for each unit.
  WinogradProduct(const ConvShape& s, bool up, int64_t images, int64_t rounds, const ColumnWeight& weight,
                  const ImageView& out, const Epilogue& epilogue, bool wants_moments, int threads)
      : grid_(s, up, TILE), up_(up), rounds_(rounds), weight_(weight), height_(up ? s.large_h : s.small_h),
        width_(up ? s.large_w : s.small_w), output_(out, epilogue, width_), wants_moments_(wants_moments) {
    group_ = max64(1, min64(images, TILES / grid_.tiles()));
    group_ = ceil_div(images, ceil_div(images, group_));
    panels_ = column_panels(weight.columns);
    wides_ = ceil_div(panels_, WIDE);
    block_ = TILE == 4 && up && weight.reductions < 256 ? 16 : PIECE;
    parts_ = min64(ceil_div(images, group_), ceil_div(8 * threads, wides_));
  }

  int64_t units() const { return wides_ * parts_; }
  // What threads share: moments of each panel and part, and the packed weights where they are used more than once.
  int64_t shared_floats() const { return moments_floats() + (packs_ahead() ? panels_ * packed_floats() : 0); }
  void set_shared(float* shared) {
    moments_ = reinterpret_cast<Moments*>(shared);
    if (wants_moments_) memset(shared, 0, moments_floats() * sizeof(float));
    packed_ = shared + moments_floats();
  }
  int64_t thread_floats() const {
    const int64_t packed = packs_ahead() ? 0 : packed_floats();
    return WIDE * (packed + transformed_floats() + products_floats() + staging_floats()) + table_floats();
  }
  // To be called by all threads of a team, before the first unit and a barrier.
  void pack_shared(Evenness& evenness) const {
    if (!packs_ahead()) return;
#pragma omp for schedule(dynamic) nowait
    for (int64_t p = 0; p < panels_; ++p) pack(column_panel(weight_.columns, p), packed_ + p * packed_floats(), evenness);
  }

  // One unit for the images [n0, n1), of which `in` holds the transforms, in the scratch of a thread.
  void run_unit(int64_t unit, const Transformed& in, int64_t n0, int64_t n1, Evenness& evenness, float* scratch) const {
    const int64_t panel0 = unit / parts_ * WIDE, panels = min64(WIDE, panels_ - panel0);
    const int64_t part = unit % parts_, groups = ceil_div(n1 - n0, group_);
    const int64_t first_group = groups * part / parts_, last_group = groups * (part + 1) / parts_;
    if (first_group == last_group) return;
    int64_t* const table = reinterpret_cast<int64_t*>(scratch);
    ColumnPanel panel[WIDE];
    const float* packed[WIDE] = {};
    float *weights[WIDE] = {}, *products[WIDE] = {}, *staging[WIDE] = {};
    float* own = scratch + table_floats();
    for (int64_t p = 0; p < panels; ++p) {
      panel[p] = column_panel(weight_.columns, panel0 + p);
      weights[p] = own;
      products[p] = weights[p] + transformed_floats();
      staging[p] = products[p] + products_floats();
      own = staging[p] + staging_floats();
      packed[p] = packs_ahead() ? packed_ + (panel0 + p) * packed_floats() : own;
      if (packs_ahead()) continue;
      pack(panel[p], own, evenness);
      own += packed_floats();
    }
    for (int64_t g = first_group; g < last_group; ++g) {
      const int64_t begin = g * group_, end = min64(n1 - n0, begin + group_), images = end - begin;
      for (int64_t f = 0; f < PHASES; ++f) {
        for (int64_t c = 0; c < weight_.reductions; c += PIECE) {
          const int64_t length = min64(PIECE, weight_.reductions - c);
          for (int64_t p = 0; p < panels; ++p) transform_piece(packed[p], panel[p], f, c, length, weights[p]);
          multiply(in, begin * grid_.tiles(), images * grid_.tiles(), f, c, length, weights, panel, panels,
                   c > 0 || (!up_ && f > 0), products);
        }
        if (!up_ && f + 1 < PHASES) continue;
        for (int64_t p = 0; p < panels; ++p) write_tiles(products[p], images, up_ ? f : 0, panel[p], staging[p]);
      }
      for (int64_t p = 0; p < panels; ++p) {
        for (int64_t i = 0; i < height_ * width_; ++i) table[i] = i * images * panel[p].width();
        output_.emit(staging[p], table, panel[p], n0 + begin, n0 + end, 0, height_,
                     wants_moments_ ? moments_ + (panel0 + p) * parts_ + part : nullptr);
      }
    }
  }

  void write_statistics(float* statistics) const {
    PanelOutput::write_statistics(moments_, weight_.columns, parts_, statistics);
  }

 private:
  // Where several parts or rounds use a panel's weights.
  bool packs_ahead() const { return rounds_ * parts_ > 1; }
  int64_t piece() const { return min64(PIECE, weight_.reductions); }
  int64_t moments_floats() const { return wants_moments_ ? Scratch::round(panels_ * parts_ * sizeof(Moments) / 4) : 0; }
  int64_t packed_floats() const { return Scratch::round(16 * weight_.reductions * PANEL_MAX); }
  int64_t transformed_floats() const { return COMPONENTS * (piece() * PANEL_MAX + LINE) + PREFETCH_STEPS * PANEL_MAX; }
  int64_t products_floats() const { return COMPONENTS * (group_ * grid_.tiles() * PANEL_MAX + LINE); }
  int64_t staging_floats() const { return Scratch::round(height_ * width_ * group_ * PANEL_MAX); }
  int64_t table_floats() const { return Scratch::round(height_ * width_ * sizeof(int64_t) / 4); }

  // At the image's edge, and in each phase of the product up, results read some of the weights alone.
  void pack(const ColumnPanel& panel, float* packed, Evenness& evenness) const {
    static constexpr int64_t places[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    GK_BY_STORAGE(weight_.storage, pack_columns, weight_, panel, 4, 4, places, packed);
    evenness.look_at(packed, 16 * weight_.reductions * panel.width(), 16 * weight_.reductions * panel.columns);
  }

  // A piece of the packed weights of a phase to weights[component][reduction][column].
  void transform_piece(const float* packed, const ColumnPanel& panel, int64_t phase, int64_t c, int64_t length,
                       float* weights) const {
    const int64_t width = panel.width();
    const float* tap[4];
    for (int64_t t = 0; t < 4; ++t) {
      const int64_t place = TileAxis::tap(up_, phase / 2, t / 2) * 4 + TileAxis::tap(up_, phase % 2, t % 2);
      tap[t] = packed + (place * weight_.reductions + c) * width;
    }
    transform_weights<TILE>(tap, length * width, weights, length * width + LINE);
  }

  // products[panel][component][tile][column] (+)= the reductions [c, c + length) of a phase of the tiles. Components of
  // weights and products are a line more apart than they are long: else they would meet in one set of L1.
  void multiply(const Transformed& in, int64_t first_tile, int64_t tiles, int64_t f, int64_t c, int64_t length,
                float* const* weights, const ColumnPanel* panel, int64_t panels, bool adds,
                float* const* products) const {
    for (int64_t k = 0; k < COMPONENTS; ++k) {
      const float* const from = in.data + f * in.phase + k * in.component + first_tile * in.pitch + c;
      for_row_tiles(tiles, [&](int64_t first, int64_t count) {
        const float* const ahead = first + count < tiles ? from + (first + count) * in.pitch : from + in.component;
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t width = panel[p].width();
          rows_tile_of(count, panel[p].nr)(from + first * in.pitch, in.pitch, length, block_,
                                           weights[p] + k * (length * width + LINE), ahead, adds,
                                           products[p] + k * (tiles * width + LINE) + first * width, width);
        }
      });
    }
  }

  // The outputs of one phase to the staging, [line][column][image].
  void write_tiles(const float* products, int64_t images, int64_t f, const ColumnPanel& panel, float* staging) const {
    const int64_t width = panel.width(), step = images * grid_.tiles() * width + LINE;
    const float* from = products;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t ty = 0; ty < grid_.rows.tiles; ++ty)
        for (int64_t tx = 0; tx < grid_.cols.tiles; ++tx, from += width) {
          float* out[TILE * TILE];
          for (int64_t i = 0; i < TILE * TILE; ++i) {
            const int64_t y = grid_.rows.out[f / 2] + (TILE * ty + i / TILE) * grid_.rows.out_step;
            const int64_t x = grid_.cols.out[f % 2] + (TILE * tx + i % TILE) * grid_.cols.out_step;
            out[i] = y < height_ && x < width_ ? staging + ((y * width_ + x) * images + n) * width : nullptr;
          }
          transform_back<TILE + 1, TILE>(from, step, width, out, Points<TILE>::template outputs_from<Vec>);
        }
  }

  TileGrid grid_;
  bool up_;
  int64_t rounds_;
  ColumnWeight weight_;
  int64_t height_, width_;
  PanelOutput output_;
  bool wants_moments_;
  int64_t group_, panels_, wides_, parts_, block_;  // block_: products that a register adds up
  Moments* moments_ = nullptr;
  float* packed_ = nullptr;
};

}  // namespace gk::GK_ISA
