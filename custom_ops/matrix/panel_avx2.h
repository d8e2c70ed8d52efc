// SPDX-License-Identifier: Apache-2.0
// AVX2 version of panel_kernels.h; included by it.
#pragma once

#include "panel_kernels.h"

#if POPTRANSFORMER_X86

namespace poptransformer {

/// Transposes 8 x 8 values in place.
POPTRANSFORMER_AVX2 inline void transpose8(__m256 rows[8]) {
  __m256 pairs[8], quads[8];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 2; ++i) {
    quads[4 * i] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0x44);
    quads[4 * i + 1] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0xee);
    quads[4 * i + 2] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0x44);
    quads[4 * i + 3] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0xee);
  }
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

/// Packs 8 weight rows into 8 columns of a panel.
template <class Weight>
POPTRANSFORMER_AVX2 void pack_rows8_avx2(const Weight* weights, int64_t ld, int64_t depth, float* panel,
                                         int64_t ld_panel) {
  __m256 block[8];
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) {
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < 8; ++r) block[r] = load8(weights + r * ld + k);
    transpose8(block);
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(panel + (k + i) * ld_panel, block[i]);
  }
  if (k == depth) return;
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < 8; ++r) block[r] = load_part(weights + r * ld + k, depth - k);
  transpose8(block);
  for (int i = 0; i < depth - k; ++i) _mm256_storeu_ps(panel + (k + i) * ld_panel, block[i]);
}

template <class Weight>
void pack_rows_avx2(const Weight* weights, int64_t ld, int rows, int64_t depth, float* panel, int64_t ld_panel) {
  if (rows < kTile) return pack_rows_portable(weights, ld, rows, depth, panel, ld_panel);
  pack_rows8_avx2(weights, ld, depth, panel, ld_panel);
  pack_rows8_avx2(weights + 8 * ld, ld, depth, panel + 8, ld_panel);
}

template <int kRows>
POPTRANSFORMER_AVX2 void panel_rows_avx2(const PanelArguments& t) {
  __m256 left[kRows], right[kRows];
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    left[r] = _mm256_loadu_ps(t.start + r * t.ld_start);
    right[r] = _mm256_loadu_ps(t.start + r * t.ld_start + 8);
  }
  const float* x = t.x;
  const float* panel = t.panel;
  const int64_t ldx = t.ldx, ld_panel = t.ld_panel;
  const int64_t step = t.ahead->depth_per_line;
  for (int64_t first = 0, line = 0; first < t.depth; first += step, ++line) {
    for (int i = 0; i < t.ahead->count; ++i) prefetch(t.ahead->rows[i] + 64 * line);
    const int64_t end = std::min(first + step, t.depth);
    for (int64_t k = first; k < end; ++k, panel += ld_panel) {
      const __m256 w_left = _mm256_loadu_ps(panel), w_right = _mm256_loadu_ps(panel + 8);
      POPTRANSFORMER_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m256 value = _mm256_broadcast_ss(x + r * ldx + k);
        left[r] = _mm256_fmadd_ps(value, w_left, left[r]);
        right[r] = _mm256_fmadd_ps(value, w_right, right[r]);
      }
    }
  }
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    _mm256_storeu_ps(t.c + r * t.ldc, left[r]);
    _mm256_storeu_ps(t.c + r * t.ldc + 8, right[r]);
  }
}

/// 6 x 16 sums, two vectors of the panel and one input: 15 of 16 registers.
inline void panel_tile_avx2(int rows, int, const PanelArguments& t) {
  switch (rows) {
    case 1: return panel_rows_avx2<1>(t);
    case 2: return panel_rows_avx2<2>(t);
    case 3: return panel_rows_avx2<3>(t);
    case 4: return panel_rows_avx2<4>(t);
    case 5: return panel_rows_avx2<5>(t);
    default: return panel_rows_avx2<6>(t);
  }
}

}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
