// SPDX-License-Identifier: Apache-2.0
#include "packed.h"

#include <string>

namespace poptransformer {

Matrix packed_matrix(Format format, int64_t columns, const Tensor& codes, const Tensor& scales, const Tensor& offsets) {
  Matrix matrix;
  matrix.format = format;
  matrix.columns = columns;
  codes.expect_type({kUInt8});
  codes.expect_shape({matrix.tiles(), "K / 32", format == Format::kInt4 ? 4 : 8, kTile, 4});
  matrix.padded = codes.shape[1] * kChunk;
  scales.expect_type({is_float8(format) ? kFloat32 : kFloat16});
  scales.expect_shape({matrix.tiles(), "blocks", kTile});
  const int64_t blocks = scales.shape[1];
  const int64_t chunks = codes.shape[1];
  if (chunks == 0 ? blocks != 0 : blocks == 0 || chunks % blocks != 0) {
    scales.reject("of a number of blocks that divides " + std::to_string(chunks), scales.shape.text());
  }
  matrix.block = blocks == 0 ? kChunk : matrix.padded / blocks;
  if (offsets) {
    if (format != Format::kInt4) offsets.reject("left out, as only int4 has offsets", offsets.shape.text());
    offsets.expect_type({kFloat16});
    offsets.expect_shape({matrix.tiles(), blocks, kTile});
  }
  matrix.data = codes.data;
  matrix.scales = scales.data;
  matrix.offsets = offsets.data;
  return matrix;
}

void set_packed_depth(const Tensor& x, Matrix* matrix) {
  const int64_t depth = x.shape.last(), least = matrix->padded > 0 ? matrix->padded - matrix->block + 1 : 0;
  if (depth < least || depth > matrix->padded) {
    const std::string range = std::to_string(least) + " to " + std::to_string(matrix->padded);
    x.reject("of " + range + " columns, as its weight is packed", x.shape.text());
  }
  matrix->depth = depth;
}

}  // namespace poptransformer
