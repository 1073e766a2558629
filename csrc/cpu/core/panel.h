// Panels: the columns of a product that one register tile is wide.
#pragma once

#include "cpu/core/gemm_tile.h"

namespace gk::GK_ISA {

struct Panel {
  int64_t first, columns;  // of the product
  int nr;                  // its width in vectors
  int64_t width() const { return int64_t{nr} * VL; }
};

inline int64_t panel_count(int64_t columns) { return ceil_div(columns, PANEL_MAX); }

inline Panel panel_at(int64_t columns, int64_t index) {
  const int64_t first = index * PANEL_MAX, own = min64(PANEL_MAX, columns - first);
  return {first, own, static_cast<int>(ceil_div(own, VL))};
}

}  // namespace gk::GK_ISA
