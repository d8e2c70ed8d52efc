// SPDX-License-Identifier: Apache-2.0
// exp for softmax weights and activations, branch-free so that loops over it vectorise.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "float_formats.h"

namespace poptransformer {

inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

/// The two factors of exp(x) for x <= 0: exp(x) = power * (1 + fraction), power = 2^n, n = round(x / ln 2).
///
/// The fraction is exp(r) - 1 for |r| <= 0.35, where the Taylor series of degree 7 is exact to 6e-9. Below -87.7 (half
/// a power of two under fp32's normal numbers) and for -infinity the power is 0.
struct ExpFactors {
  float power, fraction;
};

__attribute__((always_inline)) inline ExpFactors exp_factors(float x) {
  constexpr uint32_t kLowest = 0xc2b00000u;  // -88: has n = -127, for which the bits of 2^n are those of 0.
  constexpr float kToInteger = 0x1.8p23f;    // Adding it rounds to an integer, left in the low bits of the sum.
  constexpr float kLog2E = 0x1.715476p0f;
  constexpr float kLn2High = 0x1.62e4p-1f;  // Few bits: n * kLn2High is exact.
  constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  // max(x, -88): bits of negative numbers grow with their magnitude. GCC makes a branch of a comparison of floats.
  const float inside = float_from_bits(std::min(bits_from_float(x), kLowest));
  const float shifted = inside * kLog2E + kToInteger;
  const float n = shifted - kToInteger;
  const float r = (inside - n * kLn2High) - n * kLn2Low;
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  return {float_from_bits((bits_from_float(shifted) << 23) + 0x3f800000u), sum * r};
}

/// exp(x) for x <= 0, within 1 ulp; 0 below -87.7.
__attribute__((always_inline)) inline float exp_nonpositive(float x) {
  const ExpFactors factors = exp_factors(x);
  return (factors.fraction + 1.0f) * factors.power;
}

/// exp(x) - 1 for x <= 0 with an error relative to the result, however small x is.
__attribute__((always_inline)) inline float expm1_nonpositive(float x) {
  const ExpFactors factors = exp_factors(x);
  return factors.power * factors.fraction + (factors.power - 1.0f);
}

}  // namespace poptransformer
