// SPDX-License-Identifier: Apache-2.0
// What Python asks of the encoder. The fields are those of `Request` in poptransformer/quantization/native_encoder.py, in
// the same order; poptransformer_encode_fields counts them, so that a library of another age is not called.
#pragma once

#include <cstdint>

namespace poptransformer {

/// Quantize `weight` and pack it (poptransformer/quantization/layout.py).
///
/// A format rounds to integers from `low` to `high` (`mantissa` < 0), or to floats of `mantissa` bits whose smallest
/// normal number is 2^min_exponent and whose largest is `high`.
struct EncodeRequest {
  const float* weight;      ///< [rows, depth], row-major.
  const float* importance;  ///< [depth], weighs squared errors; null: all alike.
  const float* candidates;  ///< Symmetric: factors of the base scale [count]. With offsets: pairs [count, 2], see tile.inl.
  const float* base;        ///< The base scale of all rows; null: from each block's values.
  uint8_t* codes;           ///< [tiles, chunks, 8 or 4, 16, 4].
  void* scales;             ///< [tiles, blocks, 16], fp16 or, for 8-bit floats, fp32.
  uint16_t* offsets;        ///< [tiles, blocks, 16], fp16; null: symmetric.
  double* row_errors;       ///< [rows], sums of squared errors.
  double* row_costs;        ///< [rows], the same weighed by importance.
  int64_t* row_saturated;   ///< [rows], values beyond the format's range.
  int64_t rows, depth;
  int64_t block;            ///< Columns per scale, a multiple of 32.
  int64_t count;            ///< Candidates.
  int64_t refits;           ///< Least-squares corrections of the best scale.
  int64_t bits, zero;       ///< Of a code; the code of value zero.
  int64_t mantissa, min_exponent;
  int64_t power_of_two;     ///< Scales are powers of two.
  int64_t signed_zero;      ///< 8-bit floats: there is a -0.
  float low, high;
  float overflow;           ///< The largest quotient that does not count as saturated.
  float end_divisor;        ///< The base scale is the block's largest magnitude through this; negative: keeps its sign.
};

constexpr int kEncodeFields = 25;

}  // namespace poptransformer
