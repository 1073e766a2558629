// Products by Winograd's F(4x4, 2x2) and F(2x2, 2x2); winograd_product.cpp describes them.
#pragma once

#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/conv_bn_act/winograd.h"
#include "cpu/core/evenness.h"

namespace gk::GK_ISA::conv_bn_act {

// The images of a call come in rounds, whose transforms are in memory together.
struct Rounds {
  int64_t images;  // of a round, at most
  int64_t count;
};

template <int TILE>
class WinogradProduct {
 public:
  WinogradProduct(const ConvShape& s, ConvKind kind, const Rounds& rounds, const ColumnWeight& weight,
                  const ImageView& out, const EpilogueSpec& epilogue, int threads);

  int64_t tasks() const { return wides_ * parts_; }
  int64_t shared_floats() const { return shared_layout_.floats(); }
  int64_t thread_floats() const { return thread_layout_.floats(); }
  void set_shared(float* shared);
  // To be called by all threads of a team, before the first task and a barrier.
  void pack_shared(Evenness& evenness) const;
  // One task for the images [n0, n1) of a round, of which `in` holds the transforms, in the scratch of a thread.
  void run_task(int64_t task, const Transformed& in, int64_t n0, int64_t n1, Evenness& evenness, float* scratch) const;
  void write_statistics(float* statistics) const;

 private:
  static constexpr int64_t COMPONENTS = components_of(TILE);
  static constexpr int64_t WIDE = NR_MAX == 2 ? 2 : 1;    // panels of a task
  static constexpr int64_t PIECE = 32;                    // reduction steps
  static constexpr int64_t TILES = TILE == 4 ? 96 : 128;  // of a group of images

  struct Panels;
  struct Piece;

  int64_t packed_floats() const { return 16 * weight_.reductions * PANEL_MAX; }
  Panels take_panels(int64_t first, int64_t count, Evenness& evenness, float* scratch) const;
  void pack(const ColumnPanel& panel, float* packed, Evenness& evenness) const;
  void multiply_group(const Panels& panels, const Transformed& in, int64_t first_image, int64_t images) const;
  void transform_piece(const Panels& panels, const Piece& piece) const;
  void multiply_piece(const Panels& panels, const Transformed& in, const Piece& piece, int64_t first_tile,
                      int64_t tiles) const;
  void write_tiles(const float* products, int64_t images, int64_t phase, const ColumnPanel& panel,
                   float* staging) const;

  TileGrid grid_;
  ConvKind kind_;
  ColumnWeight weight_;
  int64_t height_, width_;
  Epilogue epilogue_;
  int64_t group_, panels_, wides_, parts_, block_;  // block_: products that a register adds up
  bool packs_ahead_;  // where several parts or rounds use a panel's weights
  // Of all threads: moments of each panel and part, and weights packed ahead.
  ScratchLayout shared_layout_;
  ScratchArray<Moments> moments_at_;
  ScratchArray<float> packed_at_;
  Moments* moments_ = nullptr;
  float* packed_ = nullptr;
  // Of each thread.
  ScratchLayout thread_layout_;
  ScratchArray<int64_t> table_;
  struct {
    ScratchArray<float> weights, products, staging, packed;
  } panel_scratch_[WIDE];
};

}  // namespace gk::GK_ISA::conv_bn_act
