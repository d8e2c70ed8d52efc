// SPDX-License-Identifier: Apache-2.0
// What the attention ops share: attributes, checks of inputs, and the choice by the cache's element type.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "../common/ort_op.h"
#include "attend.h"

namespace poptransformer {
namespace attention {

// Compiled once, in cached_attention.cpp.
extern template void attend(const Problem<float>&);
extern template void attend(const Problem<Float16>&);
extern template void attend(const Problem<Float8>&);

/// The inputs of one call.
struct Inputs {
  Tensor query, key, value, past_key, past_value, past_lengths, prefix_lengths;
};

/// Base of the ops' kernels.
class AttentionOp {
 public:
  explicit AttentionOp(const Attributes& attributes)
      : heads_(attributes.get_int("num_heads")),
        kv_heads_(attributes.get_int("num_kv_heads")),
        scale_(attributes.get_float("scale")) {
    if (kv_heads_ < 1) attributes.reject("num_kv_heads", "1 or more", kv_heads_);
    if (heads_ < 1 || heads_ % kv_heads_ != 0) {
      attributes.reject("num_heads", "a multiple of num_kv_heads = " + std::to_string(kv_heads_), heads_);
    }
    if (!std::isfinite(scale_)) attributes.reject("scale", "finite", scale_);
    const std::string format = attributes.has_string("cache_format") ? attributes.get_string("cache_format") : "";
    if (!format.empty() && format != "e4m3fn") {
      attributes.reject("cache_format", "'' or 'e4m3fn'", "'" + format + "'");
    }
    is_float8_ = !format.empty();
  }

 protected:
  /// Checks everything, then computes the outputs.
  void run(Call& call, const Inputs& in, const Rotary& rotary) const {
    check(call, in);
    switch (in.past_key.type) {
      case kFloat32: return run_on<float>(call, in, rotary);
      case kFloat16: return run_on<Float16>(call, in, rotary);
      default: return run_on<Float8>(call, in, rotary);
    }
  }

 private:
  void check(const Call& call, const Inputs& in) const {
    if (is_float8_) {
      in.past_key.expect_type({kUInt8});
    } else {
      in.past_key.expect_type({kFloat32, kFloat16});
    }
    in.past_value.expect_type({in.past_key.type});
    in.past_key.expect_shape({"B", kv_heads_, "S", "H"});
    const Shape& cache = in.past_key.shape;
    const int64_t batch = cache[0], slots = cache[2], head_dim = cache[3];
    in.past_value.expect_shape({batch, kv_heads_, slots, head_dim});
    in.query.expect_shape({batch, "L", heads_ * head_dim});
    const int64_t tokens = in.query.shape[1];
    in.key.expect_shape({batch, tokens, kv_heads_ * head_dim});
    in.value.expect_shape({batch, tokens, kv_heads_ * head_dim});
    in.past_lengths.expect_shape({batch});
    check_lengths(call, in.past_lengths, batch, tokens, slots);
    if (in.prefix_lengths) check_prefixes(call, in, batch, tokens);
  }

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

  static void check_prefixes(const Call& call, const Inputs& in, int64_t batch, int64_t tokens) {
    in.prefix_lengths.expect_shape({batch});
    for (int64_t row = 0; row < batch; ++row) {
      const int64_t prefix = in.prefix_lengths.as<int64_t>()[row];
      const int64_t length = in.past_lengths.as<int64_t>()[row] + tokens;
      if (prefix < 0 || prefix > length) {
        call.fail("prefix_lengths[", row, "] must be from 0 to the ", length, " tokens of the row so far, found ",
                  prefix);
      }
    }
  }

  template <class Cache>
  void run_on(Call& call, const Inputs& in, const Rotary& rotary) const {
    const Shape &query = in.query.shape, &cache = in.past_key.shape;
    float* output = call.output<float>(0, query);
    Cache* present_key = call.output<Cache>(1, cache);
    Cache* present_value = call.output<Cache>(2, cache);
    attend<Cache>({in.query.as<float>(), in.key.as<float>(), in.value.as<float>(), in.past_key.as<Cache>(),
                   in.past_value.as<Cache>(), in.past_lengths.as<int64_t>(), in.prefix_lengths.as<int64_t>(), output,
                   present_key, present_value, cache[0], query[1], heads_, kv_heads_, cache[2], cache[3], scale_, rotary});
  }

  int64_t heads_, kv_heads_;
  float scale_;
  bool is_float8_;
};

}  // namespace attention
}  // namespace poptransformer
