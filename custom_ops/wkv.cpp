// SPDX-License-Identifier: Apache-2.0
// WKV: the recurrence of RWKV-4 (https://arxiv.org/abs/2305.13048, section 3.1.2), all tokens of a step in one call.
//
//   decay, bonus [D], key, value [B, L, D], lengths [B] int64, numerator, denominator, maximum [B, D]
//   -> output [B, L, D], present numerator, denominator and maximum [B, D]
//
// The state holds two sums scaled by exp(-maximum), so nothing overflows. A row's state stops at its first lengths[b]
// tokens; the outputs of the tokens behind them are zero.
#include <algorithm>
#include <cstdint>

#include "common/exp.h"
#include "common/ort_op.h"
#include "common/simd.h"
#include "common/thread_pool.h"

namespace poptransformer {
namespace {

/// Channels that are carried through all tokens together: a vector or two, whose state stays in registers.
constexpr int kChannels = 16;
using Channels = float[kChannels];

/// Up to kChannels channels of one row; neighbouring tokens lie `stride` values apart.
struct Run {
  const float *decay, *bonus, *key, *value;
  float* output;
  float *numerator, *denominator, *maximum;  // Read and written.
  int64_t stride, tokens;
  int channels;
};

__attribute__((always_inline)) inline float larger(float a, float b) { return a < b ? b : a; }

// Plain loops of constant length over local arrays: the compiler vectorises them for the instruction set of each
// wrapper below.
__attribute__((always_inline)) inline void step(const Channels& decay, const Channels& bonus, const Channels& k,
                                                const Channels& v, Channels& n, Channels& d, Channels& m,
                                                Channels& output) {
  for (int i = 0; i < kChannels; ++i) {
    const float now = k[i] + bonus[i], top = larger(m[i], now);
    const float before = exp_nonpositive(m[i] - top), weight = exp_nonpositive(now - top);
    output[i] = (before * n[i] + weight * v[i]) / (before * d[i] + weight);
    const float faded = m[i] + decay[i], next = larger(faded, k[i]);
    const float keep = exp_nonpositive(faded - next), add = exp_nonpositive(k[i] - next);
    n[i] = keep * n[i] + add * v[i];
    d[i] = keep * d[i] + add;
    m[i] = next;
  }
}

/// The constant size of a whole piece makes its copies vector moves.
__attribute__((always_inline)) inline void load(const float* from, int channels, Channels& to) {
  if (channels == kChannels) {
    std::copy_n(from, kChannels, to);
  } else {
    std::copy_n(from, channels, to);
  }
}

__attribute__((always_inline)) inline void store(const Channels& from, int channels, float* to) {
  if (channels == kChannels) {
    std::copy_n(from, kChannels, to);
  } else {
    std::copy_n(from, channels, to);
  }
}

__attribute__((always_inline)) inline void steps(const Run& run) {
  Channels decay = {}, bonus = {}, n = {}, d = {}, m = {}, k = {}, v = {}, output;
  load(run.decay, run.channels, decay);
  load(run.bonus, run.channels, bonus);
  load(run.numerator, run.channels, n);
  load(run.denominator, run.channels, d);
  load(run.maximum, run.channels, m);
  for (int64_t token = 0; token < run.tokens; ++token) {
    load(run.key + token * run.stride, run.channels, k);
    load(run.value + token * run.stride, run.channels, v);
    step(decay, bonus, k, v, n, d, m, output);
    store(output, run.channels, run.output + token * run.stride);
  }
  store(n, run.channels, run.numerator);
  store(d, run.channels, run.denominator);
  store(m, run.channels, run.maximum);
}

void steps_portable(const Run& run) { steps(run); }
#if POPTRANSFORMER_X86
POPTRANSFORMER_AVX2 void steps_avx2(const Run& run) { steps(run); }
POPTRANSFORMER_AVX512 void steps_avx512(const Run& run) { steps(run); }
#endif

class WKV {
 public:
  static OpSpec spec() {
    return {"WKV",
            {{"decay", kFloat32},
             {"bonus", kFloat32},
             {"key", kFloat32},
             {"value", kFloat32},
             {"lengths", kInt64},
             {"numerator", kFloat32},
             {"denominator", kFloat32},
             {"maximum", kFloat32}},
            {{"output", kFloat32},
             {"present_numerator", kFloat32},
             {"present_denominator", kFloat32},
             {"present_maximum", kFloat32}}};
  }

  explicit WKV(const Attributes&) {}

  void compute(Call& call) const {
    const Tensor decay = call.input(0), bonus = call.input(1), key = call.input(2), value = call.input(3);
    const Tensor lengths = call.input(4);
    key.expect_shape({"B", "L", "D"});
    const int64_t batch = key.shape[0], tokens = key.shape[1], width = key.shape[2];
    value.expect_shape({batch, tokens, width});
    decay.expect_shape({width});
    bonus.expect_shape({width});
    lengths.expect_shape({batch});
    check_lengths(call, lengths, batch, tokens);
    const float* past[3];
    for (int i = 0; i < 3; ++i) {
      const Tensor state = call.input(5 + i);
      state.expect_shape({batch, width});
      past[i] = state.as<float>();
    }
    float* output = call.output<float>(0, key.shape);
    float* present[3];
    for (int i = 0; i < 3; ++i) present[i] = call.output<float>(1 + i, {batch, width});
    const int64_t pieces = (width + kChannels - 1) / kChannels;
    const auto run_steps = POPTRANSFORMER_PICK3(steps);
    constexpr int64_t kCostPerValue = 16;  // Four exponentials and a division, vectorised.
    ThreadPool::run_for(batch * tokens * width * kCostPerValue, [&](int part, int parts) {
      const Range mine = share(batch * pieces, part, parts);
      for (int64_t index = mine.begin; index < mine.end; ++index) {
        const int64_t row = index / pieces, first = index % pieces * kChannels;
        const int64_t state = row * width + first, at = row * tokens * width + first;
        const int channels = static_cast<int>(std::min<int64_t>(kChannels, width - first));
        const int64_t real = lengths.as<int64_t>()[row];
        for (int i = 0; i < 3; ++i) {
          if (present[i] != past[i]) std::copy_n(past[i] + state, channels, present[i] + state);
        }
        run_steps({decay.as<float>() + first, bonus.as<float>() + first, key.as<float>() + at,
                   value.as<float>() + at, output + at, present[0] + state, present[1] + state, present[2] + state,
                   width, real, channels});
        for (int64_t token = real; token < tokens; ++token) std::fill_n(output + at + token * width, channels, 0.0f);
      }
    });
  }

 private:
  static void check_lengths(const Call& call, const Tensor& lengths, int64_t batch, int64_t tokens) {
    for (int64_t row = 0; row < batch; ++row) {
      const int64_t length = lengths.as<int64_t>()[row];
      if (length < 0 || length > tokens) {
        call.fail("lengths[", row, "] must be from 0 to the ", tokens, " tokens of the step, found ", length);
      }
    }
  }
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(WKV)

}  // namespace poptransformer
