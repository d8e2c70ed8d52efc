// SPDX-License-Identifier: Apache-2.0
// AVX2 versions of tiles.h.
#pragma once

#include "tiles.h"
#include "vectors_avx2.h"

#if POPTRANSFORMER_X86

namespace poptransformer {
namespace attention {

/// Sixteen columns of kRows rows.
template <int kRows>
POPTRANSFORMER_AVX2 inline void multiply_columns_avx2(const TileArguments& t, int64_t column) {
  __m256 left[kRows], right[kRows];
  float* c = t.c + column;
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    left[r] = t.adds ? _mm256_loadu_ps(c + r * t.ld_c) : _mm256_setzero_ps();
    right[r] = t.adds ? _mm256_loadu_ps(c + r * t.ld_c + 8) : _mm256_setzero_ps();
  }
  const float *a = t.a, *b = t.b + column;
  const int64_t ld_a = t.ld_a;
  for (int64_t k = 0; k < t.depth; ++k, ++a, b += t.ld_b) {
    const __m256 b_left = _mm256_loadu_ps(b), b_right = _mm256_loadu_ps(b + 8);
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m256 value = _mm256_broadcast_ss(a + r * ld_a);
      left[r] = _mm256_fmadd_ps(value, b_left, left[r]);
      right[r] = _mm256_fmadd_ps(value, b_right, right[r]);
    }
  }
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    _mm256_storeu_ps(c + r * t.ld_c, left[r]);
    _mm256_storeu_ps(c + r * t.ld_c + 8, right[r]);
  }
}

template <int kRows>
POPTRANSFORMER_AVX2 void multiply_rows_avx2(const TileArguments& t) {
  for (int64_t column = 0; column < t.columns; column += 16) multiply_columns_avx2<kRows>(t, column);
}

constexpr int64_t kTileRowsAvx2 = 6;  ///< There are registers for no more.

inline void multiply_tile_avx2(const TileArguments& t) {
  switch (t.rows) {
    case 1: return multiply_rows_avx2<1>(t);
    case 2: return multiply_rows_avx2<2>(t);
    case 3: return multiply_rows_avx2<3>(t);
    case 4: return multiply_rows_avx2<4>(t);
    case 5: return multiply_rows_avx2<5>(t);
    default: return multiply_rows_avx2<6>(t);
  }
}

/// Transposes 8 x 8 values in place.
POPTRANSFORMER_AVX2 inline void transpose8(__m256* rows) {
  __m256 quads[8];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 8; i += 4) {
    const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(rows[i], rows[i + 1]));
    const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(rows[i], rows[i + 1]));
    const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(rows[i + 2], rows[i + 3]));
    const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(rows[i + 2], rows[i + 3]));
    quads[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
    quads[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
    quads[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
    quads[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
  }
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

/// The block of eight keys and up to eight depths whose corner is `keys`.
template <class Cache>
POPTRANSFORMER_AVX2 inline void pack_block_avx2(const Cache* keys, int64_t head_dim, int64_t count, int64_t depth,
                                                float* panel) {
  __m256 block[8];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 8; ++i) {
    const Cache* key = keys + i * head_dim;
    block[i] = i >= count ? _mm256_setzero_ps() : depth >= 8 ? widen8(key) : widen_part8(key, depth);
  }
  transpose8(block);
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i < depth) _mm256_storeu_ps(panel + i * kBlockSlots, block[i]);
  }
}

template <class Cache>
POPTRANSFORMER_AVX2 void pack_keys_avx2(const Cache* keys, int64_t head_dim, int64_t count, float* panel) {
  for (int64_t j = 0; j < (count + 15) / 16 * 16; j += 8) {
    for (int64_t k = 0; k < head_dim; k += 8) {
      pack_block_avx2(keys + j * head_dim + k, head_dim, count - j, head_dim - k, panel + k * kBlockSlots + j);
    }
  }
}

template <class Cache>
POPTRANSFORMER_AVX2 void widen_rows_avx2(const Cache* values, int64_t head_dim, int64_t width, int64_t count,
                                         float* rows) {
  const int64_t whole = head_dim / 8 * 8;
  for (int64_t j = 0; j < count; ++j, values += head_dim, rows += width) {
    for (int64_t k = 0; k < whole; k += 8) _mm256_storeu_ps(rows + k, widen8(values + k));
    for (int64_t k = whole; k < width; k += 8) {
      const int64_t left = std::clamp<int64_t>(head_dim - k, 0, 7);
      _mm256_storeu_ps(rows + k, widen_part8(values + k, left));
    }
  }
}

}  // namespace attention
}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
