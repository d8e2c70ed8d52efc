// SPDX-License-Identifier: Apache-2.0
// One call of an attention op, and how it changes the cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace poptransformer {
namespace attention {

/// Inputs and outputs as the ops' .cpp files describe them; all sizes by name.
template <class Cache>
struct Problem {
  const float *query, *key, *value;
  const Cache *past_key, *past_value;
  const int64_t* past_lengths;
  const int64_t* prefix_lengths;  ///< Null where attention is causal throughout.
  float* output;
  Cache *present_key, *present_value;
  int64_t batch, tokens, heads, kv_heads, slots, head_dim;
  float scale;
  Rotary rotary;

  int64_t group() const { return heads / kv_heads; }
  /// Columns of a padded row of fp32.
  int64_t width() const { return round_up(head_dim, kWidth); }
  /// Where the cache of one row's kv head starts.
  int64_t cache_offset(int64_t row, int64_t head) const { return (row * kv_heads + head) * slots * head_dim; }
  /// Slots of a row that are in use after the step; its last token sees them all.
  int64_t length(int64_t row) const { return past_lengths[row] + tokens; }
  /// Slots that a token of a row sees: those up to its own, and all of the prefix.
  int64_t seen_by(int64_t row, int64_t token) const {
    const int64_t up_to_own = past_lengths[row] + token + 1;
    return prefix_lengths == nullptr ? up_to_own : std::max(up_to_own, prefix_lengths[row]);
  }
  /// The rotation of one token.
  Rotary rotary_of(int64_t row, int64_t token) const {
    const int64_t offset = (row * tokens + token) * (rotary.dim / 2);
    return {rotary.cos + offset, rotary.sin + offset, rotary.dim, rotary.interleaved};
  }
};

/// present = past in slots [begin, end) of one kv head, but not in those of the step's tokens.
template <class Cache>
void copy_past(const Problem<Cache>& p, int64_t row, int64_t head, int64_t begin, int64_t end) {
  const int64_t offset = p.cache_offset(row, head);
  const auto copy = [&](const Cache* past, Cache* present, int64_t first, int64_t last) {
    if (past == present || first >= last) return;
    std::copy(past + offset + first * p.head_dim, past + offset + last * p.head_dim,
              present + offset + first * p.head_dim);
  };
  const int64_t before = std::min(end, p.past_lengths[row]), behind = std::max(begin, p.length(row));
  copy(p.past_key, p.present_key, begin, before);
  copy(p.past_key, p.present_key, behind, end);
  copy(p.past_value, p.present_value, begin, before);
  copy(p.past_value, p.present_value, behind, end);
}

/// How many tokens ahead a step's vectors are asked for: a head's lie too far apart for the processor to guess.
constexpr int64_t kTokensAhead = 4;

/// Puts tokens [first, last) of a step into their slots, for one kv head. `rotated` has room for one head.
template <class Cache>
void write_tokens(const Problem<Cache>& p, int64_t row, int64_t head, int64_t first, int64_t last, float* rotated) {
  const auto& kernels = Kernels<Cache>::pick();
  const size_t row_bytes = static_cast<size_t>(p.head_dim) * sizeof(float);
  for (int64_t token = first; token < last; ++token) {
    const int64_t source = ((row * p.tokens + token) * p.kv_heads + head) * p.head_dim;
    const int64_t target = p.cache_offset(row, head) + (p.past_lengths[row] + token) * p.head_dim;
    const float* key = p.key + source;
    const int64_t ahead = kTokensAhead * p.kv_heads * p.head_dim;
    if (token + kTokensAhead < last) {
      prefetch(key + ahead, row_bytes);
      prefetch(p.value + source + ahead, row_bytes);
    }
    if (p.rotary.dim > 0) {
      kernels.rotate({key, p.head_dim, p.rotary_of(row, token), 1.0f, rotated});
      key = rotated;
    }
    kernels.narrow_row(key, p.head_dim, p.present_key + target);
    kernels.narrow_row(p.value + source, p.head_dim, p.present_value + target);
  }
}

}  // namespace attention
}  // namespace poptransformer
