// SPDX-License-Identifier: Apache-2.0
// Activations rounded to int8 for products with integer weights: symmetric, one fp32 scale per 32 columns.
//
// With s = max|x| / 127 over the 32 columns, code = round(x * (127 / max|x|)), ties to even, and |x - s * code| <= s / 2
// each but for fp32's own rounding. So a product with the weights w is off by no more than the sum, over the blocks, of
// s / 2 * sum|w|. Columns whose largest value is below 2^-100 count as zero.
//
// All versions give the same codes, scales and sums.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/thread_pool.h"

namespace poptransformer {

struct QuantizedRows {
  int8_t* codes = nullptr;   ///< [rows, padded]; zero from the depth on.
  float* scales = nullptr;   ///< [rows, padded / 32].
  int32_t* sums = nullptr;   ///< [rows, padded / 32]: sum of the 32 codes.
  float* totals = nullptr;   ///< [rows, padded / 32]: that times the scale.
  int64_t padded = 0;        ///< Depth rounded up to what the matrix wants; a multiple of 32.
};

/// Bytes of memory that `quantized_rows_at` needs.
size_t quantized_rows_bytes(int64_t rows, int64_t padded);

/// Lays out the arrays in `memory`, which is aligned to 64 bytes.
QuantizedRows quantized_rows_at(void* memory, int64_t rows, int64_t padded);

/// Rounds rows `range` of x. NaN and infinity make the row's results NaN.
void quantize_rows(const float* x, int64_t ld, int64_t depth, Range range, const QuantizedRows& out);

}  // namespace poptransformer
