// SPDX-License-Identifier: Apache-2.0
// One formula per activation, branch-free, so that the compiler vectorises the loop over it for each instruction set.
#include "activation.h"

#include <algorithm>

#include "../common/exp.h"
#include "../common/simd.h"

#define POPTRANSFORMER_INLINE __attribute__((always_inline)) inline

namespace poptransformer {
namespace {

POPTRANSFORMER_INLINE float magnitude(float x) { return float_from_bits(bits_from_float(x) & 0x7fffffffu); }
POPTRANSFORMER_INLINE float negated_magnitude(float x) { return float_from_bits(bits_from_float(x) | 0x80000000u); }

/// All bits set where the sign bit of x is.
POPTRANSFORMER_INLINE uint32_t negative_mask(float x) { return 0u - (bits_from_float(x) >> 31); }

POPTRANSFORMER_INLINE float choose(uint32_t mask, float where_set, float elsewhere) {
  return float_from_bits((bits_from_float(where_set) & mask) | (bits_from_float(elsewhere) & ~mask));
}

/// `result`, but NaN where x is.
POPTRANSFORMER_INLINE float keep_nan(float x, float result) {
  const uint32_t below_infinity = 0x7f800000u - bits_from_float(magnitude(x));
  return float_from_bits(bits_from_float(result) | (0u - (below_infinity >> 31)));
}

/// 1 / (1 + exp(-x)) from exp(-|x|), which cannot overflow. A NaN gives some number.
POPTRANSFORMER_INLINE float sigmoid_of_number(float x) {
  const float power = exp_nonpositive(negated_magnitude(x));
  return choose(negative_mask(x), power, 1.0f) / (1.0f + power);
}

POPTRANSFORMER_INLINE float sigmoid(float x) { return keep_nan(x, sigmoid_of_number(x)); }

POPTRANSFORMER_INLINE float silu(float x) { return x * sigmoid_of_number(x); }

/// tanh|x| = (1 - e) / (1 + e), e = exp(-2|x|).
POPTRANSFORMER_INLINE float tanh(float x) {
  const float less = expm1_nonpositive(2.0f * negated_magnitude(x));
  const float positive = -less / (2.0f + less);
  return keep_nan(x, choose(negative_mask(x), -positive, positive));
}

POPTRANSFORMER_INLINE float relu(float x) { return x < 0.0f ? 0.0f : x; }

/// x / 2 * (1 + tanh(u)) = x * sigmoid(2u), which does not cancel for negative u.
POPTRANSFORMER_INLINE float gelu_tanh(float x) {
  constexpr float kScale = 1.5957691216057308f;  // 2 * sqrt(2 / pi)
  return x * sigmoid_of_number(kScale * (x + 0.044715f * x * x * x));
}

/// x times the normal distribution's integral up to x.
///
/// Its tail beyond z * sqrt(2), z >= 0, is exp(-z^2) times a smooth function of u = (z - 3) / (z + 3): a polynomial
/// fitted by reweighted least squares on 0 <= z <= 9.5, 3e-8 off at most.
POPTRANSFORMER_INLINE float gelu(float x) {
  constexpr float kFit[] = {-0x1.3af53cp-15f, -0x1.3b4d38p-12f, 0x1.9cea84p-12f, 0x1.18f30cp-9f, -0x1.8ff97ap-7f,
                            0x1.2586ccp-5f,   -0x1.336ee2p-4f,  0x1.f6ff3ep-4f,  -0x1.4e103p-3f, 0x1.6e9828p-4f};
  constexpr uint32_t kTen = 0x41200000u;  // Where the tail is 0 already; infinity would make u NaN.
  const float z = float_from_bits(std::min(bits_from_float(magnitude(x) * 0.70710678f), kTen));
  const float u = (z - 3.0f) / (z + 3.0f);
  float fit = kFit[0];
  for (int i = 1; i < 10; ++i) fit = fit * u + kFit[i];
  const float tail = fit * exp_nonpositive(-0.5f * x * x);
  return x * choose(negative_mask(x), tail, 1.0f - tail);
}

template <float (*kFunction)(float)>
POPTRANSFORMER_INLINE void map(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = kFunction(x[i]);
}

#if POPTRANSFORMER_X86
#define POPTRANSFORMER_ROWS(name)                                                             \
  void name##_row_portable(float* x, int64_t n) { map<name>(x, n); }                          \
  POPTRANSFORMER_AVX2 void name##_row_avx2(float* x, int64_t n) { map<name>(x, n); }          \
  POPTRANSFORMER_AVX512 void name##_row_avx512(float* x, int64_t n) { map<name>(x, n); }
#else
#define POPTRANSFORMER_ROWS(name) \
  void name##_row_portable(float* x, int64_t n) { map<name>(x, n); }
#endif

POPTRANSFORMER_ROWS(silu)
POPTRANSFORMER_ROWS(gelu)
POPTRANSFORMER_ROWS(gelu_tanh)
POPTRANSFORMER_ROWS(relu)
POPTRANSFORMER_ROWS(sigmoid)
POPTRANSFORMER_ROWS(tanh)

}  // namespace

bool find_activation(const std::string& name, RowFunction* function) {
  const struct {
    const char* name;
    RowFunction function;
  } known[] = {{"none", nullptr},
               {"silu", POPTRANSFORMER_PICK3(silu_row)},
               {"gelu", POPTRANSFORMER_PICK3(gelu_row)},
               {"gelu_tanh", POPTRANSFORMER_PICK3(gelu_tanh_row)},
               {"relu", POPTRANSFORMER_PICK3(relu_row)},
               {"sigmoid", POPTRANSFORMER_PICK3(sigmoid_row)},
               {"tanh", POPTRANSFORMER_PICK3(tanh_row)}};
  for (const auto& entry : known) {
    if (name != entry.name) continue;
    *function = entry.function;
    return true;
  }
  return false;
}

}  // namespace poptransformer
