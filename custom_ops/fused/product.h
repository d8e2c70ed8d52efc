// SPDX-License-Identifier: Apache-2.0
// The work of one call of a fused op, on the thread pool.
#pragma once

#include <array>
#include <cstdint>

#include "activation.h"
#include "operands.h"

namespace poptransformer {

struct FusedProduct {
  const FusedOperands* operands = nullptr;
  RowFunction activation = nullptr;  ///< On the first projection; may be null.
  bool gated = false;                ///< One output: the first projection, activated, times the second.
  const float* x = nullptr;          ///< [rows, depth]
  int64_t rows = 0;
  int64_t depth = 0;
  const float* residual = nullptr;   ///< Added to the first output, of its shape; may be null.
  std::array<float*, kMaxProjections> outputs{};  ///< [rows, columns] each.

  int outputs_count() const { return gated ? 1 : operands->count; }
  void run() const;
};

}  // namespace poptransformer
