// SPDX-License-Identifier: Apache-2.0
#include "rows.h"

#include <cmath>

#include "../common/simd.h"

#define POPTRANSFORMER_INLINE __attribute__((always_inline)) inline

namespace poptransformer {
namespace {

/// Sum of (x[i] - shift)^2, or of x[i] where not kSquares, in 32 partial sums that the compiler keeps in vectors.
template <bool kSquares>
POPTRANSFORMER_INLINE float sum(const float* x, int64_t n, float shift) {
  constexpr int kLanes = 32;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = x[i + lane] - shift;
      lanes[lane] += kSquares ? value * value : value;
    }
  }
  for (int lane = 0; i < n; ++i, ++lane) {
    const float value = x[i] - shift;
    lanes[lane] += kSquares ? value * value : value;
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

POPTRANSFORMER_INLINE void normalise(const Norm& norm, const float* x, int64_t n, float* out) {
  const float count = static_cast<float>(n);
  const float mean = norm.kind == NormKind::kLayer ? sum<false>(x, n, 0.0f) / count : 0.0f;
  const float scale = 1.0f / std::sqrt(sum<true>(x, n, mean) / count + norm.epsilon);
  const float* weight = norm.weight;
  for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - mean) * scale * weight[i];
  if (norm.bias == nullptr) return;
  for (int64_t i = 0; i < n; ++i) out[i] += norm.bias[i];
}

POPTRANSFORMER_INLINE void add(float* y, const float* other, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += other[i];
}

POPTRANSFORMER_INLINE void multiply(float* y, const float* other, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] *= other[i];
}

#define POPTRANSFORMER_ROW_OPS(attribute, simd)                                                              \
  attribute void normalise_##simd(const Norm& norm, const float* x, int64_t n, float* out) {                 \
    normalise(norm, x, n, out);                                                                              \
  }                                                                                                          \
  attribute void add_##simd(float* y, const float* other, int64_t n) { add(y, other, n); }                   \
  attribute void multiply_##simd(float* y, const float* other, int64_t n) { multiply(y, other, n); }

POPTRANSFORMER_ROW_OPS(, portable)
#if POPTRANSFORMER_X86
POPTRANSFORMER_ROW_OPS(POPTRANSFORMER_AVX2, avx2)
POPTRANSFORMER_ROW_OPS(POPTRANSFORMER_AVX512, avx512)
#endif

}  // namespace

bool parse_norm(const std::string& name, NormKind* kind) {
  if (name == "none") {
    *kind = NormKind::kNone;
  } else if (name == "rms") {
    *kind = NormKind::kRms;
  } else if (name == "layer") {
    *kind = NormKind::kLayer;
  } else {
    return false;
  }
  return true;
}

const RowOps& RowOps::pick() {
  static const RowOps picked{POPTRANSFORMER_PICK3(normalise), POPTRANSFORMER_PICK3(add),
                             POPTRANSFORMER_PICK3(multiply)};
  return picked;
}

}  // namespace poptransformer
