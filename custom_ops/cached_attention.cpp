// SPDX-License-Identifier: Apache-2.0
// CachedAttention: writes a step's keys and values into the cache and attends to it causally.
//
//   query [B, L, N*H], key, value [B, L, K*H], past_key, past_value [B, K, S, H], past_lengths [B] int64
//   -> output [B, L, N*H], present_key and present_value [B, K, S, H]
//
// Token i of row b goes to slot past_lengths[b] + i and sees the slots up to that one. Query head n uses kv head
// n / (N / K). A present output bound to the buffer of its past input is updated in place; else the past is copied.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <string>

#include "common/attention_piece.h"
#include "common/ort_op.h"
#include "common/scratch.h"
#include "common/thread_pool.h"

namespace poptransformer {
namespace {

/// Steps of up to this many tokens have too few queries to share out: their slots are shared out instead.
constexpr int64_t kMaxSplitTokens = 4;
/// Slots per piece then. Fixed, so that a result does not depend on the number of threads.
constexpr int64_t kSplitSlots = 128;
/// Query rows per piece otherwise.
constexpr int64_t kQueryRows = 48;
/// From this many query rows per key on, transposing the keys pays.
constexpr int64_t kPanelQueryRows = 12;

struct Problem {
  const float *query, *key, *value;
  const float *past_key, *past_value;
  const int64_t* past_lengths;
  float *output, *present_key, *present_value;
  int64_t batch, tokens, heads, kv_heads, slots, head_dim;
  float scale;

  int64_t group() const { return heads / kv_heads; }
  /// Where the cache of one row's kv head starts.
  int64_t cache_offset(int64_t row, int64_t head) const { return (row * kv_heads + head) * slots * head_dim; }
  /// Slots that the last token of a row sees.
  int64_t length(int64_t row) const { return past_lengths[row] + tokens; }
  int64_t longest() const {
    int64_t most = 0;
    for (int64_t row = 0; row < batch; ++row) most = std::max(most, length(row));
    return most;
  }
};

/// present = past, with the step's tokens in their slots, for one row and kv head.
void write_head(const Problem& p, int64_t row, int64_t head, const float* past, const float* step, float* present) {
  const int64_t offset = p.cache_offset(row, head);
  if (present != past) std::copy_n(past + offset, p.slots * p.head_dim, present + offset);
  float* target = present + offset + p.past_lengths[row] * p.head_dim;
  for (int64_t token = 0; token < p.tokens; ++token) {
    const float* source = step + ((row * p.tokens + token) * p.kv_heads + head) * p.head_dim;
    std::copy_n(source, p.head_dim, target + token * p.head_dim);
  }
}

void write_cache(const Problem& p) {
  const int64_t heads = p.batch * p.kv_heads;
  const bool copies = p.present_key != p.past_key || p.present_value != p.past_value;
  const int64_t values = heads * (copies ? p.slots : p.tokens) * p.head_dim;
  ThreadPool::run_for(values, [&](int part, int parts) {
    const Range mine = share(heads, part, parts);
    for (int64_t index = mine.begin; index < mine.end; ++index) {
      const int64_t row = index / p.kv_heads, head = index % p.kv_heads;
      write_head(p, row, head, p.past_key, p.key, p.present_key);
      write_head(p, row, head, p.past_value, p.value, p.present_value);
    }
  });
}

/// The piece of `tokens` tokens from `token` on over slots [begin, end), for one row and kv head.
AttentionPiece make_piece(const Problem& p, int64_t row, int64_t head, int64_t token, int64_t tokens, int64_t begin,
                          int64_t end) {
  const int64_t stride = p.heads * p.head_dim;
  const int64_t cache = p.cache_offset(row, head);
  const float* query = p.query + (row * p.tokens + token) * stride + head * p.group() * p.head_dim;
  return {query, stride, p.present_key + cache, p.present_value + cache, p.group(), tokens, p.head_dim, begin, end,
          p.past_lengths[row] + token + 1, p.scale, p.tokens * p.group() >= kPanelQueryRows};
}

/// Where query row `r` (token r / group, head r % group of the kv head) has its output.
float* output_row(const Problem& p, int64_t row, int64_t head, int64_t token, int64_t r) {
  const int64_t query_head = head * p.group() + r % p.group();
  return p.output + ((row * p.tokens + token + r / p.group()) * p.heads + query_head) * p.head_dim;
}

/// Prefill: pieces are blocks of tokens, the longest (latest) first, each over all slots it sees.
void attend_by_tokens(const Problem& p, int64_t block, std::atomic<int64_t>& next) {
  const int64_t blocks = (p.tokens + block - 1) / block;
  const int64_t heads = p.batch * p.kv_heads;
  const int64_t width = round_up(p.head_dim, kTileColumns);
  float* memory = scratch<float>(Scratch::kOwnResult, attention_sums_size(block * p.group(), p.head_dim));
  for (int64_t index = next.fetch_add(1); index < blocks * heads; index = next.fetch_add(1)) {
    const int64_t row = index % heads / p.kv_heads, head = index % p.kv_heads;
    const int64_t token = (blocks - 1 - index / heads) * block;
    const int64_t tokens = std::min(block, p.tokens - token);
    const AttentionPiece piece = make_piece(p, row, head, token, tokens, 0, p.past_lengths[row] + token + tokens);
    const AttentionSums sums = attention_sums_at(memory, piece.rows(), p.head_dim);
    AttentionWorker(piece, sums).run();
    for (int64_t r = 0; r < piece.rows(); ++r) {
      float* out = output_row(p, row, head, token, r);
      for (int64_t i = 0; i < p.head_dim; ++i) out[i] = sums.sums[r * width + i] / sums.total[r];
    }
  }
}

/// Decode: pieces are runs of kSplitSlots slots; their sums are merged afterwards.
void attend_by_slots(const Problem& p, int64_t splits, float* memory, std::atomic<int64_t>& next) {
  const int64_t rows = p.tokens * p.group();
  const int64_t size = attention_sums_size(rows, p.head_dim);
  const int64_t pieces = p.batch * p.kv_heads * splits;
  for (int64_t index = next.fetch_add(1); index < pieces; index = next.fetch_add(1)) {
    const int64_t head = index / splits % p.kv_heads, row = index / splits / p.kv_heads;
    const int64_t begin = index % splits * kSplitSlots, end = std::min(begin + kSplitSlots, p.length(row));
    if (begin >= end) continue;
    const AttentionPiece piece = make_piece(p, row, head, 0, p.tokens, begin, end);
    AttentionWorker(piece, attention_sums_at(memory + index * size, rows, p.head_dim)).run();
  }
}

/// Brings the sums of one row and kv head to their common peak, in the order of the slots, and divides by the total.
void merge_head(const Problem& p, int64_t row, int64_t head, float* memory) {
  const int64_t rows = p.tokens * p.group();
  const int64_t size = attention_sums_size(rows, p.head_dim), width = round_up(p.head_dim, kTileColumns);
  const int64_t splits = (p.length(row) + kSplitSlots - 1) / kSplitSlots;
  const auto at = [&](int64_t split) {
    return attention_sums_at(memory + split * size, rows, p.head_dim);
  };
  for (int64_t r = 0; r < rows; ++r) {
    float peak = at(0).peak[r], total = 0.0f;
    for (int64_t split = 1; split < splits; ++split) peak = std::max(peak, at(split).peak[r]);
    float* out = output_row(p, row, head, 0, r);
    std::fill_n(out, p.head_dim, 0.0f);
    for (int64_t split = 0; split < splits; ++split) {
      const AttentionSums sums = at(split);
      if (sums.total[r] == 0.0f) continue;
      const float weight = std::exp(sums.peak[r] - peak);
      total += weight * sums.total[r];
      for (int64_t i = 0; i < p.head_dim; ++i) out[i] += weight * sums.sums[r * width + i];
    }
    for (int64_t i = 0; i < p.head_dim; ++i) out[i] /= total;
  }
}

void attend(const Problem& p) {
  std::atomic<int64_t> next{0};
  const int64_t longest = p.longest();
  const int64_t work = p.batch * p.heads * p.tokens * longest * p.head_dim;
  if (p.tokens > kMaxSplitTokens) {
    int64_t block = std::max<int64_t>(kQueryRows / p.group(), 1);
    const int64_t pieces_wanted = 2 * ThreadPool::instance().get_threads();
    while (block > 1 && (p.tokens + block - 1) / block * p.batch * p.kv_heads < pieces_wanted) block /= 2;
    return ThreadPool::run_for(work, [&](int, int) { attend_by_tokens(p, block, next); });
  }
  const int64_t splits = (longest + kSplitSlots - 1) / kSplitSlots, heads = p.batch * p.kv_heads;
  const int64_t size = splits * attention_sums_size(p.tokens * p.group(), p.head_dim);
  float* memory = scratch<float>(Scratch::kShared, heads * size);
  ThreadPool::run_for(work, [&](int, int) { attend_by_slots(p, splits, memory, next); });
  ThreadPool::run_for(heads * size, [&](int part, int parts) {
    const Range mine = share(heads, part, parts);
    for (int64_t index = mine.begin; index < mine.end; ++index) {
      merge_head(p, index / p.kv_heads, index % p.kv_heads, memory + index * size);
    }
  });
}

class CachedAttention {
 public:
  static OpSpec spec() {
    return {"CachedAttention",
            {{"query", kFloat32},
             {"key", kFloat32},
             {"value", kFloat32},
             {"past_key", kFloat32},
             {"past_value", kFloat32},
             {"past_lengths", kInt64}},
            {{"output", kFloat32}, {"present_key", kFloat32}, {"present_value", kFloat32}}};
  }

  explicit CachedAttention(const Attributes& attributes)
      : heads_(attributes.get_int("num_heads")),
        kv_heads_(attributes.get_int("num_kv_heads")),
        scale_(attributes.get_float("scale")) {
    if (kv_heads_ < 1) attributes.reject("num_kv_heads", "1 or more", kv_heads_);
    if (heads_ < 1 || heads_ % kv_heads_ != 0) {
      attributes.reject("num_heads", "a multiple of num_kv_heads = " + std::to_string(kv_heads_), heads_);
    }
    if (!std::isfinite(scale_)) attributes.reject("scale", "finite", scale_);
  }

  void compute(Call& call) const {
    const Tensor query = call.input(0), key = call.input(1), value = call.input(2);
    const Tensor past_key = call.input(3), past_value = call.input(4), past_lengths = call.input(5);
    past_key.expect_shape({"B", kv_heads_, "S", "H"});
    const Shape& cache = past_key.shape;
    const int64_t batch = cache[0], slots = cache[2], head_dim = cache[3];
    past_value.expect_shape({batch, kv_heads_, slots, head_dim});
    query.expect_shape({batch, "L", heads_ * head_dim});
    const int64_t tokens = query.shape[1];
    key.expect_shape({batch, tokens, kv_heads_ * head_dim});
    value.expect_shape({batch, tokens, kv_heads_ * head_dim});
    past_lengths.expect_shape({batch});
    check_lengths(call, past_lengths, batch, tokens, slots);
    const Problem problem{query.as<float>(), key.as<float>(), value.as<float>(), past_key.as<float>(),
                          past_value.as<float>(), past_lengths.as<int64_t>(), call.output<float>(0, query.shape),
                          call.output<float>(1, cache), call.output<float>(2, cache), batch, tokens, heads_,
                          kv_heads_, slots, head_dim, scale_};
    write_cache(problem);
    if (query.shape.size() > 0) attend(problem);
  }

 private:
  /// Checked for all rows before anything is written.
  static void check_lengths(const Call& call, const Tensor& past_lengths, int64_t batch, int64_t tokens,
                            int64_t slots) {
    for (int64_t row = 0; row < batch; ++row) {
      const int64_t past = past_lengths.as<int64_t>()[row];
      if (past < 0) call.fail("past_lengths[", row, "] must be 0 or more, found ", past);
      if (past > slots - tokens) {
        call.fail("past_lengths[", row, "] = ", past, " plus ", tokens, " new tokens must fit the cache of ", slots,
                  " slots; raise max_length or shorten the input");
      }
    }
  }

  int64_t heads_, kv_heads_;
  float scale_;
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(CachedAttention)

}  // namespace poptransformer
