// SPDX-License-Identifier: Apache-2.0
// AVX-512 version of the dots of float8_kernels.h; included by it.
#pragma once

#include "float8_avx2.h"

#if POPTRANSFORMER_X86

namespace poptransformer {

/// Eight rows' values, each twice.
POPTRANSFORMER_AVX512 inline __m512 load_twice8(const float* values) {
  const __m512i places = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_permutexvar_ps(places, _mm512_castps256_ps512(_mm256_loadu_ps(values)));
}

/// Two neighbouring inputs, eight times.
POPTRANSFORMER_AVX512 inline __m512 broadcast_pair8(const float* x) {
  int64_t pair;
  std::memcpy(&pair, x, sizeof pair);
  return _mm512_castsi512_ps(_mm512_set1_epi64(pair));
}

/// Adds neighbours: the sums of the pairs in `lower`, then of those in `upper`.
POPTRANSFORMER_AVX512 inline __m512 add_pairs(__m512 lower, __m512 upper) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return _mm512_add_ps(_mm512_permutex2var_ps(lower, even, upper), _mm512_permutex2var_ps(lower, odd, upper));
}

/// Adds the products at columns [k, k + 4) of kTiles tiles and kInputs inputs. As on AVX2, but a vector of sums holds
/// eight rows. @returns the marks of `mark_nan`.
template <Format kFormat, int kTiles, int kInputs>
POPTRANSFORMER_AVX512 inline __m256i float8_step_avx512(const uint8_t* const* codes, const float* x, int64_t ldx,
                                                        int64_t k, __m256i marks, __m512* sums) {
  POPTRANSFORMER_UNROLL
  for (int s = 0; s < kTiles; ++s) {
    POPTRANSFORMER_UNROLL
    for (int h = 0; h < 2; ++h) {
      const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes[s] + k * kTile + 32 * h));
      marks = mark_nan<kFormat>(marks, c);
      const __m512 even = _mm512_cvtph_ps(even_halves<kFormat>(c)), odd = _mm512_cvtph_ps(odd_halves<kFormat>(c));
      POPTRANSFORMER_UNROLL
      for (int m = 0; m < kInputs; ++m) {
        __m512& sum = sums[(s * kInputs + m) * 2 + h];
        sum = _mm512_fmadd_ps(even, broadcast_pair8(x + m * ldx + k), sum);
        sum = _mm512_fmadd_ps(odd, broadcast_pair8(x + m * ldx + k + 2), sum);
      }
    }
  }
  return marks;
}

/// Tiles [tile, tile + kTiles). @returns whether a code was NaN.
template <Format kFormat, int kTiles, int kInputs>
POPTRANSFORMER_AVX512 bool float8_rows_avx512(const Float8Arguments& t, int tile) {
  constexpr int kSums = kTiles * kInputs * 2;
  const __m512 rescale = _mm512_set1_ps(float8_rescale(kFormat));
  const uint8_t* codes[kTiles];
  POPTRANSFORMER_UNROLL
  for (int s = 0; s < kTiles; ++s) codes[s] = t.codes[tile + s];
  const float* x = t.x;
  const int64_t ldx = t.padded;
  __m512 totals[kSums];
  for (__m512& total : totals) total = _mm512_setzero_ps();
  __m256i marks = _mm256_setzero_si256();
  for (int64_t b = 0; b < t.padded / t.block; ++b) {
    __m512 sums[kSums];
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_setzero_ps();
    for (int64_t k = b * t.block; k < (b + 1) * t.block; k += 4) {
      marks = float8_step_avx512<kFormat, kTiles, kInputs>(codes, x, ldx, k, marks, sums);
    }
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kSums; ++i) {
      const float* scales = t.scales[tile + i / (kInputs * 2)] + b * kTile + i % 2 * 8;
      totals[i] = _mm512_fmadd_ps(_mm512_mul_ps(load_twice8(scales), rescale), sums[i], totals[i]);
    }
  }
  for (int i = 0; i < kSums; i += 2) {
    const int s = tile + i / (kInputs * 2), m = i / 2 % kInputs;
    _mm512_storeu_ps(t.out[m] + s * kTile, add_pairs(totals[i], totals[i + 1]));
  }
  const __m256i nan = nan_marks<kFormat>(marks);
  return !_mm256_testz_si256(nan, nan);
}

/// Both tiles at once for up to four inputs, tile by tile for more: 16 sums at most.
template <Format kFormat>
void float8_dot_avx512(int inputs, const Float8Arguments& t) {
  using Dot = bool (*)(const Float8Arguments&, int);
  static constexpr Dot kDots[] = {float8_rows_avx512<kFormat, 2, 1>, float8_rows_avx512<kFormat, 2, 2>,
                                  float8_rows_avx512<kFormat, 2, 3>, float8_rows_avx512<kFormat, 2, 4>,
                                  float8_rows_avx512<kFormat, 1, 5>, float8_rows_avx512<kFormat, 1, 6>,
                                  float8_rows_avx512<kFormat, 1, 7>, float8_rows_avx512<kFormat, 1, 8>};
  const Dot dot = kDots[inputs - 1];
  bool has_nan = dot(t, 0);
  if (inputs > 4) has_nan |= dot(t, 1);
  if (has_nan) spoil_nan_rows(kFormat, inputs, t);
}

/// panel rows k .. k + 3 of 16 rows
template <Format kFormat>
POPTRANSFORMER_AVX512 void float8_pack_avx512(const Float8PackArguments& t) {
  const __m512 rescale = _mm512_set1_ps(float8_rescale(kFormat));
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t k = 0; k < t.depth; k += 4) {
    const __m512 scales = _mm512_mul_ps(_mm512_loadu_ps(t.scales + (t.first + k) / t.block * kTile), rescale);
    const __m256i* codes = reinterpret_cast<const __m256i*>(t.codes + (t.first + k) * kTile);
    const __m256i lower = _mm256_loadu_si256(codes), upper = _mm256_loadu_si256(codes + 1);
    float* panel = t.panel + k * t.ld_panel;
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < 2; ++i) {
      const __m256i lower_halves = i == 0 ? even_halves<kFormat>(lower) : odd_halves<kFormat>(lower);
      const __m256i upper_halves = i == 0 ? even_halves<kFormat>(upper) : odd_halves<kFormat>(upper);
      const __m512 left = _mm512_cvtph_ps(with_nan<kFormat>(lower_halves));
      const __m512 right = _mm512_cvtph_ps(with_nan<kFormat>(upper_halves));
      _mm512_storeu_ps(panel + i * t.ld_panel, _mm512_mul_ps(_mm512_permutex2var_ps(left, even, right), scales));
      _mm512_storeu_ps(panel + (i + 2) * t.ld_panel, _mm512_mul_ps(_mm512_permutex2var_ps(left, odd, right), scales));
    }
  }
}

}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
