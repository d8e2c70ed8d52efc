// SPDX-License-Identifier: Apache-2.0
// AVX2 version of dots.h; included by it.
#pragma once

#include "dots.h"

#if POPTRANSFORMER_X86

namespace poptransformer {

/// The sums of four vectors, in order.
POPTRANSFORMER_AVX2 inline __m128 sums_of(const __m256* v) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

/// Makes GCC load a value once: it would rather repeat the load as a memory operand of every instruction.
POPTRANSFORMER_AVX2 inline __m256 loaded_once(__m256 value) {
  asm("" : "+x"(value));
  return value;
}

/// sums[m * 4 + r] += w[r] * x[m]
template <int kInputs>
POPTRANSFORMER_AVX2 inline void add_products(const __m256* w, const __m256* x, __m256* sums) {
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kInputs; ++m) {
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kDotRows; ++r) sums[m * kDotRows + r] = _mm256_fmadd_ps(w[r], x[m], sums[m * kDotRows + r]);
  }
}

/// The part of a dot product at depths [k, k + 8).
template <class Weight, int kInputs>
POPTRANSFORMER_AVX2 inline void dot_step8(const Weight* const* rows, const float* x, int64_t ldx, int64_t k,
                                                 __m256* sums) {
  __m256 w[kDotRows], inputs[kInputs];
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kDotRows; ++r) w[r] = loaded_once(load8(rows[r] + k));
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kInputs; ++m) inputs[m] = loaded_once(load8(x + m * ldx + k));
  add_products<kInputs>(w, inputs, sums);
}

template <class Weight, int kInputs>
POPTRANSFORMER_AVX2 void dot_inputs_avx2(const DotArguments<Weight>& t) {
  constexpr int64_t kLine = 64 / sizeof(Weight);  // Values per cache line.
  const float* x = t.x;
  const int64_t ldx = t.ldx, depth = t.depth, ahead = t.ahead;
  const Weight* rows[kDotRows];
  __m256 sums[kInputs * kDotRows];
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kDotRows; ++r) rows[r] = t.weights[r];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kInputs * kDotRows; ++i) sums[i] = _mm256_setzero_ps();
  int64_t k = 0;
  for (; k + kLine <= depth; k += kLine) {
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kDotRows; ++r) prefetch(reinterpret_cast<const char*>(rows[r] + k) + ahead);
    POPTRANSFORMER_UNROLL
    for (int64_t i = 0; i < kLine; i += 8) dot_step8<Weight, kInputs>(rows, x, ldx, k + i, sums);
  }
  for (; k + 8 <= depth; k += 8) dot_step8<Weight, kInputs>(rows, x, ldx, k, sums);
  if (k < depth) {
    __m256 w[kDotRows], inputs[kInputs];
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kDotRows; ++r) w[r] = load_part(rows[r] + k, depth - k);
    POPTRANSFORMER_UNROLL
    for (int m = 0; m < kInputs; ++m) inputs[m] = load_part(x + m * ldx + k, depth - k);
    add_products<kInputs>(w, inputs, sums);
  }
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kInputs; ++m) _mm_storeu_ps(t.out[m], sums_of(sums + m * kDotRows));
}

template <class Weight>
void dot_avx2(int inputs, const DotArguments<Weight>& t) {
  if (inputs == 1) return dot_inputs_avx2<Weight, 1>(t);
  dot_inputs_avx2<Weight, 2>(t);
}

}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
