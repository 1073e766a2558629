// The weight gradient by Winograd's F(4x4, 2x2); winograd_weight_gradient.cpp describes it.
#pragma once

#include "cpu/conv_bn_act/packing.h"
#include "cpu/conv_bn_act/winograd.h"

namespace gk::GK_ISA::conv_bn_act {

class WinogradWeightGradient {
 public:
  static constexpr int64_t COMPONENTS = components_of(STRIDED_TILE);

  // `rounds`: how many times run_task is called for each task.
  WinogradWeightGradient(const ConvShape& s, const ConvWeight& out, int64_t rounds, int threads);

  int64_t tasks() const { return panels_ * row_blocks_; }
  // Sums that wait for the next round belong to their task.
  int64_t shared_floats() const { return rounds_ > 1 ? tasks() * sums_floats() : 0; }
  int64_t thread_floats() const { return layout_.floats(); }
  // One task, for the `tiles` of a round, in the scratch of a thread.
  void run_task(int64_t task, const Transformed& low, const Transformed& high, int64_t tiles, int64_t round,
                float* shared, float* scratch) const;

 private:
  int64_t component_floats() const { return rows_ * PANEL_MAX; }
  int64_t sums_floats() const { return PHASES * COMPONENTS * component_floats(); }
  void write(float* sums, float* taps, const ColumnPanel& panel, int64_t row0, int64_t rows) const;

  ConvShape s_;
  ConvWeight out_;
  int64_t rounds_, panels_, row_blocks_, rows_;
  ScratchLayout layout_;
  ScratchArray<float> taps_, sums_;
};

}  // namespace gk::GK_ISA::conv_bn_act
