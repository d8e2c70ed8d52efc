// SPDX-License-Identifier: Apache-2.0
// Products with a weight, whatever format it is stored in: y = x @ weight.T with fp32 results.
//
// An op describes its weight as a `Matrix` and its input rows as an `Input`, and calls `multiply` for the rectangles of
// the output that `share_product` gives to the parts of a job on the thread pool. `multiply` runs on the calling thread.
#pragma once

#include <cstdint>

#include "../common/thread_pool.h"
#include "format.h"
#include "quantized_rows.h"

namespace poptransformer {

/// Rows of a tile of a packed weight, and what every column range is a multiple of, the matrix's end apart.
constexpr int64_t kTile = 16;

/// A weight [columns, depth]: float formats row-major as checkpoints hold it, the others packed in tiles of 16 rows.
struct Matrix {
  Format format = Format::kFloat32;
  int64_t columns = 0;              ///< Columns of y: N.
  int64_t depth = 0;                ///< Columns of x: K.
  const void* data = nullptr;       ///< Row-major values, or codes [tiles, chunks, ...] (docs/quantization.md).
  int64_t block = 0;                ///< Packed: columns per scale, a multiple of 32.
  int64_t padded = 0;               ///< Packed: the depth rounded up to a multiple of `block`.
  const void* scales = nullptr;     ///< Packed: [tiles, padded / block, 16], fp16 for integers, fp32 for fp8.
  const void* offsets = nullptr;    ///< int4, may be null: fp16, shaped like the scales.

  int64_t tiles() const { return (columns + kTile - 1) / kTile; }
  /// Bytes that one pass over the weight reads.
  int64_t bytes() const;
};

/// The input rows [rows, depth] of a product. Integer formats read `quantized`, the others `x`.
struct Input {
  const float* x = nullptr;
  int64_t ld = 0;                   ///< Values from one row of x to the next.
  int64_t rows = 0;
  int64_t depth = 0;
  QuantizedRows quantized;          ///< Filled by `quantize_rows` where `takes_quantized_rows(format)`.
};

/// A rectangle of the output; `columns` begins at a multiple of kTile and ends at one or at the last column.
struct Block {
  Range rows;
  Range columns;
};

/// y[r][c] = x[rows.begin + r] . weight[columns.begin + c]; `ldy` values from one row of y to the next. Uses this
/// thread's Scratch::kOwn.
void multiply(const Matrix& matrix, const Input& input, const Block& block, float* y, int64_t ldy);

/// The part's share of a rows x columns output. Ranges of columns for few rows (each weight is read by one thread); for
/// many rows a grid. Parts that follow each other need not lie side by side. Shares may be empty.
Block share_product(int64_t rows, int64_t columns, int part, int parts);

/// The weight as threads ask for it ahead of a product with few rows.
Upcoming::Weight upcoming_weight(const Matrix& matrix);

// ---- one implementation per family of formats, called by `multiply` --------------------------------------------------

void multiply_floats(const Matrix& matrix, const Input& input, const Block& block, float* y, int64_t ldy);
void multiply_integers(const Matrix& matrix, const Input& input, const Block& block, float* y, int64_t ldy);
void multiply_float8(const Matrix& matrix, const Input& input, const Block& block, float* y, int64_t ldy);

}  // namespace poptransformer
