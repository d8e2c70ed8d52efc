// SPDX-License-Identifier: Apache-2.0
// The two products of attention for few query rows, over cached keys and values as they lie, each read once: what a
// decode step is made of. Portable versions.
#pragma once

#include <algorithm>

#include "cache_value.h"

namespace poptransformer {
namespace attention {

constexpr int64_t kWidth = 16;  ///< Rows of fp32 work memory are padded to multiples of this, with zeros.

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// `rows` rows of `few` meet `count` cached rows, `head_dim` values each.
///
/// score: out[r][j] = few[r] . cached[j], where few has `head_dim` columns padded to kWidth, out a multiple of 4;
/// weigh: out[r] = sum over j of few[r][j] * cached[j], where out has `head_dim` columns padded to kWidth.
template <class Cache>
struct DotArguments {
  int64_t rows;
  const float* few;
  int64_t ld_few;
  const Cache* cached;
  int64_t head_dim, count;
  float* out;
  int64_t ld_out;
  const Cache* ahead;  ///< As many cached rows, or null, to ask the memory for meanwhile.
};

template <class Cache>
void score_portable(const DotArguments<Cache>& d) {
  for (int64_t r = 0; r < d.rows; ++r) {
    const float* query = d.few + r * d.ld_few;
    for (int64_t j = 0; j < d.count; ++j) {
      const Cache* key = d.cached + j * d.head_dim;
      constexpr int kLanes = 8;
      float lanes[kLanes] = {};
      int64_t k = 0;
      for (; k + kLanes <= d.head_dim; k += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += widen(key[k + lane]) * query[k + lane];
      }
      for (int lane = 0; k < d.head_dim; ++k, ++lane) lanes[lane] += widen(key[k]) * query[k];
      for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
      }
      d.out[r * d.ld_out + j] = lanes[0];
    }
  }
}

template <class Cache>
void weigh_portable(const DotArguments<Cache>& d) {
  for (int64_t r = 0; r < d.rows; ++r) {
    float* out = d.out + r * d.ld_out;
    std::fill_n(out, round_up(d.head_dim, kWidth), 0.0f);
    for (int64_t j = 0; j < d.count; ++j) {
      const Cache* value = d.cached + j * d.head_dim;
      const float weight = d.few[r * d.ld_few + j];
      for (int64_t k = 0; k < d.head_dim; ++k) out[k] += weight * widen(value[k]);
    }
  }
}

/// Asks for one cached row of those ahead.
template <class Cache>
inline void prefetch_ahead(const DotArguments<Cache>& d, int64_t row) {
  if (d.ahead == nullptr) return;
  const char* begin = reinterpret_cast<const char*>(d.ahead + row * d.head_dim);
  for (int64_t byte = 0; byte < d.head_dim * static_cast<int64_t>(sizeof(Cache)); byte += 64) prefetch(begin + byte);
}

/// Calls functions[n - 1] for runs of n <= kMost rows, as even as they can be: more would leave no registers. The first
/// run asks for what is ahead.
template <int kMost, class Cache>
void by_few_rows(const DotArguments<Cache>& all, void (*const (&functions)[kMost])(const DotArguments<Cache>&)) {
  const int64_t runs = (all.rows + kMost - 1) / kMost;
  DotArguments<Cache> part = all;
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t first = all.rows * run / runs;
    part.rows = all.rows * (run + 1) / runs - first;
    part.few = all.few + first * all.ld_few;
    part.out = all.out + first * all.ld_out;
    functions[part.rows - 1](part);
    part.ahead = nullptr;
  }
}

}  // namespace attention
}  // namespace poptransformer
