// SPDX-License-Identifier: Apache-2.0
// RotaryCachedAttention: CachedAttention (cached_attention.cpp) of queries and keys that it rotates first.
//
//   query [B, L, N*H], key, value [B, L, K*H], cos, sin [B, L, R/2], past_key, past_value [B, K, S, H],
//   past_lengths [B] int64, optionally prefix_lengths [B] int64 -> output [B, L, N*H], present_key and present_value [B, K, S, H]
//
// The first R = rotary_dim columns of each head are rotated as ONNX's RotaryEmbedding does it: pairs are halves, or
// neighbours where interleaved = 1. The cache holds rotated keys.
#include "attention/attention_op.h"

namespace poptransformer {
namespace {

class RotaryCachedAttention : public attention::AttentionOp {
 public:
  static OpSpec spec() {
    return {"RotaryCachedAttention",
            {{"query", kFloat32},
             {"key", kFloat32},
             {"value", kFloat32},
             {"cos", kFloat32},
             {"sin", kFloat32},
             {"past_key", kAnyType},
             {"past_value", kAnyType},
             {"past_lengths", kInt64},
             {"prefix_lengths", kInt64, kOptional}},
            {{"output", kFloat32}, {"present_key", kAnyType}, {"present_value", kAnyType}}};
  }

  explicit RotaryCachedAttention(const Attributes& attributes)
      : AttentionOp(attributes), rotary_dim_(attributes.get_int("rotary_dim")) {
    const int64_t interleaved = attributes.get_int("interleaved");
    if (rotary_dim_ < 2 || rotary_dim_ % 2 != 0) attributes.reject("rotary_dim", "even and 2 or more", rotary_dim_);
    if (interleaved != 0 && interleaved != 1) attributes.reject("interleaved", "0 or 1", interleaved);
    interleaved_ = interleaved == 1;
  }

  void compute(Call& call) const {
    const Tensor query = call.input(0), cos = call.input(3), sin = call.input(4), past_key = call.input(5);
    query.expect_shape({"B", "L", "N*H"});
    cos.expect_shape({query.shape[0], query.shape[1], rotary_dim_ / 2});
    sin.expect_shape({query.shape[0], query.shape[1], rotary_dim_ / 2});
    if (past_key.shape.rank == 4 && past_key.shape[3] < rotary_dim_) {
      past_key.reject("[B, K, S, H] with H of rotary_dim = " + std::to_string(rotary_dim_) + " or more",
                      past_key.shape.text());
    }
    run(call, {query, call.input(1), call.input(2), past_key, call.input(6), call.input(7), call.input(8)},
        {cos.as<float>(), sin.as<float>(), rotary_dim_, interleaved_});
  }

 private:
  int64_t rotary_dim_;
  bool interleaved_;
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(RotaryCachedAttention)

}  // namespace poptransformer
