// SPDX-License-Identifier: Apache-2.0
// AVX2 and AVX-512 versions of softmax.h.
#pragma once

#include "softmax.h"
#include "vectors_avx512.h"

#if POPTRANSFORMER_X86

namespace poptransformer {
namespace attention {

constexpr float kLeastPower = -126.0f;  ///< Below this, 2^n leaves fp32's normal numbers; the vectors give 0 there.

/// exp2_nonpositive for eight values, but NaN stays NaN.
POPTRANSFORMER_AVX2 inline __m256 exp2_nonpositive_avx2(__m256 x) {
  const __m256 least = _mm256_set1_ps(kLeastPower);
  const __m256 inside = _mm256_max_ps(least, x);  // In this order of operands max passes a NaN of x on.
  const __m256 n = _mm256_round_ps(inside, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 r = _mm256_sub_ps(inside, n);
  __m256 sum = _mm256_set1_ps(kPower[0]);
  POPTRANSFORMER_UNROLL
  for (int i = 1; i < 6; ++i) sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(kPower[i]));
  sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  const __m256 result = _mm256_mul_ps(sum, _mm256_castsi256_ps(exponent));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, least, _CMP_LT_OQ), result);
}

/// The first `count` of eight scores; -infinity, whose power is zero, for the others.
POPTRANSFORMER_AVX2 inline __m256 load_scores8(const float* x, int64_t count) {
  if (count >= 8) return _mm256_loadu_ps(x);
  float part[8];
  std::fill_n(part, 8, kMinusInfinity);
  std::copy_n(x, count, part);
  return _mm256_loadu_ps(part);
}

struct PassesAvx2 {
  POPTRANSFORMER_AVX2 static float greatest(const float* x, int64_t n) {
    __m256 most = load_scores8(x, n);
    for (int64_t i = 8; i < n; i += 8) most = _mm256_max_ps(most, load_scores8(x + i, n - i));
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }

  POPTRANSFORMER_AVX2 static float powers(float* x, int64_t n, float shift) {
    const __m256 shifts = _mm256_set1_ps(shift);
    __m256 sums = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m256 value = exp2_nonpositive_avx2(_mm256_sub_ps(_mm256_loadu_ps(x + i), shifts));
      _mm256_storeu_ps(x + i, value);
      sums = _mm256_add_ps(sums, value);
    }
    if (i < n) {
      float part[8];
      const __m256 value = exp2_nonpositive_avx2(_mm256_sub_ps(load_scores8(x + i, n - i), shifts));
      _mm256_storeu_ps(part, value);
      std::copy_n(part, n - i, x + i);
      sums = _mm256_add_ps(sums, value);
    }
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
};

POPTRANSFORMER_AVX2 inline void soften_avx2(const SoftenArguments& t) { soften_rows<PassesAvx2>(t); }

/// exp2_nonpositive for sixteen values, but NaN stays NaN.
POPTRANSFORMER_AVX512 inline __m512 exp2_nonpositive_avx512(__m512 x) {
  const __m512 least = _mm512_set1_ps(kLeastPower), to_integer = _mm512_set1_ps(kToInteger);
  const __m512 inside = _mm512_max_ps(least, x);  // In this order of operands max passes a NaN of x on.
  const __m512 shifted = _mm512_add_ps(inside, to_integer);
  const __m512 r = _mm512_sub_ps(inside, _mm512_sub_ps(shifted, to_integer));
  __m512 sum = _mm512_set1_ps(kPower[0]);
  POPTRANSFORMER_UNROLL
  for (int i = 1; i < 6; ++i) sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(kPower[i]));
  sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f));
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  const __mmask16 normal = _mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ);
  return _mm512_castsi512_ps(_mm512_maskz_add_epi32(normal, _mm512_castps_si512(sum), exponent));
}

struct PassesAvx512 {
  /// Of sixteen scores from x + i on those before x + n; -infinity, whose power is zero, for the others.
  POPTRANSFORMER_AVX512 static __m512 load(const float* x, int64_t i, int64_t n) {
    const __m512 minus_infinity = _mm512_set1_ps(kMinusInfinity);
    return _mm512_mask_loadu_ps(minus_infinity, first_of16(n - i), x + i);
  }

  POPTRANSFORMER_AVX512 static float greatest(const float* x, int64_t n) {
    __m512 most = load(x, 0, n);
    for (int64_t i = 16; i < n; i += 16) most = _mm512_max_ps(most, load(x, i, n));
    return _mm512_reduce_max_ps(most);
  }

  POPTRANSFORMER_AVX512 static float powers(float* x, int64_t n, float shift) {
    const __m512 shifts = _mm512_set1_ps(shift);
    __m512 sums = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const __m512 value = exp2_nonpositive_avx512(_mm512_sub_ps(_mm512_loadu_ps(x + i), shifts));
      _mm512_storeu_ps(x + i, value);
      sums = _mm512_add_ps(sums, value);
    }
    if (i < n) {
      const __m512 value = exp2_nonpositive_avx512(_mm512_sub_ps(load(x, i, n), shifts));
      _mm512_mask_storeu_ps(x + i, first_of16(n - i), value);
      sums = _mm512_add_ps(sums, value);
    }
    return _mm512_reduce_add_ps(sums);
  }
};

POPTRANSFORMER_AVX512 inline void soften_avx512(const SoftenArguments& t) { soften_rows<PassesAvx512>(t); }

}  // namespace attention
}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
