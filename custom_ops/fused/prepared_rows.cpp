// SPDX-License-Identifier: Apache-2.0
#include "prepared_rows.h"

#include <algorithm>

#include "../common/scratch.h"

namespace poptransformer {
namespace {

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

PreparedRows::PreparedRows(const FusedOperands& operands, const float* x, int64_t rows, int64_t depth)
    : norm_(&operands.norm), x_(x), rows_(rows), depth_(depth) {
  for (size_t i = 0; i < static_cast<size_t>(operands.count); ++i) {
    const Matrix& matrix = operands.projections[i].matrix;
    if (!takes_quantized_rows(matrix.format)) {
      rounding_of_[i] = kUnrounded;
      keeps_floats_ |= norm_->kind != NormKind::kNone;
      continue;
    }
    const auto known = padded_.begin() + static_cast<std::ptrdiff_t>(roundings_);
    const auto found = std::find(padded_.begin(), known, matrix.padded);
    rounding_of_[i] = static_cast<size_t>(found - padded_.begin());
    if (found != known) continue;
    padded_[roundings_++] = matrix.padded;
    bytes_ += aligned(quantized_rows_bytes(rows, matrix.padded));
  }
  if (keeps_floats_) bytes_ += aligned(static_cast<size_t>(rows * depth) * sizeof(float));
}

void PreparedRows::place(void* memory) {
  char* place = static_cast<char*>(memory);
  for (size_t i = 0; i < roundings_; ++i) {
    rounded_[i] = quantized_rows_at(place, rows_, padded_[i]);
    place += aligned(quantized_rows_bytes(rows_, padded_[i]));
  }
  floats_ = reinterpret_cast<float*>(place);
}

void PreparedRows::prepare(Range range) const {
  if (norm_->kind == NormKind::kNone) {
    for (size_t i = 0; i < roundings_; ++i) quantize_rows(x_, depth_, depth_, range, rounded_[i]);
    return;
  }
  const auto normalise = RowOps::pick().normalise;
  float* const passing = keeps_floats_ ? nullptr : scratch<float>(Scratch::kOwn, static_cast<size_t>(depth_));
  for (int64_t row = range.begin; row < range.end; ++row) {
    float* const normalised = keeps_floats_ ? floats_ + row * depth_ : passing;
    normalise(*norm_, x_ + row * depth_, depth_, normalised);
    for (size_t i = 0; i < roundings_; ++i) quantize_rows(normalised, 0, depth_, {row, row + 1}, rounded_[i]);
  }
}

Input PreparedRows::input(size_t index) const {
  Input input;
  input.x = keeps_floats_ ? floats_ : x_;
  input.ld = input.depth = depth_;
  input.rows = rows_;
  if (rounding_of_[index] != kUnrounded) input.quantized = rounded_[rounding_of_[index]];
  return input;
}

}  // namespace poptransformer
