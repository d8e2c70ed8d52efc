// SPDX-License-Identifier: Apache-2.0
// Cached values as vectors of fp32, AVX2: eight at a time, divided by kUnit (cache_value.h).
#pragma once

#include "cache_value.h"

#if POPTRANSFORMER_X86

namespace poptransformer {
namespace attention {

/// fp16 bits of sixteen E4M3FN codes: the value divided by 256, NaN for NaN.
POPTRANSFORMER_AVX2 inline __m256i half_from_codes(__m128i codes) {
  // Sign-extended and shifted, a code has its sign in bits 15 and 14; only 15 may stay.
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7), _mm256_set1_epi16(~0x4000));
  const __m256i ones = _mm256_set1_epi16(-1);
  const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_or_si256(half, _mm256_set1_epi16(~0x3f80)), ones);
  return _mm256_or_si256(half, is_nan);
}

POPTRANSFORMER_AVX2 inline __m256 widen8(const float* values) { return _mm256_loadu_ps(values); }

POPTRANSFORMER_AVX2 inline __m256 widen8(const Float16* values) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}

POPTRANSFORMER_AVX2 inline __m256 widen8(const Float8* values) {
  const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
  return _mm256_cvtph_ps(_mm256_castsi256_si128(half_from_codes(codes)));
}

/// The first `count` (< 8) of eight values, the others zero; reads nothing behind them.
template <class Cache>
POPTRANSFORMER_AVX2 inline __m256 widen_part8(const Cache* values, int64_t count) {
  Cache part[8] = {};
  std::memcpy(part, values, static_cast<size_t>(count) * sizeof(Cache));
  return widen8(part);
}

template <class Cache>
POPTRANSFORMER_AVX2 void narrow_row_avx2(const float* from, int64_t count, Cache* to) {
  narrow_row(from, count, to);
}

template <>
POPTRANSFORMER_AVX2 inline void narrow_row_avx2(const float* from, int64_t count, Float16* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i bits = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), bits);
  }
  narrow_row(from + i, count - i, to + i);
}

}  // namespace attention
}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
