// SPDX-License-Identifier: Apache-2.0
// AVX-512 versions of dots.h.
#pragma once

#include "dots.h"
#include "vectors_avx512.h"

#if POPTRANSFORMER_X86

namespace poptransformer {
namespace attention {

/// The sums of four vectors, in order.
POPTRANSFORMER_AVX512 inline __m128 sums_of4(const __m512* v) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 quarters = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

/// The part of four keys' products at sixteen columns.
template <int kRows>
POPTRANSFORMER_AVX512 inline void add_products16(const __m512* keys, const float* few, int64_t ld, __m512* sums) {
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const __m512 query = _mm512_loadu_ps(few + r * ld);
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < 4; ++i) sums[r * 4 + i] = _mm512_fmadd_ps(keys[i], query, sums[r * 4 + i]);
  }
}

template <class Cache, int kRows>
POPTRANSFORMER_AVX512 void score_rows_avx512(const DotArguments<Cache>& d) {
  const int64_t whole = d.head_dim / 16 * 16;
  const __mmask16 rest = first_of16(d.head_dim - whole);
  for (int64_t j = 0; j < d.count; j += 4) {
    const Cache* rows[4];
    __m512 keys[4], sums[kRows * 4];
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t row = std::min(j + i, d.count - 1);  // At the end the last one is computed again.
      rows[i] = d.cached + row * d.head_dim;
      prefetch_ahead(d, row);
    }
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kRows * 4; ++i) sums[i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < whole; k += 16) {
      POPTRANSFORMER_UNROLL
      for (int i = 0; i < 4; ++i) keys[i] = widen16(rows[i] + k);
      add_products16<kRows>(keys, d.few + k, d.ld_few, sums);
    }
    if (rest != 0) {
      POPTRANSFORMER_UNROLL
      for (int i = 0; i < 4; ++i) keys[i] = widen16(rest, rows[i] + whole);
      add_products16<kRows>(keys, d.few + whole, d.ld_few, sums);
    }
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kRows; ++r) _mm_storeu_ps(d.out + r * d.ld_out + j, sums_of4(sums + r * 4));
  }
}

/// Columns [column, column + 16 * kVectors), the last vector under a mask.
template <class Cache, int kRows, int kVectors>
POPTRANSFORMER_AVX512 void weigh_columns_avx512(const DotArguments<Cache>& d, int64_t column, __mmask16 last) {
  __m512 sums[kRows * kVectors], values[kVectors];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kRows * kVectors; ++i) sums[i] = _mm512_setzero_ps();
  const Cache* cached = d.cached + column;
  const float* weights = d.few;
  for (int64_t j = 0; j < d.count; ++j, cached += d.head_dim, ++weights) {
    if (column == 0) prefetch_ahead(d, j);
    POPTRANSFORMER_UNROLL
    for (int v = 0; v < kVectors - 1; ++v) values[v] = widen16(cached + 16 * v);
    values[kVectors - 1] = widen16(last, cached + 16 * (kVectors - 1));
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m512 weight = _mm512_set1_ps(weights[r * d.ld_few]);
      POPTRANSFORMER_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        sums[r * kVectors + v] = _mm512_fmadd_ps(weight, values[v], sums[r * kVectors + v]);
      }
    }
  }
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    POPTRANSFORMER_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(d.out + r * d.ld_out + column + 16 * v, sums[r * kVectors + v]);
    }
  }
}

template <class Cache, int kRows>
POPTRANSFORMER_AVX512 void weigh_rows_avx512(const DotArguments<Cache>& d) {
  int64_t column = 0;
  for (; column + 64 <= d.head_dim; column += 64) weigh_columns_avx512<Cache, kRows, 4>(d, column, 0xffff);
  for (; column < d.head_dim; column += 16) {
    weigh_columns_avx512<Cache, kRows, 1>(d, column, first_of16(d.head_dim - column));
  }
}

template <class Cache>
void score_avx512(const DotArguments<Cache>& d) {
  by_few_rows<4>(d, {score_rows_avx512<Cache, 1>, score_rows_avx512<Cache, 2>,
                     score_rows_avx512<Cache, 3>, score_rows_avx512<Cache, 4>});
}

template <class Cache>
void weigh_avx512(const DotArguments<Cache>& d) {
  by_few_rows<4>(d, {weigh_rows_avx512<Cache, 1>, weigh_rows_avx512<Cache, 2>,
                     weigh_rows_avx512<Cache, 3>, weigh_rows_avx512<Cache, 4>});
}

}  // namespace attention
}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
