// SPDX-License-Identifier: Apache-2.0
// fp32, fp16 and bf16 weights as they lie in the memory-mapped checkpoint: never copied or repacked as a whole. Few
// input rows (decode) are bound by reading the weight once, many (prefill) by arithmetic, hence two algorithms.
#include <cstdint>

#include "dots.h"
#include "matrix.h"
#include "panels.h"

namespace poptransformer {
namespace {

/// Packs rows of a row-major weight for `multiply_by_panels`.
template <class Weight>
struct RowPacker {
  const Weight* weight;
  int64_t ld;
  PackRows<Weight> pack_rows;

  void pack(int64_t column, int width, int64_t first, int64_t depth, float* panel, int64_t ld_panel) const {
    pack_rows(weight + column * ld + first, ld, width, depth, panel, ld_panel);
  }

  static constexpr int64_t kRowBytes = sizeof(Weight);

  const void* row(int64_t column, int64_t first, int64_t) const { return weight + column * ld + first; }
};

template <class Weight>
void run(const Matrix& m, const Input& in, const Block& block, float* y, int64_t ldy) {
  const Rectangle rectangle = rectangle_of(m, in, block, y, ldy);
  const Weight* weight = static_cast<const Weight*>(m.data) + block.columns.begin * m.depth;
  // Chosen by the rows of the whole product: a row's result must not depend on how the work is shared out.
  if (in.rows <= Dots<Weight>::pick().max_rows) return multiply_by_dots(rectangle, weight);
  multiply_by_panels(rectangle, RowPacker<Weight>{weight, m.depth, pick_pack_rows<Weight>()});
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
