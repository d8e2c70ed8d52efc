// SPDX-License-Identifier: Apache-2.0
// Dispatch by format, and how a product is shared out.
#include "matrix.h"

#include <algorithm>

namespace poptransformer {

int64_t Matrix::bytes() const {
  if (!is_packed(format)) return columns * depth * (format == Format::kFloat32 ? 4 : 2);
  const int64_t values = tiles() * kTile * padded;
  const int64_t scale_bytes = is_float8(format) ? 4 : offsets ? 4 : 2;
  return (format == Format::kInt4 ? values / 2 : values) + values / block * scale_bytes;
}

void multiply(const Matrix& matrix, const Input& input, const Block& block, float* y, int64_t ldy) {
  if (block.rows.begin >= block.rows.end || block.columns.begin >= block.columns.end) return;
  if (is_integer(matrix.format)) return multiply_integers(matrix, input, block, y, ldy);
  if (is_float8(matrix.format)) return multiply_float8(matrix, input, block, y, ldy);
  multiply_floats(matrix, input, block, y, ldy);
}

Block share_product(int64_t rows, int64_t columns, int part, int parts) {
  constexpr int64_t kManyRows = 64, kTilesPerPart = 4;
  const int64_t tiles = (columns + kTile - 1) / kTile;
  int row_parts = 1;
  // Few columns for many parts: cut the rows too, as long as each piece keeps enough of them.
  while (parts % (2 * row_parts) == 0 && tiles * row_parts < kTilesPerPart * parts && rows / (2 * row_parts) >= kManyRows) {
    row_parts *= 2;
  }
  const int column_parts = parts / row_parts;
  const Range tile_range = share(tiles, part % column_parts, column_parts);
  return {share(rows, part / column_parts, row_parts),
          {tile_range.begin * kTile, std::min(tile_range.end * kTile, columns)}};
}

}  // namespace poptransformer
