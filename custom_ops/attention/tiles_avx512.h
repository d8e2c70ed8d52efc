// SPDX-License-Identifier: Apache-2.0
// AVX-512 versions of tiles.h.
#pragma once

#include "tiles.h"
#include "vectors_avx512.h"

#if POPTRANSFORMER_X86

namespace poptransformer {
namespace attention {

/// Columns [column, column + 16 * kVectors) of a tile.
template <int kRows, int kVectors>
POPTRANSFORMER_AVX512 inline void multiply_columns_avx512(const TileArguments& t, int64_t column) {
  __m512 sums[kRows * kVectors];
  float* c = t.c + column;
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kRows * kVectors; ++i) sums[i] = _mm512_setzero_ps();
  if (t.adds) {
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kRows * kVectors; ++i) {
      sums[i] = _mm512_loadu_ps(c + i / kVectors * t.ld_c + i % kVectors * 16);
    }
  }
  const float *a = t.a, *b = t.b + column;
  const int64_t ld_a = t.ld_a;
  for (int64_t k = 0; k < t.depth; ++k, ++a, b += t.ld_b) {
    __m512 row[kVectors];
    POPTRANSFORMER_UNROLL
    for (int v = 0; v < kVectors; ++v) row[v] = _mm512_loadu_ps(b + 16 * v);
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512 value = _mm512_set1_ps(a[r * ld_a]);
      POPTRANSFORMER_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        sums[r * kVectors + v] = _mm512_fmadd_ps(value, row[v], sums[r * kVectors + v]);
      }
    }
  }
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kRows * kVectors; ++i) _mm512_storeu_ps(c + i / kVectors * t.ld_c + i % kVectors * 16, sums[i]);
}

template <int kRows>
POPTRANSFORMER_AVX512 void multiply_rows_avx512(const TileArguments& t) {
  int64_t column = 0;
  for (; column + 32 <= t.columns; column += 32) multiply_columns_avx512<kRows, 2>(t, column);
  if (column < t.columns) multiply_columns_avx512<kRows, 1>(t, column);
}

inline void multiply_tile_avx512(const TileArguments& t) {
  switch (t.rows) {
    case 1: return multiply_rows_avx512<1>(t);
    case 2: return multiply_rows_avx512<2>(t);
    case 3: return multiply_rows_avx512<3>(t);
    case 4: return multiply_rows_avx512<4>(t);
    case 5: return multiply_rows_avx512<5>(t);
    case 6: return multiply_rows_avx512<6>(t);
    case 7: return multiply_rows_avx512<7>(t);
    default: return multiply_rows_avx512<8>(t);
  }
}

/// Transposes 16 x 16 values in place.
POPTRANSFORMER_AVX512 inline void transpose16(__m512* rows) {
  __m512 quads[16];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 16; i += 4) {
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + 2], rows[i + 3]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + 2], rows[i + 3]));
    quads[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
    quads[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    quads[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    quads[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
  }
  // quads[4 * q + i] holds rows 4q to 4q + 3 of columns i, i + 4, i + 8 and i + 12: now the same for groups of four.
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512 even01 = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0xdd);
    rows[i] = _mm512_shuffle_f32x4(even01, even23, 0x88);
    rows[i + 4] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    rows[i + 8] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    rows[i + 12] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
}

template <class Cache>
POPTRANSFORMER_AVX512 void pack_keys_avx512(const Cache* keys, int64_t head_dim, int64_t count, float* panel) {
  for (int64_t j = 0; j < count; j += 16) {
    for (int64_t k = 0; k < head_dim; k += 16) {
      const __mmask16 columns = first_of16(head_dim - k);
      __m512 block[16];
      POPTRANSFORMER_UNROLL
      for (int i = 0; i < 16; ++i) {
        block[i] = j + i < count ? widen16(columns, keys + (j + i) * head_dim + k) : _mm512_setzero_ps();
      }
      transpose16(block);
      float* target = panel + k * kBlockSlots + j;
      POPTRANSFORMER_UNROLL
      for (int i = 0; i < 16; ++i) {
        if (k + i < head_dim) _mm512_storeu_ps(target + i * kBlockSlots, block[i]);
      }
    }
  }
}

template <class Cache>
POPTRANSFORMER_AVX512 void widen_rows_avx512(const Cache* values, int64_t head_dim, int64_t width, int64_t count,
                                             float* rows) {
  for (int64_t j = 0; j < count; ++j, values += head_dim, rows += width) {
    for (int64_t k = 0; k < width; k += 16) {
      _mm512_storeu_ps(rows + k, widen16(first_of16(head_dim - k), values + k));
    }
  }
}

}  // namespace attention
}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
