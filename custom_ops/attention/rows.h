// SPDX-License-Identifier: Apache-2.0
// Rows of fp32: scaling, and the rotary position embedding of one head of one token as ONNX's RotaryEmbedding has it.
#pragma once

#include <cstdint>

#include "../common/simd.h"

namespace poptransformer {
namespace attention {

/// The angles of a step: cosines and sines [B, L, dim / 2] for the first `dim` columns of each head; dim 0 rotates
/// nothing.
struct Rotary {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t dim = 0;
  bool interleaved = false;  ///< Pairs are neighbours instead of halves.
};

/// One head to rotate and scale.
struct RotateArguments {
  const float* x;
  int64_t head_dim;
  Rotary rotary;  // With the angles of the head's token.
  float scale;
  float* out;
};

/// Pairs from `first` on.
__attribute__((always_inline)) inline void rotate_pairs(const RotateArguments& t, int64_t first) {
  const float *__restrict x = t.x, *__restrict cos = t.rotary.cos, *__restrict sin = t.rotary.sin;
  float* __restrict out = t.out;
  const int64_t half = t.rotary.dim / 2;
  const int64_t step = t.rotary.interleaved ? 2 : 1, distance = t.rotary.interleaved ? 1 : half;
  for (int64_t i = first; i < half; ++i) {
    const float a = x[step * i], b = x[step * i + distance];
    out[step * i] = t.scale * (a * cos[i] - b * sin[i]);
    out[step * i + distance] = t.scale * (a * sin[i] + b * cos[i]);
  }
}

/// out = factor * x; `out` may be `x`.
inline void scale_portable(const float* x, float factor, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = factor * x[i];
}

/// out = scale * x with its pairs rotated. `x` and `out` must not overlap.
inline void rotate_portable(const RotateArguments& t) {
  rotate_pairs(t, 0);
  scale_portable(t.x + t.rotary.dim, t.scale, t.head_dim - t.rotary.dim, t.out + t.rotary.dim);
}

#if POPTRANSFORMER_X86
POPTRANSFORMER_AVX2 inline void scale_avx2(const float* x, float factor, int64_t count, float* out) {
  int64_t i = 0;
  const __m256 factors = _mm256_set1_ps(factor);
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, _mm256_mul_ps(factors, _mm256_loadu_ps(x + i)));
  for (; i < count; ++i) out[i] = factor * x[i];
}

POPTRANSFORMER_AVX2 inline void rotate_avx2(const RotateArguments& t) {
  const __m256 scale = _mm256_set1_ps(t.scale);
  const int64_t half = t.rotary.dim / 2;
  int64_t i = 0;
  for (; !t.rotary.interleaved && i + 8 <= half; i += 8) {
    const __m256 cos = _mm256_mul_ps(_mm256_loadu_ps(t.rotary.cos + i), scale);
    const __m256 sin = _mm256_mul_ps(_mm256_loadu_ps(t.rotary.sin + i), scale);
    const __m256 a = _mm256_loadu_ps(t.x + i), b = _mm256_loadu_ps(t.x + half + i);
    _mm256_storeu_ps(t.out + i, _mm256_fmsub_ps(a, cos, _mm256_mul_ps(b, sin)));
    _mm256_storeu_ps(t.out + half + i, _mm256_fmadd_ps(a, sin, _mm256_mul_ps(b, cos)));
  }
  if (i < half) rotate_pairs(t, i);
  scale_avx2(t.x + t.rotary.dim, t.scale, t.head_dim - t.rotary.dim, t.out + t.rotary.dim);
}
#endif

}  // namespace attention
}  // namespace poptransformer
