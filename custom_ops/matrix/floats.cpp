// SPDX-License-Identifier: Apache-2.0
// fp32, fp16 and bf16 weights as they lie in the memory-mapped checkpoint: never copied or repacked as a whole. Few
// input rows (decode) are bound by reading the weight once, many (prefill) by arithmetic, hence two algorithms.
#include <algorithm>
#include <cstdint>

#include "../common/scratch.h"
#include "../common/tiles.h"
#include "matrix.h"

namespace poptransformer {
namespace {

/// Steps of this depth keep four weight rows and a few input rows in the first-level cache.
constexpr int64_t kDotDepth = 1024;
/// A panel of this depth (16 KB of fp32) stays in the first-level cache.
constexpr int64_t kPanelDepth = 256;
/// Input rows per panel: their kPanelDepth columns (246 KB) stay in the second-level cache.
constexpr int64_t kBlockRows = 240;

/// One rectangle of the output: `rows` rows from x on, `columns` columns from `weight` on.
template <class Weight>
struct Problem {
  const float* x;
  int64_t ldx;
  const Weight* weight;
  float* y;
  int64_t ldy;
  int64_t rows;
  int64_t columns;
  int64_t depth;
};

/// sums[m][r] = x[m] . weights[r] for all rows m and four weight rows, in steps of kDotDepth.
template <class Weight>
void multiply_rows(const Problem<Weight>& p, const Weight* const* weights, float (*sums)[kDotRows]) {
  const auto dot = Tiles<Weight>::pick().dot;
  std::fill_n(sums[0], p.rows * kDotRows, 0.0f);
  for (int64_t first = 0; first < p.depth; first += kDotDepth) {
    const int64_t depth = std::min(kDotDepth, p.depth - first);
    const Weight* parts[kDotRows];
    for (int r = 0; r < kDotRows; ++r) parts[r] = weights[r] + first;
    for (int64_t m = 0; m < p.rows; m += kDotInputs) {
      const int inputs = static_cast<int>(std::min<int64_t>(kDotInputs, p.rows - m));
      float part[kDotInputs][kDotRows];
      dot(parts, p.x + m * p.ldx + first, p.ldx, inputs, depth, part);
      for (int i = 0; i < inputs; ++i) {
        for (int r = 0; r < kDotRows; ++r) sums[m + i][r] += part[i][r];
      }
    }
  }
}

/// By dot products. The columns are walked as four streams side by side.
template <class Weight>
void multiply_by_dots(const Problem<Weight>& p) {
  float sums[kMaxDotRows][kDotRows];
  const int64_t stream = (p.columns + kDotRows - 1) / kDotRows;
  for (int64_t step = 0; step < stream; ++step) {
    int64_t column[kDotRows];
    const Weight* weights[kDotRows];
    for (int r = 0; r < kDotRows; ++r) {
      // Streams that are through repeat the last column: the same value is written twice.
      column[r] = std::min(r * stream + step, p.columns - 1);
      weights[r] = p.weight + column[r] * p.depth;
    }
    multiply_rows(p, weights, sums);
    for (int64_t m = 0; m < p.rows; ++m) {
      for (int r = 0; r < kDotRows; ++r) p.y[m * p.ldy + column[r]] = sums[m][r];
    }
  }
}

/// Rows [begin, end) and depths [first, last) of one product step.
struct Step {
  int64_t begin, end;
  int64_t first, last;
};

/// Adds one panel's part to y[begin:end, column : column + 16], cut at the last column.
template <class Weight>
void multiply_panel(const Problem<Weight>& p, const Step& step, int64_t column, const float* panel) {
  static constexpr float kZeros[kTileColumns] = {};
  const auto tile = Tiles<Weight>::pick().tile;
  const int64_t width = std::min<int64_t>(kTileColumns, p.columns - column);
  float edge[kTileRows * kTileColumns] = {};  // Stands in for y where fewer than 16 columns are left.
  for (int64_t m = step.begin; m < step.end; m += kTileRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kTileRows, step.end - m));
    float* y = p.y + m * p.ldy + column;
    const bool whole = width == kTileColumns, fresh = step.first == 0;
    float* target = whole ? y : edge;
    const int64_t ld = whole ? p.ldy : kTileColumns;
    if (!whole && !fresh) {
      for (int r = 0; r < rows; ++r) std::copy_n(y + r * p.ldy, width, edge + r * kTileColumns);
    }
    tile(rows, {p.x + m * p.ldx + step.first, p.ldx, panel, kTileColumns, fresh ? kZeros : target, fresh ? 0 : ld,
                target, ld, step.last - step.first});
    if (whole) continue;
    for (int r = 0; r < rows; ++r) std::copy_n(edge + r * kTileColumns, width, y + r * p.ldy);
  }
}

/// By panels of 16 weight rows, each packed just before its use.
template <class Weight>
void multiply_by_panels(const Problem<Weight>& p) {
  const auto pack = Tiles<Weight>::pick().pack;
  float* panel = scratch<float>(Scratch::kOwn, kPanelDepth * kTileColumns);
  for (int64_t begin = 0; begin < p.rows; begin += kBlockRows) {
    // At depth 0 one empty step still writes zeros.
    for (int64_t first = 0; first == 0 || first < p.depth; first += kPanelDepth) {
      const Step step{begin, std::min(begin + kBlockRows, p.rows), first, std::min(first + kPanelDepth, p.depth)};
      for (int64_t column = 0; column < p.columns; column += kTileColumns) {
        const int width = static_cast<int>(std::min<int64_t>(kTileColumns, p.columns - column));
        pack(p.weight + column * p.depth + first, p.depth, width, step.last - first, panel);
        multiply_panel(p, step, column, panel);
      }
    }
  }
}

template <class Weight>
void run(const Matrix& m, const Input& in, const Block& block, float* y, int64_t ldy) {
  const Problem<Weight> problem{in.x + block.rows.begin * in.ld,
                                in.ld,
                                static_cast<const Weight*>(m.data) + block.columns.begin * m.depth,
                                y,
                                ldy,
                                block.rows.end - block.rows.begin,
                                block.columns.end - block.columns.begin,
                                m.depth};
  // Chosen by the rows of the whole product: a row's result must not depend on how the work is shared out.
  if (in.rows <= Tiles<Weight>::pick().max_dot_rows) return multiply_by_dots(problem);
  multiply_by_panels(problem);
}

}  // namespace

void multiply_floats(const Matrix& matrix, const Input& input, const Block& block, float* y, int64_t ldy) {
  switch (matrix.format) {
    case Format::kFloat32: return run<float>(matrix, input, block, y, ldy);
    case Format::kFloat16: return run<Float16>(matrix, input, block, y, ldy);
    default: return run<BFloat16>(matrix, input, block, y, ldy);
  }
}

}  // namespace poptransformer
