// SPDX-License-Identifier: Apache-2.0
// AVX2 versions of tiles.h; included by it.
#pragma once

#include "tiles.h"

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

/// How far ahead the rows of a dot product are asked for: the processor's own prefetcher stops at each page, and
/// between two passes over a row it has nothing to do (measured with 4 inputs: 11 GB/s without, 19 with it).
constexpr int64_t kPrefetchBytes = 4096;

/// The part of a dot product at depths [k, k + 8).
template <class Weight, int kInputs>
POPTRANSFORMER_AVX2 inline void dot_step(const Weight* const* rows, const float* x, int64_t ldx, int64_t k,
                                         __m256* sums) {
  __m256 w[kDotRows], inputs[kInputs];
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kDotRows; ++r) w[r] = loaded_once(load8(rows[r] + k));
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kInputs; ++m) inputs[m] = loaded_once(load8(x + m * ldx + k));
  add_products<kInputs>(w, inputs, sums);
}

template <class Weight, int kInputs>
POPTRANSFORMER_AVX2 void dot_inputs_avx2(const Weight* const* weights, const float* x, int64_t ldx, int64_t depth,
                                         float (*out)[kDotRows]) {
  constexpr int64_t kLine = 64 / sizeof(Weight);  // Values per cache line.
  constexpr int64_t kAhead = kPrefetchBytes / sizeof(Weight);
  const Weight* rows[kDotRows];
  __m256 sums[kInputs * kDotRows];
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kDotRows; ++r) rows[r] = weights[r];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kInputs * kDotRows; ++i) sums[i] = _mm256_setzero_ps();
  int64_t k = 0;
  for (; k + kLine <= depth; k += kLine) {
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kDotRows; ++r) prefetch(rows[r] + k + kAhead);
    POPTRANSFORMER_UNROLL
    for (int64_t i = 0; i < kLine; i += 8) dot_step<Weight, kInputs>(rows, x, ldx, k + i, sums);
  }
  for (; k + 8 <= depth; k += 8) dot_step<Weight, kInputs>(rows, x, ldx, k, sums);
  if (k < depth) {
    __m256 w[kDotRows], inputs[kInputs];
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kDotRows; ++r) w[r] = load_part(rows[r] + k, depth - k);
    POPTRANSFORMER_UNROLL
    for (int m = 0; m < kInputs; ++m) inputs[m] = load_part(x + m * ldx + k, depth - k);
    add_products<kInputs>(w, inputs, sums);
  }
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kInputs; ++m) _mm_storeu_ps(out[m], sums_of(sums + m * kDotRows));
}

template <class Weight>
void dot_avx2(const Weight* const* weights, const float* x, int64_t ldx, int inputs, int64_t depth,
              float (*out)[kDotRows]) {
  if (inputs == 1) return dot_inputs_avx2<Weight, 1>(weights, x, ldx, depth, out);
  dot_inputs_avx2<Weight, 2>(weights, x, ldx, depth, out);
}

/// Transposes 8 x 8 values in place.
POPTRANSFORMER_AVX2 inline void transpose8(__m256 rows[8]) {
  __m256 pairs[8], quads[8];
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 2; ++i) {
    quads[4 * i] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0x44);
    quads[4 * i + 1] = _mm256_shuffle_ps(pairs[4 * i], pairs[4 * i + 2], 0xee);
    quads[4 * i + 2] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0x44);
    quads[4 * i + 3] = _mm256_shuffle_ps(pairs[4 * i + 1], pairs[4 * i + 3], 0xee);
  }
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

/// Packs 8 weight rows into one half of a panel; all 8 depths of a step, or its first `rest`.
template <class Weight>
POPTRANSFORMER_AVX2 void pack_rows8_avx2(const Weight* weights, int64_t ld, int64_t depth, float* panel) {
  __m256 block[8];
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) {
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < 8; ++r) block[r] = load8(weights + r * ld + k);
    transpose8(block);
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(panel + (k + i) * kTileColumns, block[i]);
  }
  if (k == depth) return;
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < 8; ++r) block[r] = load_part(weights + r * ld + k, depth - k);
  transpose8(block);
  for (int i = 0; i < depth - k; ++i) _mm256_storeu_ps(panel + (k + i) * kTileColumns, block[i]);
}

template <class Weight>
void pack_avx2(const Weight* weights, int64_t ld, int rows, int64_t depth, float* panel) {
  if (rows < kTileColumns) return pack_portable(weights, ld, rows, depth, panel);
  pack_rows8_avx2(weights, ld, depth, panel);
  pack_rows8_avx2(weights + 8 * ld, ld, depth, panel + 8);
}

template <int kRows>
POPTRANSFORMER_AVX2 void tile_rows_avx2(const TileArguments& t) {
  __m256 left[kRows], right[kRows];
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    left[r] = _mm256_loadu_ps(t.start + r * t.ld_start);
    right[r] = _mm256_loadu_ps(t.start + r * t.ld_start + 8);
  }
  const float* a = t.a;
  const float* b = t.b;
  const int64_t lda = t.lda, ldb = t.ldb;
  for (int64_t k = 0; k < t.depth; ++k, b += ldb) {
    const __m256 b_left = _mm256_loadu_ps(b), b_right = _mm256_loadu_ps(b + 8);
    POPTRANSFORMER_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const __m256 value = _mm256_broadcast_ss(a + r * lda + k);
      left[r] = _mm256_fmadd_ps(value, b_left, left[r]);
      right[r] = _mm256_fmadd_ps(value, b_right, right[r]);
    }
  }
  POPTRANSFORMER_UNROLL
  for (int r = 0; r < kRows; ++r) {
    _mm256_storeu_ps(t.c + r * t.ldc, left[r]);
    _mm256_storeu_ps(t.c + r * t.ldc + 8, right[r]);
  }
}

inline void tile_avx2(int rows, const TileArguments& t) {
  switch (rows) {
    case 1: return tile_rows_avx2<1>(t);
    case 2: return tile_rows_avx2<2>(t);
    case 3: return tile_rows_avx2<3>(t);
    case 4: return tile_rows_avx2<4>(t);
    case 5: return tile_rows_avx2<5>(t);
    default: return tile_rows_avx2<6>(t);
  }
}

}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
