// SPDX-License-Identifier: Apache-2.0
// The rows that the products of a fused op read: x itself, or normalised, or rounded to int8, each as the weights ask.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "../common/thread_pool.h"
#include "../matrix/matrix.h"
#include "operands.h"

namespace poptransformer {

/// A plan first; after `place` the rows of some memory; after `prepare` what `input` promises.
class PreparedRows {
 public:
  /// x is [rows, depth] with the depth of `operands`.
  PreparedRows(const FusedOperands& operands, const float* x, int64_t rows, int64_t depth);

  /// Memory for all rows; 0 where the products read x as it is.
  size_t bytes() const { return bytes_; }

  /// Lays the rows out in `memory`, `bytes()` of it, aligned to 64.
  void place(void* memory);

  /// Fills in rows `range`; parts of a job may share the rows among them. Uses this thread's Scratch::kOwn.
  void prepare(Range range) const;

  /// All rows, for the product with projection `index`.
  Input input(size_t index) const;

 private:
  static constexpr size_t kUnrounded = kMaxProjections;

  const Norm* norm_;
  const float* x_;
  int64_t rows_, depth_;
  bool keeps_floats_ = false;     // Some product reads the normalised rows as they are.
  float* floats_ = nullptr;       // [rows, depth]
  size_t roundings_ = 0;          // Weights padded to different depths need codes of their own.
  std::array<int64_t, kMaxProjections> padded_{};
  std::array<QuantizedRows, kMaxProjections> rounded_{};
  std::array<size_t, kMaxProjections> rounding_of_{};  // Of each projection: a number below roundings_, or kUnrounded.
  size_t bytes_ = 0;
};

}  // namespace poptransformer
