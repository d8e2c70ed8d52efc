// SPDX-License-Identifier: Apache-2.0
// What a fused product reads besides its rows: a norm, and one to three weights with biases, checked.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../common/call.h"
#include "../matrix/matrix.h"
#include "rows.h"

namespace poptransformer {

constexpr int kMaxProjections = 3;

/// Numbers of the inputs. A projection has four of them: weight, scales, offsets, bias.
enum FusedInput : size_t { kX, kNormWeight, kNormBias, kResidual, kFirstProjection };
constexpr size_t kProjectionInputs = 4;
constexpr size_t kFusedInputs = kFirstProjection + kMaxProjections * kProjectionInputs;
using FusedTensors = std::vector<Tensor>;  ///< One for each input.

struct Projection {
  Matrix matrix;                ///< Of packed formats without its depth, which only x tells.
  const float* bias = nullptr;  ///< May be null.
};

/// What a node's attributes say.
struct FusedLayout {
  NormKind norm = NormKind::kNone;
  float epsilon = 0.0f;
  std::vector<int64_t> columns;      ///< Of each projection.
  std::vector<std::string> formats;  ///< Of each projection: "float" for any float type, or a packed format.

  /// @throws Error
  explicit FusedLayout(const Attributes& attributes);
};

struct FusedOperands {
  Norm norm;
  int count = 0;
  std::array<Projection, kMaxProjections> projections;

  FusedOperands() = default;
  /// Checks all inputs but x and the residual.
  /// @throws Error
  FusedOperands(const FusedLayout& layout, const FusedTensors& inputs);

  /// Checks the columns of x against norm and weights, and sets the depth of all weights.
  /// @throws Error
  void set_depth(const Tensor& x, const FusedTensors& inputs);
};

}  // namespace poptransformer
