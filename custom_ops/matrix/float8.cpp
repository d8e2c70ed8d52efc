// SPDX-License-Identifier: Apache-2.0
// fp8 weights times fp32 activations.
#include <cmath>
#include <cstdint>
#include <limits>

#include "matrix.h"

namespace poptransformer {
namespace {

/// Value of a code; all four formats have a sign, `exponent` bits and a mantissa.
float decode(Format format, uint8_t code) {
  const bool e5 = format == Format::kE5M2 || format == Format::kE5M2FNUZ;
  const bool fnuz = format == Format::kE4M3FNUZ || format == Format::kE5M2FNUZ;
  const int mantissa_bits = e5 ? 2 : 3, bias = (e5 ? 15 : 7) + (fnuz ? 1 : 0);
  const int magnitude = code & 0x7f, exponent = magnitude >> mantissa_bits;
  const int mantissa = magnitude & ((1 << mantissa_bits) - 1);
  const float sign = code & 0x80 ? -1.0f : 1.0f;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  if (fnuz && code == 0x80) return nan;
  if (format == Format::kE4M3FN && magnitude == 0x7f) return nan;
  if (format == Format::kE5M2 && exponent == 31) return mantissa ? nan : sign * std::numeric_limits<float>::infinity();
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits);
  return sign * std::ldexp(static_cast<float>(mantissa + (1 << mantissa_bits)), exponent - bias - mantissa_bits);
}

}  // namespace

void multiply_float8(const Matrix& m, const Input& input, const Block& block, float* y, int64_t ldy) {
  const auto* codes = static_cast<const uint8_t*>(m.data);
  const auto* scales = static_cast<const float*>(m.scales);
  const int64_t chunks = m.padded / kChunk, blocks = m.padded / m.block;
  float values[256];
  for (int code = 0; code < 256; ++code) values[code] = decode(m.format, static_cast<uint8_t>(code));
  for (int64_t row = block.rows.begin; row < block.rows.end; ++row) {
    for (int64_t n = block.columns.begin; n < block.columns.end; ++n) {
      float total = 0.0f;
      for (int64_t k = 0; k < m.depth; ++k) {
        const int64_t inside = k % kChunk, chunk = n / kTile * chunks + k / kChunk;
        const float value = values[codes[chunk * 512 + inside / 4 * 64 + n % kTile * 4 + inside % 4]];
        total += value * scales[(n / kTile * blocks + k / m.block) * kTile + n % kTile] * input.x[row * input.ld + k];
      }
      y[(row - block.rows.begin) * ldy + n - block.columns.begin] = total;
    }
  }
}

}  // namespace poptransformer
