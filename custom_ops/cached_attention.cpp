// SPDX-License-Identifier: Apache-2.0
// CachedAttention: writes a step's keys and values into the cache and attends to it.
//
//   query [B, L, N*H], key, value [B, L, K*H], past_key, past_value [B, K, S, H], past_lengths [B] int64,
//   optionally prefix_lengths [B] int64 -> output [B, L, N*H], present_key and present_value [B, K, S, H]
//
// The caches are float32, float16, or, with cache_format = "e4m3fn", uint8: E4M3FN's codes, rounded to nearest even,
// saturating at 448. Everything else is float32.
// Token i of row b goes to slot past_lengths[b] + i and sees the slots up to that one, and all slots before
// prefix_lengths[b]: a prefix whose tokens see each other both ways must come in one step. Query head n uses kv head
// n / (N / K). A present output bound to the buffer of its past input is updated in place; else the past is copied.
#include "attention/attention_op.h"

namespace poptransformer {

template void attention::attend(const Problem<float>&);
template void attention::attend(const Problem<Float16>&);
template void attention::attend(const Problem<attention::Float8>&);

namespace {

class CachedAttention : public attention::AttentionOp {
 public:
  static OpSpec spec() {
    return {"CachedAttention",
            {{"query", kFloat32},
             {"key", kFloat32},
             {"value", kFloat32},
             {"past_key", kAnyType},
             {"past_value", kAnyType},
             {"past_lengths", kInt64},
             {"prefix_lengths", kInt64, kOptional}},
            {{"output", kFloat32}, {"present_key", kAnyType}, {"present_value", kAnyType}}};
  }

  using AttentionOp::AttentionOp;

  void compute(Call& call) const {
    run(call,
        {call.input(0), call.input(1), call.input(2), call.input(3), call.input(4), call.input(5), call.input(6)}, {});
  }
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(CachedAttention)

}  // namespace poptransformer
