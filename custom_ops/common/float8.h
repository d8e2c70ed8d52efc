// SPDX-License-Identifier: Apache-2.0
// The 8-bit floats of ONNX: what their codes mean.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

namespace poptransformer {

/// One 8-bit float: sign, exponent, mantissa.
struct Float8Format {
  const char* name;
  int mantissa_bits;
  int bias;      // of the exponent
  float max;     // largest finite value
  bool is_fnuz;  // its only NaN is the code of -0, and it has no infinity
  bool is_ieee;  // the highest exponent means infinity and NaN

  /// Exponent of the smallest normal number.
  int min_exponent() const { return 1 - bias; }

  float decode(uint8_t code) const {
    const int magnitude = code & 0x7f;
    const int exponent = magnitude >> mantissa_bits;
    const int mantissa = magnitude & ((1 << mantissa_bits) - 1);
    if (is_special(code, exponent, mantissa)) {
      if (!is_ieee || mantissa != 0) return std::numeric_limits<float>::quiet_NaN();
      return code & 0x80 ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity();
    }
    const int hidden = exponent == 0 ? 0 : 1 << mantissa_bits;
    const int power = (exponent == 0 ? 1 : exponent) - bias - mantissa_bits;
    const float value = std::ldexp(static_cast<float>(hidden + mantissa), power);
    return code & 0x80 ? -value : value;
  }

 private:
  bool is_special(uint8_t code, int exponent, int mantissa) const {
    if (is_fnuz) return code == 0x80;
    if (is_ieee) return exponent == (0x7f >> mantissa_bits);
    return exponent == (0x7f >> mantissa_bits) && mantissa == (1 << mantissa_bits) - 1;
  }
};

/// In the order of `Format` in matrix/format.h.
constexpr Float8Format kFloat8Formats[] = {
    {"e4m3fn", 3, 7, 448.0f, false, false},
    {"e5m2", 2, 15, 57344.0f, false, true},
    {"e4m3fnuz", 3, 8, 240.0f, true, false},
    {"e5m2fnuz", 2, 16, 57344.0f, true, false},
};

/// The format of that name; null for another name.
inline const Float8Format* find_float8(const std::string& name) {
  for (const Float8Format& format : kFloat8Formats) {
    if (name == format.name) return &format;
  }
  return nullptr;
}

}  // namespace poptransformer
