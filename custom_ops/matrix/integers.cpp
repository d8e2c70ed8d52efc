// SPDX-License-Identifier: Apache-2.0
// int4 and int8 weights times int8 activations: exact integer sums per 32 columns, scaled and added in fp32.
#include <algorithm>
#include <cstdint>

#include "../common/float_formats.h"
#include "matrix.h"

namespace poptransformer {
namespace {

/// The code of a weight's row `n`, column `k` as it is stored.
int32_t code_at(const Matrix& m, int64_t n, int64_t k) {
  const int64_t chunk = n / kTile * (m.padded / kChunk) + k / kChunk, r = n % kTile, inside = k % kChunk;
  const auto* codes = static_cast<const uint8_t*>(m.data);
  if (m.format == Format::kInt8) return codes[chunk * 512 + (inside / 4) * 64 + r * 4 + inside % 4];
  const uint8_t pair = codes[chunk * 256 + (inside % 16 / 4) * 64 + r * 4 + inside % 4];
  return inside < 16 ? pair & 15 : pair >> 4;
}

}  // namespace

void multiply_integers(const Matrix& m, const Input& input, const Block& block, float* y, int64_t ldy) {
  const QuantizedRows& x = input.quantized;
  const auto* scales = static_cast<const Float16*>(m.scales);
  const auto* offsets = static_cast<const Float16*>(m.offsets);
  const int64_t chunks = m.padded / kChunk, blocks = m.padded / m.block;
  const int32_t zero = m.format == Format::kInt8 ? 128 : offsets ? 0 : 8;
  for (int64_t row = block.rows.begin; row < block.rows.end; ++row) {
    for (int64_t n = block.columns.begin; n < block.columns.end; ++n) {
      float total = 0.0f;
      for (int64_t c = 0; c < chunks; ++c) {
        const int8_t* codes = x.codes + row * x.padded + c * kChunk;
        int32_t sum = 0;
        for (int64_t i = 0; i < kChunk; ++i) sum += (code_at(m, n, c * kChunk + i) - zero) * codes[i];
        const int64_t scale = (n / kTile * blocks + c * kChunk / m.block) * kTile + n % kTile;
        float value = to_float(scales[scale]) * static_cast<float>(sum);
        if (offsets) value += to_float(offsets[scale]) * static_cast<float>(x.sums[row * chunks + c]);
        total += value * x.scales[row * chunks + c];
      }
      y[(row - block.rows.begin) * ldy + n - block.columns.begin] = total;
    }
  }
}

}  // namespace poptransformer
