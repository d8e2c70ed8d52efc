// SPDX-License-Identifier: Apache-2.0
// What a fused product reads besides its rows, checked: a norm, and one to three weights with biases, whose columns
// make one to three projections.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../common/attributes.h"
#include "../matrix/matrix.h"
#include "rows.h"

namespace poptransformer {

constexpr int kMaxProjections = 3;

/// Numbers of the inputs. A weight has four of them: weight, scales, offsets, bias.
enum FusedInput : size_t { kX, kNormWeight, kNormBias, kResidual, kFirstWeight };
constexpr size_t kWeightInputs = 4;
constexpr size_t kFusedInputs = kFirstWeight + kMaxProjections * kWeightInputs;
using FusedTensors = std::vector<Tensor>;  ///< One for each input.

/// A weight, or some of its columns.
struct Projection {
  Matrix matrix;                ///< Of packed formats without its depth, which only x tells.
  const float* bias = nullptr;  ///< May be null.
};

/// What a node's attributes say.
struct FusedLayout {
  NormKind norm = NormKind::kNone;
  float epsilon = 0.0f;
  std::vector<int64_t> columns;      ///< Of each projection.
  std::vector<int64_t> splits;       ///< Of each weight: how many projections its columns are cut into.
  std::vector<std::string> formats;  ///< Of each weight: "float" for any float type, or a packed format.

  /// @throws Error
  explicit FusedLayout(const Attributes& attributes);

 private:
  void check(const Attributes& attributes) const;
};

struct FusedOperands {
  Norm norm;
  size_t count = 0;  ///< Of projections.
  std::array<Projection, kMaxProjections> projections;

  FusedOperands() = default;
  /// Checks all inputs but x and the residual.
  /// @throws Error
  FusedOperands(const FusedLayout& layout, const FusedTensors& inputs);

  /// Checks the columns of x against norm and weights, and sets the depth of all weights.
  /// @throws Error
  void set_depth(const Tensor& x, const FusedTensors& inputs);

 private:
  void read_norm(const FusedLayout& layout, const FusedTensors& inputs);

  std::array<size_t, kMaxProjections> weight_of_{};  // Number of the weight that a projection is part of.
};

}  // namespace poptransformer
