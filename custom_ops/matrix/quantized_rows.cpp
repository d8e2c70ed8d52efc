// SPDX-License-Identifier: Apache-2.0
#include "quantized_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace poptransformer {

namespace {

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

size_t quantized_rows_bytes(int64_t rows, int64_t padded) {
  const size_t codes = static_cast<size_t>(rows * padded), blocks = codes / 32;
  return aligned(codes) + aligned(blocks * sizeof(float)) + aligned(blocks * sizeof(int32_t));
}

QuantizedRows quantized_rows_at(void* memory, int64_t rows, int64_t padded) {
  const size_t codes = static_cast<size_t>(rows * padded), blocks = codes / 32;
  char* place = static_cast<char*>(memory);
  QuantizedRows out;
  out.codes = reinterpret_cast<int8_t*>(place);
  out.scales = reinterpret_cast<float*>(place + aligned(codes));
  out.sums = reinterpret_cast<int32_t*>(place + aligned(codes) + aligned(blocks * sizeof(float)));
  out.padded = padded;
  return out;
}

void quantize_rows(const float* x, int64_t ld, int64_t depth, Range range, const QuantizedRows& out) {
  const int64_t blocks = out.padded / 32;
  for (int64_t row = range.begin; row < range.end; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      const float* source = x + row * ld + b * 32;
      int8_t* codes = out.codes + row * out.padded + b * 32;
      const int64_t count = std::clamp<int64_t>(depth - b * 32, 0, 32);
      float greatest = 0.0f;
      bool finite = true;
      for (int64_t i = 0; i < count; ++i) {
        greatest = std::max(greatest, std::fabs(source[i]));
        finite &= std::isfinite(source[i]);
      }
      const float inverse = greatest > 0.0f && finite ? 127.0f / greatest : 0.0f;
      int32_t sum = 0;
      for (int64_t i = 0; i < 32; ++i) {
        codes[i] = i < count && finite ? static_cast<int8_t>(std::nearbyint(source[i] * inverse)) : 0;
        sum += codes[i];
      }
      out.scales[row * blocks + b] = finite ? greatest / 127.0f : std::numeric_limits<float>::quiet_NaN();
      out.sums[row * blocks + b] = sum;
    }
  }
}

}  // namespace poptransformer
