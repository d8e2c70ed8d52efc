// SPDX-License-Identifier: Apache-2.0
#include "product.h"

#include <algorithm>

#include "../common/scratch.h"
#include "prepared_rows.h"

namespace poptransformer {
namespace {

/// Values of x up to which each part of a job prepares all rows for itself: less work than a second fork and join.
constexpr int64_t kFewValues = 1 << 13;

/// What follows a product is done block by block, while the block (256 KB) is in the second-level cache.
constexpr int64_t kBlockValues = 1 << 16;
constexpr int64_t kBlockRows = 512;
constexpr int64_t kMinBlockColumns = 8 * kTile;

/// How many rows ahead a residual is asked for: its rows lie too far apart for the processor to guess.
constexpr int64_t kRowsAhead = 8;

/// The products of one part of the job.
class Part {
 public:
  Part(const FusedProduct& product, const PreparedRows& rows, float* gate)
      : p_(product), prepared_(rows), ops_(RowOps::pick()), gate_(gate) {}

  static int64_t block_rows(const FusedProduct& p) { return std::min(p.rows, kBlockRows); }

  static int64_t block_columns(const FusedProduct& p) {
    return std::max(kBlockValues / std::max<int64_t>(1, block_rows(p)) / (4 * kTile) * (4 * kTile), kMinBlockColumns);
  }

  /// Values of the work memory `gate`.
  static int64_t gate_values(const FusedProduct& p) {
    if (!p.gated) return 0;
    return block_rows(p) * std::min(block_columns(p), p.operands->projections[0].matrix.tiles() * kTile);
  }

  /// All columns of all outputs lie side by side, each output rounded up to whole tiles, and are shared out at once.
  static int64_t total_columns(const FusedProduct& p) {
    int64_t tiles = 0;
    for (size_t i = 0; i < p.outputs_count(); ++i) tiles += p.operands->projections[i].matrix.tiles();
    return tiles * kTile;
  }

  void run(const Block& share) const {
    int64_t first = 0;
    for (size_t i = 0; i < p_.outputs_count(); ++i) {
      const Matrix& matrix = p_.operands->projections[i].matrix;
      const Range columns{std::max<int64_t>(share.columns.begin - first, 0),
                          std::min(share.columns.end - first, matrix.columns)};
      run_output(i, {share.rows, columns});
      first += matrix.tiles() * kTile;
    }
  }

 private:
  void run_output(size_t index, const Block& all) const {
    const int64_t rows = all.rows.end - all.rows.begin, column_step = block_columns(p_);
    const int blocks = static_cast<int>((rows + kBlockRows - 1) / kBlockRows);  // of about equal height
    for (int64_t column = all.columns.begin; column < all.columns.end; column += column_step) {
      for (int b = 0; b < blocks; ++b) {
        const Range part = share(rows, b, blocks);
        run_block(index, {{all.rows.begin + part.begin, all.rows.begin + part.end},
                          {column, std::min(column + column_step, all.columns.end)}});
      }
    }
  }

  void run_block(size_t index, const Block& block) const {
    const Projection& projection = p_.operands->projections[index];
    const int64_t ldy = projection.matrix.columns, columns = block.columns.end - block.columns.begin;
    const int64_t offset = block.rows.begin * ldy + block.columns.begin;
    float* const y = p_.outputs[index] + offset;
    multiply(projection.matrix, prepared_.input(index), block, y, ldy);
    if (p_.gated) multiply(p_.operands->projections[1].matrix, prepared_.input(1), block, gate_, columns);
    const float* bias = projection.bias ? projection.bias + block.columns.begin : nullptr;
    const float* gate_bias = p_.gated ? p_.operands->projections[1].bias : nullptr;
    if (gate_bias) gate_bias += block.columns.begin;
    const float* residual = p_.residual && index == 0 ? p_.residual + offset : nullptr;
    const int64_t rows = block.rows.end - block.rows.begin;
    const size_t row_bytes = static_cast<size_t>(columns) * sizeof(float);
    for (int64_t row = 0; row < rows; ++row) {
      if (residual && row + kRowsAhead < rows) prefetch(residual + (row + kRowsAhead) * ldy, row_bytes);
      float *const values = y + row * ldy, *const gate = gate_ + row * columns;
      if (bias) ops_.add(values, bias, columns);
      if (p_.activation && index == 0) p_.activation(values, columns);
      if (gate_bias) ops_.add(gate, gate_bias, columns);
      if (p_.gated) ops_.multiply(values, gate, columns);
      if (residual) ops_.add(values, residual + row * ldy, columns);
    }
  }

  const FusedProduct& p_;
  const PreparedRows& prepared_;
  const RowOps& ops_;
  float* gate_;
};

}  // namespace

void FusedProduct::run() const {
  PreparedRows rows(*operands, x, this->rows, depth);
  const bool alone = rows.bytes() > 0 && this->rows * depth <= kFewValues;
  if (rows.bytes() > 0 && !alone) {
    rows.place(scratch<char>(Scratch::kShared, rows.bytes()));
    constexpr int64_t kStepsPerValue = 8;
    ThreadPool::run_for(this->rows * depth * kStepsPerValue, [&](int part, int parts) {
      rows.prepare(share(this->rows, part, parts));
    });
  }
  const int64_t columns = Part::total_columns(*this), gate_values = Part::gate_values(*this);
  ThreadPool::run_for(this->rows * depth * columns * (gated ? 2 : 1), [&](int part, int parts) {
    const Block share = share_product(this->rows, columns, part, parts);
    if (share.columns.begin >= share.columns.end || share.rows.begin >= share.rows.end) return;
    const size_t own = alone ? rows.bytes() : 0;
    char* const memory = scratch<char>(Scratch::kOwnResult, own + static_cast<size_t>(gate_values) * sizeof(float));
    PreparedRows mine = rows;
    if (alone) {
      mine.place(memory);
      mine.prepare({0, this->rows});
    }
    Part(*this, mine, reinterpret_cast<float*>(memory + own)).run(share);
  });
}

}  // namespace poptransformer
