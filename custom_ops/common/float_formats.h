// SPDX-License-Identifier: Apache-2.0
// 16-bit floating point as it lies in memory, and its conversion to fp32 (all exact).
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace poptransformer {

/// IEEE half precision (ONNX FLOAT16).
struct Float16 {
  uint16_t bits;
};

/// Upper half of an fp32 (ONNX BFLOAT16).
struct BFloat16 {
  uint16_t bits;
};

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) { return float_from_bits(static_cast<uint32_t>(value.bits) << 16); }

/// Branch-free, so that loops over it vectorise: exponent and mantissa move to fp32's places, and one multiplication
/// by 2^112 corrects the exponent's bias, subnormals included.
inline float to_float(Float16 value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  float scaled = float_from_bits(magnitude) * 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &scaled, sizeof bits);
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // Infinity and NaN keep their exponent.
  return float_from_bits(bits | special | sign);
}

#if POPTRANSFORMER_X86
/// Eight values as fp32.
POPTRANSFORMER_AVX2 inline __m256 load8(const float* values) { return _mm256_loadu_ps(values); }

POPTRANSFORMER_AVX2 inline __m256 load8(const Float16* values) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}

POPTRANSFORMER_AVX2 inline __m256 load8(const BFloat16* values) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

/// The first `count` (< 8) of eight values as fp32, the others zero; reads nothing behind them.
template <class Value>
POPTRANSFORMER_AVX2 inline __m256 load_part(const Value* values, int64_t count) {
  Value part[8] = {};
  std::memcpy(part, values, static_cast<size_t>(count) * sizeof(Value));
  return load8(part);
}

/// Sixteen values as fp32.
POPTRANSFORMER_AVX512 inline __m512 load16(const float* values) { return _mm512_loadu_ps(values); }

POPTRANSFORMER_AVX512 inline __m512 load16(const Float16* values) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
}

POPTRANSFORMER_AVX512 inline __m512 load16(const BFloat16* values) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/// The first `count` (< 16) of sixteen values as fp32, the others zero; reads nothing behind them.
template <class Value>
POPTRANSFORMER_AVX512 inline __m512 load_part16(const Value* values, int64_t count) {
  Value part[16] = {};
  std::memcpy(part, values, static_cast<size_t>(count) * sizeof(Value));
  return load16(part);
}
#endif

}  // namespace poptransformer
