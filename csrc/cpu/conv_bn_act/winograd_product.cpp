// Products by Winograd's F(4x4, 2x2) and F(2x2, 2x2), see winograd.h: forward passes and input gradients, strided and
// transposed.
//
// A task of work is a pair of panels of output channels and a part of the images that are there. Phase by phase and a
// piece of the input channels at a time its packed weights are transformed, in L2, and every component meets all tiles
// of a group of images as a plain matrix product: rows (M) are tiles, 96 of them or so (128 of 2 x 2), read where the
// transformed images stand, and meet both panels; sums grow in L2 too. The components of a tile then give its pixels.
// Traffic: weights once (and once more per round), transformed images (6.25 or 9 times the low image in a transposed
// product, 1.56 times the high one in a strided one) once per pair of panels, from L3. Bound: the multiply-add units,
// at 25/64 or 9/16 of the direct multiplications, which run at 90 % of their peak; transforms, and the way in and out,
// take as long again as a half of the products (images of 16 x 16) to all of them (4 x 4, where a weight meets 16 tiles
// only).
#include "cpu/conv_bn_act/winograd_product.h"

#include "cpu/conv_bn_act/winograd_points.h"
#include "cpu/conv_bn_act/winograd_tile.h"

namespace gk::GK_ISA::conv_bn_act {

// The panels of a task and the scratch of the thread that computes them.
template <int TILE>
struct WinogradProduct<TILE>::Panels {
  int64_t count;
  ColumnPanel panel[WIDE];
  const float* packed[WIDE];
  float *weights[WIDE], *products[WIDE], *staging[WIDE];
};

// The reductions [first, first + length) of a phase; `mode`: over what the products hold, or to it.
template <int TILE>
struct WinogradProduct<TILE>::Piece {
  int64_t phase, first, length;
  TileMode mode;
};

template <int TILE>
WinogradProduct<TILE>::WinogradProduct(const ConvShape& s, ConvKind kind, const Rounds& rounds,
                                       const ColumnWeight& weight, const ImageView& out, const EpilogueSpec& epilogue,
                                       int threads)
    : grid_(s, kind, TILE), kind_(kind), weight_(weight),
      height_(kind == ConvKind::transposed ? s.high_h : s.low_h),
      width_(kind == ConvKind::transposed ? s.high_w : s.low_w), epilogue_(out, epilogue, width_) {
  group_ = max64(1, min64(rounds.images, TILES / grid_.tiles()));
  group_ = ceil_div(rounds.images, ceil_div(rounds.images, group_));
  panels_ = column_panels(weight.columns);
  wides_ = ceil_div(panels_, WIDE);
  block_ = TILE == 4 && kind == ConvKind::transposed && weight.reductions < 256 ? 16 : PIECE;
  parts_ = min64(ceil_div(rounds.images, group_), ceil_div(8 * threads, wides_));
  packs_ahead_ = rounds.count * parts_ > 1;

  moments_at_ = shared_layout_.take<Moments>(epilogue.takes_statistics ? panels_ * parts_ : 0);
  packed_at_ = shared_layout_.take<float>(packs_ahead_ ? panels_ * packed_floats() : 0);
  const int64_t piece = min64(PIECE, weight.reductions), pixels = height_ * width_;
  table_ = thread_layout_.take<int64_t>(pixels);
  for (auto& own : panel_scratch_) {
    own.weights = thread_layout_.take<float>(COMPONENTS * (piece * PANEL_MAX + LINE) + PREFETCH_STEPS * PANEL_MAX);
    own.products = thread_layout_.take<float>(COMPONENTS * (group_ * grid_.tiles() * PANEL_MAX + LINE));
    own.staging = thread_layout_.take<float>(pixels * group_ * PANEL_MAX);
    own.packed = thread_layout_.take<float>(packs_ahead_ ? 0 : packed_floats());
  }
}

template <int TILE>
void WinogradProduct<TILE>::set_shared(float* shared) {
  moments_ = part_of(shared, moments_at_);
  packed_ = part_of(shared, packed_at_);
  if (epilogue_.takes_statistics()) memset(shared, 0, panels_ * parts_ * sizeof(Moments));
}

template <int TILE>
void WinogradProduct<TILE>::pack_shared(Evenness& evenness) const {
  if (!packs_ahead_) return;
#pragma omp for schedule(dynamic) nowait
  for (int64_t p = 0; p < panels_; ++p) pack(column_panel(weight_.columns, p), packed_ + p * packed_floats(), evenness);
}

template <int TILE>
void WinogradProduct<TILE>::run_task(int64_t task, const Transformed& in, int64_t n0, int64_t n1, Evenness& evenness,
                                     float* scratch) const {
  const int64_t panel0 = task / parts_ * WIDE, part = task % parts_, groups = ceil_div(n1 - n0, group_);
  const int64_t first_group = groups * part / parts_, last_group = groups * (part + 1) / parts_;
  if (first_group == last_group) return;
  int64_t* const table = part_of(scratch, table_);
  const Panels panels = take_panels(panel0, min64(WIDE, panels_ - panel0), evenness, scratch);
  for (int64_t g = first_group; g < last_group; ++g) {
    const int64_t begin = g * group_, end = min64(n1 - n0, begin + group_), images = end - begin;
    multiply_group(panels, in, begin, images);
    for (int64_t p = 0; p < panels.count; ++p) {
      for (int64_t i = 0; i < height_ * width_; ++i) table[i] = i * images * panels.panel[p].width();
      epilogue_.emit(panels.staging[p], table, panels.panel[p], {n0 + begin, n0 + end, 0, height_},
                     moments_ + (panel0 + p) * parts_ + part);
    }
  }
}

template <int TILE>
void WinogradProduct<TILE>::write_statistics(float* statistics) const {
  Epilogue::write_statistics(moments_, weight_.columns, parts_, statistics);
}

template <int TILE>
typename WinogradProduct<TILE>::Panels WinogradProduct<TILE>::take_panels(int64_t first, int64_t count,
                                                                          Evenness& evenness, float* scratch) const {
  Panels panels{};
  panels.count = count;
  for (int64_t p = 0; p < count; ++p) {
    panels.panel[p] = column_panel(weight_.columns, first + p);
    panels.weights[p] = part_of(scratch, panel_scratch_[p].weights);
    panels.products[p] = part_of(scratch, panel_scratch_[p].products);
    panels.staging[p] = part_of(scratch, panel_scratch_[p].staging);
    float* const packed = part_of(scratch, panel_scratch_[p].packed);
    if (!packs_ahead_) pack(panels.panel[p], packed, evenness);
    panels.packed[p] = packs_ahead_ ? packed_ + (first + p) * packed_floats() : packed;
  }
  return panels;
}

// At the image's edge, and in each phase of a transposed product, results read some of the weights alone.
template <int TILE>
void WinogradProduct<TILE>::pack(const ColumnPanel& panel, float* packed, Evenness& evenness) const {
  static constexpr int64_t places[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  GK_BY_STORAGE(weight_.storage, pack_columns, weight_, panel, 4, 4, places, packed);
  evenness.look_at(packed, 16 * weight_.reductions * panel.width(), 16 * weight_.reductions * panel.columns);
}

// The images [first_image, first_image + images) of the round to the staging.
template <int TILE>
void WinogradProduct<TILE>::multiply_group(const Panels& panels, const Transformed& in, int64_t first_image,
                                           int64_t images) const {
  const bool strided = kind_ == ConvKind::strided;  // whose phases add up to one result
  for (int64_t f = 0; f < PHASES; ++f) {
    for (int64_t c = 0; c < weight_.reductions; c += PIECE) {
      const TileMode mode = c > 0 || (strided && f > 0) ? TileMode::add : TileMode::write;
      const Piece piece{f, c, min64(PIECE, weight_.reductions - c), mode};
      transform_piece(panels, piece);
      multiply_piece(panels, in, piece, first_image * grid_.tiles(), images * grid_.tiles());
    }
    if (strided && f + 1 < PHASES) continue;
    for (int64_t p = 0; p < panels.count; ++p)
      write_tiles(panels.products[p], images, strided ? 0 : f, panels.panel[p], panels.staging[p]);
  }
}

// A piece of the packed weights to weights[component][reduction][column].
template <int TILE>
void WinogradProduct<TILE>::transform_piece(const Panels& panels, const Piece& piece) const {
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t width = panels.panel[p].width();
    const float* tap[4];
    for (int64_t t = 0; t < 4; ++t) {
      const int64_t row = TileAxis::tap(kind_, piece.phase / 2, t / 2);
      const int64_t place = row * 4 + TileAxis::tap(kind_, piece.phase % 2, t % 2);
      tap[t] = panels.packed[p] + (place * weight_.reductions + piece.first) * width;
    }
    transform_weights<TILE>(tap, piece.length * width, panels.weights[p], piece.length * width + LINE);
  }
}

// products[panel][component][tile][column] (+)= a piece of the tiles. Components of weights and products are a line
// more apart than they are long: else they would meet in one set of L1.
template <int TILE>
void WinogradProduct<TILE>::multiply_piece(const Panels& panels, const Transformed& in, const Piece& piece,
                                           int64_t first_tile, int64_t tiles) const {
  for (int64_t k = 0; k < COMPONENTS; ++k) {
    const float* const from =
        in.data + piece.phase * in.phase + k * in.component + first_tile * in.pitch + piece.first;
    for_row_tiles(tiles, [&](int64_t first, int64_t count) {
      const float* const ahead = first + count < tiles ? from + (first + count) * in.pitch : from + in.component;
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t width = panels.panel[p].width();
        const float* const weights = panels.weights[p] + k * (piece.length * width + LINE);
        float* const products = panels.products[p] + k * (tiles * width + LINE) + first * width;
        rows_tile_of(count, panels.panel[p].nr)(from + first * in.pitch, in.pitch, piece.length, block_, weights, ahead,
                                                piece.mode, products, width);
      }
    });
  }
}

// The outputs of one phase to the staging, [line][column][image].
template <int TILE>
void WinogradProduct<TILE>::write_tiles(const float* products, int64_t images, int64_t phase, const ColumnPanel& panel,
                                        float* staging) const {
  const int64_t width = panel.width(), step = images * grid_.tiles() * width + LINE;
  const float* from = products;
  for (int64_t n = 0; n < images; ++n)
    for (int64_t ty = 0; ty < grid_.rows.tiles; ++ty)
      for (int64_t tx = 0; tx < grid_.cols.tiles; ++tx, from += width) {
        float* out[TILE * TILE];
        for (int64_t i = 0; i < TILE * TILE; ++i) {
          const int64_t y = grid_.rows.out[phase / 2] + (TILE * ty + i / TILE) * grid_.rows.out_step;
          const int64_t x = grid_.cols.out[phase % 2] + (TILE * tx + i % TILE) * grid_.cols.out_step;
          out[i] = y < height_ && x < width_ ? staging + ((y * width_ + x) * images + n) * width : nullptr;
        }
        transform_back<TILE + 1, TILE>(from, step, width, out, Points<TILE>::template outputs_from<Vec>);
      }
}

template class WinogradProduct<2>;
template class WinogradProduct<4>;

}  // namespace gk::GK_ISA::conv_bn_act
