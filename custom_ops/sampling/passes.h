// SPDX-License-Identifier: Apache-2.0
// The passes of Sample over a whole row. Each is written once, in loops that the compiler vectorises, and compiled
// twice: for the processor the library is built for, and for AVX2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../common/exp.h"
#include "../common/simd.h"

namespace poptransformer {

/// A row is cut into blocks of this many tokens; their maxima and sums tell which of them to look into.
constexpr int64_t kBlock = 128;

inline int64_t block_count(int64_t size) { return (size + kBlock - 1) / kBlock; }

#define POPTRANSFORMER_INLINE __attribute__((always_inline)) inline

/// Folds `lanes` into lanes[0].
template <int kLanes, class Value, class Combine>
POPTRANSFORMER_INLINE Value fold(Value (&lanes)[kLanes], Combine combine) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] = combine(lanes[lane], lanes[lane + half]);
  }
  return lanes[0];
}

/// maxima[b] = largest x[i] / divisor of block b. If any quotient is NaN, so is the last of the maxima.
/// Where `kWrite`, the quotients go to `scores`; otherwise nothing is divided.
template <bool kWrite>
POPTRANSFORMER_INLINE void block_maxima(const float* x, int64_t size, float divisor, float* scores, float* maxima) {
  constexpr int kLanes = 32;  // Four independent chains of AVX2 vectors hide the latency of max.
  uint32_t bad[kLanes] = {};
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, size);
    float lanes[kLanes];
    std::fill_n(lanes, kLanes, -std::numeric_limits<float>::infinity());
    const auto take = [&](int64_t i, int lane) __attribute__((always_inline)) {
      const float score = kWrite ? x[i] / divisor : x[i];
      if (kWrite) scores[i] = score;
      lanes[lane] = score > lanes[lane] ? score : lanes[lane];
      bad[lane] |= score == score ? 0u : 1u;
    };
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) take(i + lane, lane);
    }
    for (int lane = 0; i < end; ++i, ++lane) take(i, lane);
    *maxima++ = fold(lanes, [](float a, float b) { return b > a ? b : a; });
  }
  if (fold(bad, [](uint32_t a, uint32_t b) { return a | b; })) maxima[-1] = std::numeric_limits<float>::quiet_NaN();
}

/// weights[i] = exp(scores[i] - maximum).
POPTRANSFORMER_INLINE void exponentials(const float* scores, int64_t size, float maximum, float* weights) {
  for (int64_t i = 0; i < size; ++i) weights[i] = exp_nonpositive(scores[i] - maximum);
}

/// sums[b] = sum of block b. Double: what the few likeliest tokens leave is a difference of such sums.
POPTRANSFORMER_INLINE void block_sums(const float* weights, int64_t size, double* sums) {
  constexpr int kLanes = 16;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, size);
    double lanes[kLanes] = {};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += weights[i + lane];
    }
    for (int lane = 0; i < end; ++i, ++lane) lanes[lane] += weights[i];
    *sums++ = fold(lanes, [](double a, double b) { return a + b; });
  }
}

#if POPTRANSFORMER_X86
#define POPTRANSFORMER_COMPILE_TWICE(name, parameters, body) \
  inline void name##_portable parameters { body; }           \
  POPTRANSFORMER_AVX2 inline void name##_avx2 parameters { body; }
#else
#define POPTRANSFORMER_COMPILE_TWICE(name, parameters, body) \
  inline void name##_portable parameters { body; }
#endif

POPTRANSFORMER_COMPILE_TWICE(maxima_of_logits, (const float* logits, int64_t size, float* maxima),
                             block_maxima<false>(logits, size, 1.0f, nullptr, maxima))
POPTRANSFORMER_COMPILE_TWICE(maxima_of_scores,
                             (const float* logits, int64_t size, float divisor, float* scores, float* maxima),
                             block_maxima<true>(logits, size, divisor, scores, maxima))
POPTRANSFORMER_COMPILE_TWICE(weigh, (const float* scores, int64_t size, float maximum, float* weights),
                             exponentials(scores, size, maximum, weights))
POPTRANSFORMER_COMPILE_TWICE(sum_blocks, (const float* weights, int64_t size, double* sums),
                             block_sums(weights, size, sums))

}  // namespace poptransformer
