// Products with very few rows, for the pixels of one to three images.
//
// One row leaves gemm_tile only NR chains of multiply-adds, far from the 8 that hide their latency. Here several panels
// are taken at once, or where there is one only, several reduction steps. The weight is read once, from L2 or L3: that
// is the bound, 2 operations for every 4 bytes and row.

#include "cpu/core/gemm_tile.h"

namespace gk::GK_ISA {

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

constexpr int64_t FEW_ROWS = 3;
// Panels at once for one row and for more.
constexpr int64_t few_rows_panels(int64_t rows) { return NR_MAX > 2 ? 2 : rows == 1 ? 4 : 2; }

// `panels` whole panels, at most few_rows_panels(rows); or one narrower panel of `nr` vectors.
inline void multiply_few_rows(int64_t count, int64_t panels, int nr, const float* const* rows, const Segment* segments,
                              int64_t segment_count, const float* panel, int64_t panel_floats, float* out,
                              int64_t out_stride, bool add) {
#define GK_FEW(M, P, NR, STEPS) \
  return few_rows<M, P, NR, STEPS>(rows, segments, segment_count, panel, panel_floats, out, out_stride, add)
#define GK_FEW_NARROW(NR)        \
  if (count == 1) GK_FEW(1, 1, NR, 4); \
  if (count == 2) GK_FEW(2, 1, NR, 2); \
  GK_FEW(3, 1, NR, 1)
  if (nr == 1) { GK_FEW_NARROW(1); }
#if GK_ISA_LEVEL == 2
  if (nr == 2) { GK_FEW_NARROW(2); }
  if (nr == 3) { GK_FEW_NARROW(3); }
#endif
  if (panels == 1) { GK_FEW_NARROW(NR_MAX); }
  if (count == 3) GK_FEW(3, 2, NR_MAX, 1);
  if (count == 2) GK_FEW(2, 2, NR_MAX, 1);
#if GK_ISA_LEVEL < 2
  if (panels == 4) GK_FEW(1, 4, NR_MAX, 1);
  if (panels == 3) GK_FEW(1, 3, NR_MAX, 1);
#endif
  GK_FEW(1, 2, NR_MAX, 2);
#undef GK_FEW_NARROW
#undef GK_FEW
}

}  // namespace gk::GK_ISA
