// SPDX-License-Identifier: Apache-2.0
// AVX2 versions of dots.h.
#pragma once

#include "dots.h"
#include "vectors_avx2.h"

#if POPTRANSFORMER_X86

namespace poptransformer {
namespace attention {

/// The sums of four vectors, in order.
POPTRANSFORMER_AVX2 inline __m128 sums_of4(const __m256* v) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

/// Makes GCC widen a value once: it would rather repeat the load for each use.
POPTRANSFORMER_AVX2 inline __m256 kept(__m256 value) {
  asm("" : "+x"(value));
  return value;
}

/// The part of one key's products at eight columns, into every fourth sum.
template <int kRows>
POPTRANSFORMER_AVX2 inline void add_products8(__m256 key, const float* few, int64_t ld, __m256* sums) {
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) sums[r * 4] = _mm256_fmadd_ps(key, _mm256_loadu_ps(few + r * ld), sums[r * 4]);
}

template <class Cache, int kRows>
POPTRANSFORMER_AVX2 void score_rows_avx2(const DotArguments<Cache>& d) {
  const int64_t whole = d.head_dim / 8 * 8;
  for (int64_t j = 0; j < d.count; j += 4) {
    const Cache* rows[4];
    __m256 sums[kRows * 4];
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t row = std::min(j + i, d.count - 1);  // At the end the last one is computed again.
      rows[i] = d.cached + row * d.head_dim;
      prefetch_ahead(d, row);
    }
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kRows * 4; ++i) sums[i] = _mm256_setzero_ps();
    for (int64_t k = 0; k < whole; k += 8) {
      POPTRANSFORMER_UNROLL
      for (int i = 0; i < 4; ++i) add_products8<kRows>(kept(widen8(rows[i] + k)), d.few + k, d.ld_few, sums + i);
    }
    if (whole < d.head_dim) {
      POPTRANSFORMER_UNROLL
      for (int i = 0; i < 4; ++i) {
        const __m256 key = widen_part8(rows[i] + whole, d.head_dim - whole);
        add_products8<kRows>(key, d.few + whole, d.ld_few, sums + i);
      }
    }
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kRows; ++r) _mm_storeu_ps(d.out + r * d.ld_out + j, sums_of4(sums + r * 4));
  }
}

/// Columns [column, column + 8 * kVectors); with kVectors = 1 perhaps fewer.
template <class Cache, int kRows, int kVectors>
POPTRANSFORMER_AVX2 void weigh_columns_avx2(const DotArguments<Cache>& d, int64_t column) {
  __m256 sums[kRows * kVectors];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kRows * kVectors; ++i) sums[i] = _mm256_setzero_ps();
  const int64_t count = d.head_dim - column;
  const Cache* cached = d.cached + column;
  const float* weights = d.few;
  for (int64_t j = 0; j < d.count; ++j, cached += d.head_dim, ++weights) {
    if (column == 0) prefetch_ahead(d, j);
    __m256 weight[kRows];
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kRows; ++r) weight[r] = _mm256_broadcast_ss(weights + r * d.ld_few);
    POPTRANSFORMER_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m256 value = count >= 8 ? kept(widen8(cached + 8 * v)) : widen_part8(cached, count);
      POPTRANSFORMER_UNROLL
      for (int r = 0; r < kRows; ++r) {
        sums[r * kVectors + v] = _mm256_fmadd_ps(weight[r], value, sums[r * kVectors + v]);
      }
    }
  }
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    POPTRANSFORMER_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      _mm256_storeu_ps(d.out + r * d.ld_out + column + 8 * v, sums[r * kVectors + v]);
    }
  }
}

template <class Cache, int kRows>
POPTRANSFORMER_AVX2 void weigh_rows_avx2(const DotArguments<Cache>& d) {
  int64_t column = 0;
  for (; column + 32 <= d.head_dim; column += 32) weigh_columns_avx2<Cache, kRows, 4>(d, column);
  for (; column < d.head_dim; column += 8) weigh_columns_avx2<Cache, kRows, 1>(d, column);
  for (; column < round_up(d.head_dim, kWidth); column += 8) {
    for (int r = 0; r < kRows; ++r) _mm256_storeu_ps(d.out + r * d.ld_out + column, _mm256_setzero_ps());
  }
}

template <class Cache>
void score_avx2(const DotArguments<Cache>& d) {
  by_few_rows<3>(d, {score_rows_avx2<Cache, 1>, score_rows_avx2<Cache, 2>, score_rows_avx2<Cache, 3>});
}

template <class Cache>
void weigh_avx2(const DotArguments<Cache>& d) {
  by_few_rows<3>(d, {weigh_rows_avx2<Cache, 1>, weigh_rows_avx2<Cache, 2>, weigh_rows_avx2<Cache, 3>});
}

}  // namespace attention
}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
