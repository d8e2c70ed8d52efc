// SPDX-License-Identifier: Apache-2.0
// Dispatch by format, and how a product is shared out.
#include "matrix.h"

#include <algorithm>

namespace poptransformer {

namespace {

/// Into how many ranges of rows a product is cut. Each range reads and unpacks the weight for itself, so pieces keep
/// many rows; each range of columns reads the input for itself, which costs less.
int row_parts_of(int64_t rows, int64_t tiles, int parts) {
  constexpr int64_t kManyRows = 64;
  constexpr double kRowsPerUnpacking = 8, kColumnsPerReading = 2;  // Measured, as what they cost.
  int best = 1;
  double least = 0;
  for (int row_parts = 1; row_parts <= parts && (row_parts == 1 || rows / row_parts >= kManyRows); ++row_parts) {
    if (parts % row_parts != 0) continue;
    const double height = static_cast<double>(rows) / row_parts;
    const double width = kTile * std::max(1.0, static_cast<double>(tiles) * row_parts / parts);
    const double cost = height * width + kRowsPerUnpacking * width + kColumnsPerReading * height;
    if (row_parts > 1 && cost >= least) continue;
    best = row_parts;
    least = cost;
  }
  return best;
}

/// Where a part lies. Threads take parts in order (thread_pool.h), with one or four for each thread: those at work at
/// the same time lie apart. Side by side they would fetch the ends of each other's rows of y (a tenth slower).
int place_of(int part, int parts) {
  constexpr int kPartsPerThread = 4;
  if (parts % kPartsPerThread != 0) return part;
  const int threads = parts / kPartsPerThread;
  return part % threads * kPartsPerThread + part / threads;
}

}  // namespace

int64_t Matrix::bytes() const {
  if (!is_packed(format)) return columns * depth * (format == Format::kFloat32 ? 4 : 2);
  const int64_t values = tiles() * kTile * padded;
  const int64_t scale_bytes = is_float8(format) ? 4 : offsets ? 4 : 2;
  return (format == Format::kInt4 ? values / 2 : values) + values / block * scale_bytes;
}

Upcoming::Weight upcoming_weight(const Matrix& matrix) {
  const int64_t values = kTile * (is_packed(matrix.format) ? matrix.padded : matrix.depth);
  if (values == 0) return {};
  const auto region = [](const void* data, int64_t bytes) {
    return Upcoming::Region{static_cast<const char*>(data), bytes};
  };
  if (!is_packed(matrix.format)) {
    return {{region(matrix.data, values * (matrix.format == Format::kFloat32 ? 4 : 2))}, 1, matrix.tiles()};
  }
  const int64_t scales = values / matrix.block * (is_float8(matrix.format) ? 4 : 2);
  return {{region(matrix.data, matrix.format == Format::kInt4 ? values / 2 : values), region(matrix.scales, scales),
           region(matrix.offsets, scales)},
          matrix.offsets ? 3 : 2,
          matrix.tiles()};
}

void multiply(const Matrix& matrix, const Input& input, const Block& block, float* y, int64_t ldy) {
  if (block.rows.begin >= block.rows.end || block.columns.begin >= block.columns.end) return;
  if (is_integer(matrix.format)) return multiply_integers(matrix, input, block, y, ldy);
  if (is_float8(matrix.format)) return multiply_float8(matrix, input, block, y, ldy);
  multiply_floats(matrix, input, block, y, ldy);
}

Block share_product(int64_t rows, int64_t columns, int part, int parts) {
  const int64_t tiles = (columns + kTile - 1) / kTile;
  const int row_parts = row_parts_of(rows, tiles, parts), column_parts = parts / row_parts;
  const int place = place_of(part, parts);
  const Range tile_range = share(tiles, place % column_parts, column_parts);
  return {share(rows, place / column_parts, row_parts),
          {tile_range.begin * kTile, std::min(tile_range.end * kTile, columns)}};
}

}  // namespace poptransformer
