// SPDX-License-Identifier: Apache-2.0
// What a key/value cache may hold: float, Float16, or Float8. One value at a time; vectors_avx2.h and vectors_avx512.h
// have the same for many.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../common/float_formats.h"

namespace poptransformer {
namespace attention {

/// A code of E4M3FN (ONNX FLOAT8E4M3FN): 4 bits exponent with bias 7, 3 bits mantissa, no infinity, NaN is 0x7f.
struct Float8 {
  uint8_t code;
};

/// `widen` gives a cached value divided by this. Keys and values are sums' factors, so one multiplication of the query
/// or of the result puts it right: E4M3FN's bits, moved to fp16's places, are the value with another exponent bias.
template <class Cache>
constexpr float kUnit = std::is_same_v<Cache, Float8> ? 256.0f : 1.0f;

inline float widen(float value) { return value; }

inline float widen(Float16 value) { return to_float(value); }

inline float widen(Float8 value) {
  const uint32_t magnitude = value.code & 0x7fu, sign = value.code & 0x80u;
  const uint32_t nan = magnitude == 0x7fu ? 0x7fffu : 0u;
  return to_float(Float16{static_cast<uint16_t>(sign << 8 | magnitude << 7 | nan)});
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// |x| in a format of `kMantissa` bits whose exponent is biased by 127 - kRebias, rounded to nearest even; `bits` are
/// those of |x|, not NaN. The results of numbers that are too large mean nothing.
///
/// Normal numbers are rounded as integers. For smaller ones fp32's own addition rounds: kBase's last bit is worth as
/// much as that of the format's subnormals.
template <int kMantissa, int kRebias>
__attribute__((always_inline)) inline uint32_t rounded_code(uint32_t bits) {
  constexpr int kDropped = 23 - kMantissa;
  constexpr uint32_t kNormal = static_cast<uint32_t>(kRebias + 1) << 23;  // The least normal number.
  constexpr uint32_t kBase = static_cast<uint32_t>(kRebias + 1 + kDropped) << 23;
  const uint32_t odd = bits >> kDropped & 1u;
  const uint32_t normal = ((bits + (1u << (kDropped - 1)) - 1u + odd) >> kDropped) -
                          (static_cast<uint32_t>(kRebias) << kMantissa);
  const uint32_t small = bits_of(float_from_bits(bits) + float_from_bits(kBase)) - kBase;
  return bits < kNormal ? small : normal;
}

constexpr uint32_t kNanBits = 0x7f800000u;  ///< Bits of |x| above these are NaNs.

/// To nearest even; infinity from 65520 on.
__attribute__((always_inline)) inline Float16 narrow_to(float x, Float16*) {
  const uint32_t bits = bits_of(x) & 0x7fffffffu, sign = bits_of(x) >> 16 & 0x8000u;
  const uint32_t code = std::min(rounded_code<10, 112>(std::min(bits, 0x47800000u)), 0x7c00u);
  return Float16{static_cast<uint16_t>(sign | (bits > kNanBits ? 0x7e00u : code))};
}

/// To nearest even; what is greater than 448, infinity too, becomes 448.
__attribute__((always_inline)) inline Float8 narrow_to(float x, Float8*) {
  const uint32_t bits = bits_of(x) & 0x7fffffffu, sign = bits_of(x) >> 24 & 0x80u;
  const uint32_t code = rounded_code<3, 120>(std::min(bits, 0x43e00000u));
  return Float8{static_cast<uint8_t>(bits > kNanBits ? 0x7fu : sign | code)};
}

__attribute__((always_inline)) inline float narrow_to(float x, float*) { return x; }

/// to[i] = the cached form of from[i].
template <class Cache>
__attribute__((always_inline)) inline void narrow_row(const float* __restrict from, int64_t count,
                                                      Cache* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = narrow_to(from[i], static_cast<Cache*>(nullptr));
}

template <class Cache>
void narrow_row_portable(const float* from, int64_t count, Cache* to) {
  narrow_row(from, count, to);
}

}  // namespace attention
}  // namespace poptransformer
