// SPDX-License-Identifier: Apache-2.0
// Cached values as vectors of fp32, AVX-512: sixteen at a time, divided by kUnit (cache_value.h).
#pragma once

#include "vectors_avx2.h"

#if POPTRANSFORMER_X86

namespace poptransformer {
namespace attention {

POPTRANSFORMER_AVX512 inline __m512 widen16(const float* values) { return _mm512_loadu_ps(values); }

POPTRANSFORMER_AVX512 inline __m512 widen16(const Float16* values) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
}

POPTRANSFORMER_AVX512 inline __m512 widen16(const Float8* values) {
  return _mm512_cvtph_ps(half_from_codes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values))));
}

/// The values whose bit is set in `mask`, zero for the others, which are not read.
POPTRANSFORMER_AVX512 inline __m512 widen16(__mmask16 mask, const float* values) {
  return _mm512_maskz_loadu_ps(mask, values);
}

POPTRANSFORMER_AVX512 inline __m512 widen16(__mmask16 mask, const Float16* values) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, values));
}

POPTRANSFORMER_AVX512 inline __m512 widen16(__mmask16 mask, const Float8* values) {
  return _mm512_cvtph_ps(half_from_codes(_mm_maskz_loadu_epi8(mask, values)));
}

/// A mask of the first `count` of sixteen.
POPTRANSFORMER_AVX512 inline __mmask16 first_of16(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>((1u << std::max<int64_t>(count, 0)) - 1u);
}

template <class Cache>
POPTRANSFORMER_AVX512 void narrow_row_avx512(const float* from, int64_t count, Cache* to) {
  narrow_row(from, count, to);
}

template <>
POPTRANSFORMER_AVX512 inline void narrow_row_avx512(const float* from, int64_t count, Float16* to) {
  narrow_row_avx2(from, count, to);
}

}  // namespace attention
}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
