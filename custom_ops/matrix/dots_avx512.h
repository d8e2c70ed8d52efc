// SPDX-License-Identifier: Apache-2.0
// AVX-512 version of dots.h; included by it.
#pragma once

#include "dots_avx2.h"

#if POPTRANSFORMER_X86

namespace poptransformer {

/// The sums of four vectors, in order.
POPTRANSFORMER_AVX512 inline __m128 sums_of(const __m512* v) {
  __m256 halves[4];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 4; ++i) {
    halves[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
  }
  return sums_of(halves);
}

/// Makes GCC load a value once: it would rather repeat the load as a memory operand of every instruction.
POPTRANSFORMER_AVX512 inline __m512 loaded_once(__m512 value) {
  asm("" : "+v"(value));
  return value;
}

/// sums[m * 4 + r] += w[r] * x[m]
template <int kInputs>
POPTRANSFORMER_AVX512 inline void add_products(const __m512* w, const __m512* x, __m512* sums) {
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kInputs; ++m) {
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kDotRows; ++r) sums[m * kDotRows + r] = _mm512_fmadd_ps(w[r], x[m], sums[m * kDotRows + r]);
  }
}

/// The part of a dot product at depths [k, k + 16).
template <class Weight, int kInputs>
POPTRANSFORMER_AVX512 inline void dot_step16(const Weight* const* rows, const float* x, int64_t ldx, int64_t k,
                                                   __m512* sums) {
  __m512 w[kDotRows], inputs[kInputs];
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kDotRows; ++r) w[r] = loaded_once(load16(rows[r] + k));
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kInputs; ++m) inputs[m] = loaded_once(load16(x + m * ldx + k));
  add_products<kInputs>(w, inputs, sums);
}

template <class Weight, int kInputs>
POPTRANSFORMER_AVX512 void dot_inputs_avx512(const DotArguments<Weight>& t) {
  constexpr int64_t kLine = 64 / sizeof(Weight);  // Values per cache line.
  const float* x = t.x;
  const int64_t ldx = t.ldx, depth = t.depth, ahead = t.ahead;
  const Weight* rows[kDotRows];
  __m512 sums[kInputs * kDotRows];
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kDotRows; ++r) rows[r] = t.weights[r];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kInputs * kDotRows; ++i) sums[i] = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + kLine <= depth; k += kLine) {
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kDotRows; ++r) prefetch(reinterpret_cast<const char*>(rows[r] + k) + ahead);
    POPTRANSFORMER_UNROLL
    for (int64_t i = 0; i < kLine; i += 16) dot_step16<Weight, kInputs>(rows, x, ldx, k + i, sums);
  }
  for (; k + 16 <= depth; k += 16) dot_step16<Weight, kInputs>(rows, x, ldx, k, sums);
  if (k < depth) {
    __m512 w[kDotRows], inputs[kInputs];
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kDotRows; ++r) w[r] = load_part16(rows[r] + k, depth - k);
    POPTRANSFORMER_UNROLL
    for (int m = 0; m < kInputs; ++m) inputs[m] = load_part16(x + m * ldx + k, depth - k);
    add_products<kInputs>(w, inputs, sums);
  }
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kInputs; ++m) _mm_storeu_ps(t.out[m], sums_of(sums + m * kDotRows));
}

template <class Weight>
void dot_avx512(int inputs, const DotArguments<Weight>& t) {
  switch (inputs) {
    case 1: return dot_inputs_avx512<Weight, 1>(t);
    case 2: return dot_inputs_avx512<Weight, 2>(t);
    case 3: return dot_inputs_avx512<Weight, 3>(t);
    default: return dot_inputs_avx512<Weight, 4>(t);
  }
}

}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
