// SPDX-License-Identifier: Apache-2.0
// The two passes of a softmax over a row: its maximum, and exp(x - maximum) with the sum. A NaN in the row makes the
// maximum or the sum NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "exp.h"
#include "simd.h"

namespace poptransformer {

/// The greatest of n >= 1 values; NaN if one is.
inline float row_max_portable(const float* x, int64_t n) {
  float greatest = x[0];
  bool ordered = true;
  for (int64_t i = 0; i < n; ++i) {
    greatest = x[i] > greatest ? x[i] : greatest;
    ordered &= x[i] == x[i];
  }
  return ordered ? greatest : std::numeric_limits<float>::quiet_NaN();
}

/// x[i] = exp(x[i] - shift), for shift no less than any x[i]. @returns the sum.
inline float row_exp_portable(float* x, int64_t n, float shift) {
  constexpr int kLanes = 8;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      x[i + lane] = exp_nonpositive(x[i + lane] - shift);
      lanes[lane] += x[i + lane];
    }
  }
  float sum = 0.0f;
  for (float lane : lanes) sum += lane;
  for (; i < n; ++i) sum += x[i] = exp_nonpositive(x[i] - shift);
  return sum;
}

#if POPTRANSFORMER_X86
/// exp_nonpositive of exp.h for eight values, but NaN stays NaN.
POPTRANSFORMER_AVX2 inline __m256 exp_nonpositive_avx2(__m256 x) {
  // Below this, 2^n leaves fp32's normal numbers. In this order of operands max passes a NaN of x on.
  const __m256 least = _mm256_set1_ps(-87.336544f);
  const __m256 inside = _mm256_max_ps(least, x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(inside, _mm256_set1_ps(0x1.715476p0f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), inside);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  const float taylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  __m256 sum = _mm256_set1_ps(1.0f / 5040);
  POPTRANSFORMER_UNROLL
  for (float coefficient : taylor) sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(coefficient));
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  const __m256 result = _mm256_mul_ps(sum, _mm256_castsi256_ps(exponent));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, least, _CMP_LT_OQ), result);
}

/// The first `count` of eight values; -infinity, whose exponential is zero, for the others.
POPTRANSFORMER_AVX2 inline __m256 load_scores(const float* x, int64_t count) {
  if (count >= 8) return _mm256_loadu_ps(x);
  float part[8];
  std::fill_n(part, 8, -std::numeric_limits<float>::infinity());
  std::copy_n(x, count, part);
  return _mm256_loadu_ps(part);
}

POPTRANSFORMER_AVX2 inline float row_max_avx2(const float* x, int64_t n) {
  __m256 greatest = load_scores(x, n);
  for (int64_t i = 8; i < n; i += 8) greatest = _mm256_max_ps(greatest, load_scores(x + i, n - i));
  float lanes[8];
  _mm256_storeu_ps(lanes, greatest);
  return *std::max_element(lanes, lanes + 8);
}

POPTRANSFORMER_AVX2 inline float row_exp_avx2(float* x, int64_t n, float shift) {
  const __m256 shifts = _mm256_set1_ps(shift);
  __m256 sums = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 value = exp_nonpositive_avx2(_mm256_sub_ps(_mm256_loadu_ps(x + i), shifts));
    _mm256_storeu_ps(x + i, value);
    sums = _mm256_add_ps(sums, value);
  }
  float lanes[8], sum = 0.0f;
  if (i < n) {
    const __m256 value = exp_nonpositive_avx2(_mm256_sub_ps(load_scores(x + i, n - i), shifts));
    _mm256_storeu_ps(lanes, value);
    std::copy_n(lanes, n - i, x + i);
    sums = _mm256_add_ps(sums, value);
  }
  _mm256_storeu_ps(lanes, sums);
  for (float lane : lanes) sum += lane;
  return sum;
}
#endif

/// Both passes, chosen for this processor.
struct Softmax {
  decltype(&row_max_portable) row_max;
  decltype(&row_exp_portable) row_exp;

  static const Softmax& pick() {
    static const Softmax picked{POPTRANSFORMER_PICK(row_max), POPTRANSFORMER_PICK(row_exp)};
    return picked;
  }
};

}  // namespace poptransformer
