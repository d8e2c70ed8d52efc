// SPDX-License-Identifier: Apache-2.0
// A rectangle of the output, as the algorithms behind `multiply` see it.
#pragma once

#include "matrix.h"

namespace poptransformer {

/// y[r][c] = x[r] . weight row c, for `rows` rows r and `columns` columns c. Leading dimensions in values.
struct Rectangle {
  const float* x;
  int64_t ldx;
  float* y;
  int64_t ldy;
  int64_t rows;
  int64_t columns;
  int64_t depth;
};

inline Rectangle rectangle_of(const Matrix& matrix, const Input& input, const Block& block, float* y, int64_t ldy) {
  return {input.x + block.rows.begin * input.ld,
          input.ld,
          y,
          ldy,
          block.rows.end - block.rows.begin,
          block.columns.end - block.columns.begin,
          matrix.depth};
}

}  // namespace poptransformer
