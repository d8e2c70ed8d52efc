// SPDX-License-Identifier: Apache-2.0
// fp8 codes as the loops over packed weights read them: by a table, or as vectors. What they mean is in
// common/float8.h.
#pragma once

#include <cstdint>

#include "../common/float8.h"
#include "../common/simd.h"
#include "format.h"

namespace poptransformer {

constexpr bool is_fnuz(Format format) { return format == Format::kE4M3FNUZ || format == Format::kE5M2FNUZ; }

/// The values of all codes of a format.
struct Float8Values {
  float of[256];

  static const Float8Values& get(Format format) {
    static const Float8Values all[] = {Float8Values(Format::kE4M3FN), Float8Values(Format::kE5M2),
                                       Float8Values(Format::kE4M3FNUZ), Float8Values(Format::kE5M2FNUZ)};
    return all[static_cast<int>(format) - static_cast<int>(Format::kE4M3FN)];
  }

 private:
  explicit Float8Values(Format format) {
    const Float8Format& float8 = kFloat8Formats[static_cast<int>(format) - static_cast<int>(Format::kE4M3FN)];
    for (int code = 0; code < 256; ++code) of[code] = float8.decode(static_cast<uint8_t>(code));
  }
};

/// The vector code turns a code into a half (fp16) of the same bits, exponent and mantissa each in its place, and has
/// the processor widen that: subnormals are exact and take no longer. As the biases differ, the value is this many
/// times the half's.
constexpr float float8_rescale(Format format) {
  return format == Format::kE4M3FN ? 0x1p8f : format == Format::kE4M3FNUZ ? 0x1p7f : 1.0f;
}

#if POPTRANSFORMER_X86
/// Sixteen halves, value / float8_rescale, of the codes in the upper bytes of 16-bit words. NaN and, except for E5M2,
/// codes without a finite value give some number.
template <Format kFormat>
POPTRANSFORMER_AVX2 inline __m256i halves_of(__m256i words) {
  if constexpr (kFormat == Format::kE5M2) return _mm256_and_si256(words, _mm256_set1_epi16(-0x100));
  if constexpr (kFormat == Format::kE5M2FNUZ) {
    // One less exponent; codes of the first two exponents become subnormal halves. The greater of both is right.
    const __m256i magnitude = _mm256_and_si256(words, _mm256_set1_epi16(0x7f00));
    const __m256i normal = _mm256_sub_epi16(magnitude, _mm256_set1_epi16(0x400));
    const __m256i half = _mm256_max_epi16(_mm256_srli_epi16(magnitude, 1), normal);
    return _mm256_or_si256(half, _mm256_and_si256(words, _mm256_set1_epi16(-0x8000)));
  }
  // Shifted as a signed number, so that the sign stays where it is, with a copy that the mask removes.
  return _mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16(-0x4080));
}

/// The halves of the codes in the even bytes, and in the odd bytes.
template <Format kFormat>
POPTRANSFORMER_AVX2 inline __m256i even_halves(__m256i codes) {
  const __m256i words = _mm256_slli_epi16(codes, 8);
  return kFormat == Format::kE5M2 ? words : halves_of<kFormat>(words);
}

template <Format kFormat>
POPTRANSFORMER_AVX2 inline __m256i odd_halves(__m256i codes) {
  return halves_of<kFormat>(codes);
}

/// Gathers what tells whether a code is NaN: to begin with, `marks` are zero. E5M2's NaN are NaN of fp16 too and need
/// no marks.
template <Format kFormat>
POPTRANSFORMER_AVX2 inline __m256i mark_nan(__m256i marks, __m256i codes) {
  if constexpr (kFormat == Format::kE5M2) return marks;
  if constexpr (is_fnuz(kFormat)) return _mm256_min_epi8(marks, codes);
  return _mm256_max_epu8(marks, _mm256_or_si256(codes, _mm256_set1_epi8(-0x80)));
}

/// Bytes of all ones where `marks` tell of a NaN.
template <Format kFormat>
POPTRANSFORMER_AVX2 inline __m256i nan_marks(__m256i marks) {
  if constexpr (kFormat == Format::kE5M2) return _mm256_setzero_si256();
  return _mm256_cmpeq_epi8(marks, _mm256_set1_epi8(is_fnuz(kFormat) ? -0x80 : -1));
}
#endif

}  // namespace poptransformer
