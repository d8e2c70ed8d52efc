// SPDX-License-Identifier: Apache-2.0
// One call of an attention op, shared out among threads. How a result is summed depends on its own row alone, never on
// the threads or on the rest of the batch.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../common/thread_pool.h"
#include "few_tokens.h"

namespace poptransformer {
namespace attention {

/// Steps of up to this many tokens share out their slots, longer ones their tokens.
constexpr int64_t kMaxFewTokens = 4;
/// Query rows per piece of a longer step.
constexpr int64_t kQueryRows = 96;

/// Brings the cache up to date, for a step of many tokens.
template <class Cache>
void update_cache(const Problem<Cache>& p) {
  constexpr int64_t kTokens = 64;
  const int64_t heads = p.batch * p.kv_heads, blocks = (p.tokens + kTokens - 1) / kTokens;
  const bool copies = p.present_key != p.past_key || p.present_value != p.past_value;
  const int64_t values = heads * (copies ? p.slots : p.tokens) * p.head_dim;
  ThreadPool::run_for(values, [&](int part, int parts) {
    const Range mine = share(heads * blocks, part, parts);
    float* rotated = scratch<float>(Scratch::kOwn, p.head_dim);
    for (int64_t index = mine.begin; index < mine.end; ++index) {
      const int64_t row = index / blocks / p.kv_heads, head = index / blocks % p.kv_heads, block = index % blocks;
      copy_past(p, row, head, p.slots * block / blocks, p.slots * (block + 1) / blocks);
      write_tokens(p, row, head, block * kTokens, std::min((block + 1) * kTokens, p.tokens), rotated);
    }
  });
}

/// Attends to all slots that tokens [token, token + tokens) of one row see, for one kv head.
template <class Cache>
void attend_block(const Problem<Cache>& p, int64_t row, int64_t head, int64_t token, int64_t tokens) {
  const int64_t rows = tokens * p.group(), width = p.width();
  float* query = scratch<float>(Scratch::kOwnResult, rows * width + Sums::size(rows, width));
  const Piece<Cache> piece{p, row, head, token, tokens, 0, p.seen_by(row, token + tokens - 1), query};
  const Sums sums = Sums::at(query + rows * width, rows, width);
  gather_query(piece, query);
  ManyRows<Cache>(piece, sums).run();
  for (int64_t r = 0; r < rows; ++r) {
    const float factor = kUnit<Cache> / sums.states[r].total;
    Kernels<Cache>::pick().scale(sums.sums + r * width, factor, p.head_dim, p.output + piece.offset(r));
  }
}

/// A step of many tokens. Pieces are blocks of tokens, the longest (latest) first.
template <class Cache>
void attend_many_tokens(const Problem<Cache>& p) {
  const int64_t heads = p.batch * p.kv_heads;
  int64_t block = std::max<int64_t>(kQueryRows / p.group(), 1), slots = 0;
  const int64_t pieces_wanted = 2 * ThreadPool::instance().get_threads();
  while (block > 1 && (p.tokens + block - 1) / block * heads < pieces_wanted) block /= 2;
  for (int64_t row = 0; row < p.batch; ++row) slots += p.length(row);
  const int64_t blocks = (p.tokens + block - 1) / block;
  std::atomic<int64_t> next{0};
  ThreadPool::run_for(2 * slots * p.tokens * p.heads * p.head_dim, [&](int, int) {
    for (int64_t index = next.fetch_add(1); index < blocks * heads; index = next.fetch_add(1)) {
      const int64_t token = (blocks - 1 - index / heads) * block;
      attend_block(p, index % heads / p.kv_heads, index % p.kv_heads, token, std::min(block, p.tokens - token));
    }
  });
}

template <class Cache>
void attend(const Problem<Cache>& p) {
  if (p.tokens <= kMaxFewTokens) return FewTokens<Cache>(p).run();
  update_cache(p);
  if (p.head_dim > 0) attend_many_tokens(p);
}

}  // namespace attention
}  // namespace poptransformer
