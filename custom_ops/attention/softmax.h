// SPDX-License-Identifier: Apache-2.0
// The softmax of query rows, block by block (Milakov and Gimelshein 2018). Scores are in units of log2, so that weights
// are powers of two: the query's scale takes a factor of kLog2E.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cache_value.h"

namespace poptransformer {
namespace attention {

constexpr float kLog2E = 0x1.715476p0f;
constexpr float kToInteger = 0x1.8p23f;  ///< Adding it rounds to an integer, left in the low bits of the sum.

/// 2^r for |r| <= 1/2 is 1 + r * (kPower[5] + r * (kPower[4] + ...)), within 2e-9 (least maximum of relative errors).
constexpr float kPower[] = {0x1.41fbbcp-13f, 0x1.5f3e54p-10f, 0x1.3b2d4cp-7f, 0x1.c6aee8p-5f, 0x1.ebfbdcp-3f,
                            0x1.62e430p-1f};

/// 2^x for x <= 0; 0 below -126.5, where fp32 has no normal numbers, and for -infinity.
__attribute__((always_inline)) inline float exp2_nonpositive(float x) {
  constexpr uint32_t kLowest = 0xc2fe0000u;  // -127, for which the bits of 2^n are those of 0.
  // max(x, -127): bits of negative numbers grow with their magnitude. GCC makes a branch of a comparison of floats.
  const float inside = float_from_bits(std::min(bits_of(x), kLowest));
  const float shifted = inside + kToInteger;
  const float r = inside - (shifted - kToInteger);
  float sum = kPower[0];
  for (int i = 1; i < 6; ++i) sum = sum * r + kPower[i];
  return (sum * r + 1.0f) * float_from_bits((bits_of(shifted) << 23) + 0x3f800000u);
}

/// What the blocks of slots so far have come to for one query row.
struct RowState {
  int64_t sees;       ///< The row sees slots [0, sees).
  float peak, total;  ///< The greatest score, and the sum of 2^(score - peak); NaN if a score is NaN.
};

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// Rows that `soften` takes at most.
constexpr int64_t kMaxSoftenRows = 16;

/// scores[r][j] is the score of row r at slot first + j, j < count.
struct SoftenArguments {
  int64_t rows, first, count;
  float* scores;
  int64_t ld;
  RowState* states;
  float* rescale;  ///< What the row's sums of earlier blocks must be multiplied by.
};

/// Turns scores into 2^(score - peak), or 0 where the row does not see the slot, by the peak of all blocks so far.
/// All rows' peaks come first: rows do not wait for each other, and there is much to wait for.
template <class Passes>
__attribute__((always_inline)) inline void soften_rows(const SoftenArguments& t) {
  int64_t visible[kMaxSoftenRows];
  float peaks[kMaxSoftenRows];
  for (int64_t r = 0; r < t.rows; ++r) {
    const float* scores = t.scores + r * t.ld;
    visible[r] = std::clamp<int64_t>(t.states[r].sees - t.first, 0, t.count);
    const float greatest = visible[r] == 0 ? kMinusInfinity : Passes::greatest(scores, visible[r]);
    peaks[r] = greatest <= t.states[r].peak ? t.states[r].peak : greatest;  // NaN if `greatest` is.
  }
  for (int64_t r = 0; r < t.rows; ++r) {
    float* scores = t.scores + r * t.ld;
    RowState& state = t.states[r];
    std::fill(scores + visible[r], scores + t.count, 0.0f);
    t.rescale[r] = peaks[r] == state.peak ? 1.0f : exp2_nonpositive(state.peak - peaks[r]);
    if (visible[r] > 0) state.total = state.total * t.rescale[r] + Passes::powers(scores, visible[r], peaks[r]);
    state.peak = peaks[r];
  }
}

struct PassesPortable {
  /// NaN if one is: exp2_nonpositive would take some NaNs for numbers.
  static float greatest(const float* x, int64_t n) {
    float most = x[0];
    bool ordered = true;
    for (int64_t i = 0; i < n; ++i) {
      most = x[i] > most ? x[i] : most;
      ordered &= x[i] == x[i];
    }
    return ordered ? most : std::numeric_limits<float>::quiet_NaN();
  }

  /// x[i] = 2^(x[i] - shift). @returns the sum.
  static float powers(float* x, int64_t n, float shift) {
    constexpr int kLanes = 8;
    float lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        x[i + lane] = exp2_nonpositive(x[i + lane] - shift);
        lanes[lane] += x[i + lane];
      }
    }
    float sum = 0.0f;
    for (float lane : lanes) sum += lane;
    for (; i < n; ++i) sum += x[i] = exp2_nonpositive(x[i] - shift);
    return sum;
  }
};

inline void soften_portable(const SoftenArguments& t) { soften_rows<PassesPortable>(t); }

}  // namespace attention
}  // namespace poptransformer
