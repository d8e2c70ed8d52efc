// SPDX-License-Identifier: Apache-2.0
// AVX2 version of float8_kernels.h; included by it.
#pragma once

#include <cstring>

#include "float8_kernels.h"

#if POPTRANSFORMER_X86

namespace poptransformer {

POPTRANSFORMER_AVX2 inline __m256 lower_floats(__m256i halves) {
  return _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
}

POPTRANSFORMER_AVX2 inline __m256 upper_floats(__m256i halves) {
  return _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
}

/// Two neighbouring inputs, four times.
POPTRANSFORMER_AVX2 inline __m256 broadcast_pair4(const float* x) {
  int64_t pair;
  std::memcpy(&pair, x, sizeof pair);
  return _mm256_castsi256_ps(_mm256_set1_epi64x(pair));
}

/// Four rows' values, each twice.
POPTRANSFORMER_AVX2 inline __m256 load_twice4(const float* values) {
  const __m256i places = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(values)), places);
}

/// Adds the products at columns [k, k + 4) of kTiles tiles, kHalves times eight of their rows, and kInputs inputs. A
/// vector of sums holds four rows, each in two parts: that of the first and that of the second column of the pairs (0 2)
/// and (1 3). @returns the marks of `mark_nan`.
template <Format kFormat, int kTiles, int kHalves, int kInputs>
POPTRANSFORMER_AVX2 inline __m256i float8_step_avx2(const uint8_t* const* codes, const float* x, int64_t ldx, int64_t k,
                                                    __m256i marks, __m256* sums) {
  POPTRANSFORMER_UNROLL
  for (int s = 0; s < kTiles; ++s) {
    POPTRANSFORMER_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes[s] + k * kTile + 32 * h));
      marks = mark_nan<kFormat>(marks, c);
      const __m256i even = even_halves<kFormat>(c), odd = odd_halves<kFormat>(c);
      const __m256 w[4] = {lower_floats(even), upper_floats(even), lower_floats(odd), upper_floats(odd)};
      POPTRANSFORMER_UNROLL
      for (int m = 0; m < kInputs; ++m) {
        __m256* sum = sums + ((s * kInputs + m) * kHalves + h) * 2;
        const __m256 x_even = broadcast_pair4(x + m * ldx + k), x_odd = broadcast_pair4(x + m * ldx + k + 2);
        sum[0] = _mm256_fmadd_ps(w[2], x_odd, _mm256_fmadd_ps(w[0], x_even, sum[0]));
        sum[1] = _mm256_fmadd_ps(w[3], x_odd, _mm256_fmadd_ps(w[1], x_even, sum[1]));
      }
    }
  }
  return marks;
}

/// Tiles [tile, tile + kTiles), their rows from 8 * half on. @returns whether a code was NaN.
template <Format kFormat, int kTiles, int kHalves, int kInputs>
POPTRANSFORMER_AVX2 bool float8_rows_avx2(const Float8Arguments& t, int tile, int half) {
  constexpr int kVectors = 2 * kHalves, kSums = kTiles * kInputs * kVectors;
  const __m256 rescale = _mm256_set1_ps(float8_rescale(kFormat));
  const uint8_t* codes[kTiles];
  POPTRANSFORMER_UNROLL
  for (int s = 0; s < kTiles; ++s) codes[s] = t.codes[tile + s] + 32 * half;
  const float* x = t.x;
  const int64_t ldx = t.padded;
  __m256 totals[kSums];
  for (__m256& total : totals) total = _mm256_setzero_ps();
  __m256i marks = _mm256_setzero_si256();
  for (int64_t b = 0; b < t.padded / t.block; ++b) {
    __m256 sums[kSums];
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kSums; ++i) sums[i] = _mm256_setzero_ps();
    for (int64_t k = b * t.block; k < (b + 1) * t.block; k += 4) {
      marks = float8_step_avx2<kFormat, kTiles, kHalves, kInputs>(codes, x, ldx, k, marks, sums);
    }
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kSums; ++i) {
      const float* scales = t.scales[tile + i / (kInputs * kVectors)] + b * kTile + 8 * half + i % kVectors * 4;
      totals[i] = _mm256_fmadd_ps(_mm256_mul_ps(load_twice4(scales), rescale), sums[i], totals[i]);
    }
  }
  for (int i = 0; i < kSums; i += 2) {
    // Adding neighbours leaves the rows 0 1 4 5 and 2 3 6 7.
    const __m256 rows = _mm256_hadd_ps(totals[i], totals[i + 1]);
    const __m256 sorted = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(rows), 0xd8));
    const int s = tile + i / (kInputs * kVectors), m = i / kVectors % kInputs;
    _mm256_storeu_ps(t.out[m] + s * kTile + 8 * half + i % kVectors * 4, sorted);
  }
  const __m256i nan = nan_marks<kFormat>(marks);
  return !_mm256_testz_si256(nan, nan);
}

/// 8 sums in all cases: both tiles at once for one input, tile by tile for two, half by half for more.
template <Format kFormat>
void float8_dot_avx2(int inputs, const Float8Arguments& t) {
  bool has_nan = inputs == 1 && float8_rows_avx2<kFormat, 2, 2, 1>(t, 0, 0);
  for (int tile = 0; inputs > 1 && tile < kFloat8Tiles; ++tile) {
    if (inputs == 2) {
      has_nan |= float8_rows_avx2<kFormat, 1, 2, 2>(t, tile, 0);
      continue;
    }
    const auto dot = inputs == 3 ? float8_rows_avx2<kFormat, 1, 1, 3> : float8_rows_avx2<kFormat, 1, 1, 4>;
    has_nan |= dot(t, tile, 0) | dot(t, tile, 1);
  }
  if (has_nan) spoil_nan_rows(kFormat, inputs, t);
}

/// `halves` with fp16's NaN where the codes, in the same bytes as for `halves`, are NaN.
template <Format kFormat>
POPTRANSFORMER_AVX2 inline __m256i with_nan(__m256i halves) {
  if constexpr (kFormat == Format::kE5M2) return halves;
  // fnuz: a negative zero. E4M3FN: the magnitude 0x7f.
  const __m256i bits = is_fnuz(kFormat) ? halves : _mm256_and_si256(halves, _mm256_set1_epi16(0x7fff));
  const __m256i nan = _mm256_cmpeq_epi16(bits, _mm256_set1_epi16(is_fnuz(kFormat) ? -0x8000 : 0x3f80));
  return _mm256_or_si256(halves, _mm256_and_si256(nan, _mm256_set1_epi16(0x7fff)));
}

/// Writes columns (0 2) or (1 3) of eight rows; the halves lie row by row in pairs.
POPTRANSFORMER_AVX2 inline void store_columns(__m256i halves, __m256 scales, float* panel, int64_t ld_panel) {
  const __m256 lower = lower_floats(halves), upper = upper_floats(halves);
  const __m256 columns[2] = {_mm256_shuffle_ps(lower, upper, 0x88), _mm256_shuffle_ps(lower, upper, 0xdd)};
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m256 sorted = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(columns[i]), 0xd8));
    _mm256_storeu_ps(panel + 2 * i * ld_panel, _mm256_mul_ps(sorted, scales));
  }
}

template <Format kFormat>
POPTRANSFORMER_AVX2 void float8_pack_avx2(const Float8PackArguments& t) {
  const __m256 rescale = _mm256_set1_ps(float8_rescale(kFormat));
  for (int64_t k = 0; k < t.depth; k += 4) {
    POPTRANSFORMER_UNROLL
    for (int h = 0; h < 2; ++h) {
      const float* scales = t.scales + (t.first + k) / t.block * kTile + 8 * h;
      const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(scales), rescale);
      const uint8_t* codes = t.codes + (t.first + k) * kTile + 32 * h;
      const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
      float* panel = t.panel + k * t.ld_panel + 8 * h;
      store_columns(with_nan<kFormat>(even_halves<kFormat>(c)), scaled, panel, t.ld_panel);
      store_columns(with_nan<kFormat>(odd_halves<kFormat>(c)), scaled, panel + t.ld_panel, t.ld_panel);
    }
  }
}

}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
