// SPDX-License-Identifier: Apache-2.0
// AVX-512 version of the tile of panel_kernels.h; included by it.
#pragma once

#include "panel_kernels.h"

#if POPTRANSFORMER_X86

namespace poptransformer {

template <int kRows, int kVectors>
POPTRANSFORMER_AVX512 void panel_rows_avx512(const PanelArguments& t) {
  __m512 sums[kRows * kVectors], w[kVectors];
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    POPTRANSFORMER_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r * kVectors + v] = _mm512_loadu_ps(t.start + r * t.ld_start + 16 * v);
  }
  const float* x = t.x;
  const float* panel = t.panel;
  const int64_t ldx = t.ldx, ld_panel = t.ld_panel;
  const int64_t step = t.ahead->depth_per_line;
  for (int64_t first = 0, line = 0; first < t.depth; first += step, ++line) {
    for (int i = 0; i < t.ahead->count; ++i) prefetch(t.ahead->rows[i] + 64 * line);
    const int64_t end = std::min(first + step, t.depth);
    for (int64_t k = first; k < end; ++k, panel += ld_panel) {
      POPTRANSFORMER_UNROLL
      for (int v = 0; v < kVectors; ++v) w[v] = _mm512_loadu_ps(panel + 16 * v);
      POPTRANSFORMER_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m512 value = _mm512_set1_ps(x[r * ldx + k]);
        POPTRANSFORMER_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          sums[r * kVectors + v] = _mm512_fmadd_ps(value, w[v], sums[r * kVectors + v]);
        }
      }
    }
  }
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    POPTRANSFORMER_UNROLL
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(t.c + r * t.ldc + 16 * v, sums[r * kVectors + v]);
  }
}

template <int kRows>
void panel_columns_avx512(int columns, const PanelArguments& t) {
  if (columns == 2 * kTile) return panel_rows_avx512<kRows, 2>(t);
  panel_rows_avx512<kRows, 1>(t);
}

/// 8 x 32 sums. 12 and 14 rows are no faster, and a fifth slower where the input's rows are a multiple of 4 KB long:
/// all of them fall on the same lines of the first-level cache, which holds 8 such.
inline void panel_tile_avx512(int rows, int columns, const PanelArguments& t) {
  switch (rows) {
    case 1: return panel_columns_avx512<1>(columns, t);
    case 2: return panel_columns_avx512<2>(columns, t);
    case 3: return panel_columns_avx512<3>(columns, t);
    case 4: return panel_columns_avx512<4>(columns, t);
    case 5: return panel_columns_avx512<5>(columns, t);
    case 6: return panel_columns_avx512<6>(columns, t);
    case 7: return panel_columns_avx512<7>(columns, t);
    default: return panel_columns_avx512<8>(columns, t);
  }
}

}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
