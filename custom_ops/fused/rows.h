// SPDX-License-Identifier: Apache-2.0
// Normalisation of a row, and the sums and products that follow a matrix product.
#pragma once

#include <cstdint>
#include <string>

namespace poptransformer {

enum class NormKind { kNone, kRms, kLayer };

/// Sets `kind` to the norm of that name: "none", "rms" or "layer". @returns whether there is one.
bool parse_norm(const std::string& name, NormKind* kind);

/// Normalisation over n columns: rms x / sqrt(mean(x^2) + epsilon) * weight, layer (x - mean) / sqrt(variance +
/// epsilon) * weight + bias; `bias` may be null.
struct Norm {
  NormKind kind = NormKind::kNone;
  float epsilon = 0.0f;
  const float* weight = nullptr;
  const float* bias = nullptr;
};

/// Functions over rows of n values, for this processor.
struct RowOps {
  /// out = norm of x; every sum has an order that depends on n alone.
  void (*normalise)(const Norm& norm, const float* x, int64_t n, float* out);
  void (*add)(float* y, const float* other, int64_t n);       ///< y[i] += other[i]
  void (*multiply)(float* y, const float* other, int64_t n);  ///< y[i] *= other[i]

  static const RowOps& pick();
};

}  // namespace poptransformer
