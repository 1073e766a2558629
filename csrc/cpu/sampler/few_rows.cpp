// Products with very few rows, for the pixels of one to three images.
//
// One row leaves gemm_tile only NR chains of multiply-adds, far from the 8 that hide their latency. Here several panels
// are taken at once, or where there is one only, several reduction steps. The weight is read once, from L2 or L3: that
// is the bound, 2 operations for every 4 bytes and row.

#include "cpu/sampler/few_rows.h"

namespace gk::GK_ISA::sampler {

namespace {

// out[i][p * panel + j] = sum over segments and k; `panel_floats` from one panel to the next. STEPS reduction steps are
// summed apart.
template <int M, int P, int NR, int STEPS>
GK_INLINE void few_rows(const float* const* rows, const Segment* segments, int64_t segment_count, const float* panel,
                        int64_t panel_floats, float* out, int64_t out_stride, bool add) {
  Vec acc[STEPS][M][P][NR] = {};
  for (int64_t s = 0; s < segment_count; ++s) {
    const float* row[M];
    for (int i = 0; i < M; ++i) row[i] = rows[i] + segments[s].offset;
    const int64_t length = segments[s].length;
    int64_t k = 0;
    const auto step = [&](int t) __attribute__((always_inline)) {
      GK_UNROLL for (int p = 0; p < P; ++p) {
        Vec b[NR];
        GK_UNROLL for (int j = 0; j < NR; ++j) b[j] = load(panel + p * panel_floats + (t * NR + j) * VL);
        GK_UNROLL for (int i = 0; i < M; ++i) {
          const Vec a = broadcast(row[i][k + t]);
          GK_UNROLL for (int j = 0; j < NR; ++j) acc[t][i][p][j] += a * b[j];
        }
      }
    };
    for (; k + STEPS <= length; k += STEPS, panel += STEPS * NR * VL) {
      GK_UNROLL for (int t = 0; t < STEPS; ++t) step(t);
    }
    for (; k < length; ++k, panel += NR * VL) step(0);
  }
  GK_UNROLL for (int i = 0; i < M; ++i)
    GK_UNROLL for (int p = 0; p < P; ++p)
      GK_UNROLL for (int j = 0; j < NR; ++j) {
        Vec sum = acc[0][i][p][j];
        GK_UNROLL for (int t = 1; t < STEPS; ++t) sum += acc[t][i][p][j];
        float* to = out + i * out_stride + (p * NR + j) * VL;
        store(to, add ? load(to) + sum : sum);
      }
}

using FewRows = void (*)(const float* const* rows, const Segment* segments, int64_t segment_count, const float* panel,
                         int64_t panel_floats, float* out, int64_t out_stride, bool add);

// One panel of `NR` vectors, by the number of rows.
#define GK_ONE_PANEL(NR) {few_rows<1, 1, NR, 4>, few_rows<2, 1, NR, 2>, few_rows<3, 1, NR, 1>}
#if GK_ISA_LEVEL == 2
constexpr FewRows ONE_PANEL[NR_MAX][FEW_ROWS] = {GK_ONE_PANEL(1), GK_ONE_PANEL(2), GK_ONE_PANEL(3), GK_ONE_PANEL(4)};
#else
constexpr FewRows ONE_PANEL[NR_MAX][FEW_ROWS] = {GK_ONE_PANEL(1), GK_ONE_PANEL(2)};
#endif
#undef GK_ONE_PANEL

// Several whole panels, from 2 on, by the number of rows.
constexpr FewRows PANELS[FEW_ROWS][few_rows_panels(1) - 1] = {
#if GK_ISA_LEVEL == 2
    {few_rows<1, 2, NR_MAX, 2>},
#else
    {few_rows<1, 2, NR_MAX, 2>, few_rows<1, 3, NR_MAX, 1>, few_rows<1, 4, NR_MAX, 1>},
#endif
    {few_rows<2, 2, NR_MAX, 1>},
    {few_rows<3, 2, NR_MAX, 1>}};

}  // namespace

void multiply_few_rows(int64_t count, int64_t panels, int nr, const float* const* rows, const Segment* segments,
                       int64_t segment_count, const float* panel, int64_t panel_floats, float* out, int64_t out_stride,
                       bool add) {
  const FewRows function = panels == 1 ? ONE_PANEL[nr - 1][count - 1] : PANELS[count - 1][panels - 2];
  function(rows, segments, segment_count, panel, panel_floats, out, out_stride, add);
}

}  // namespace gk::GK_ISA::sampler
