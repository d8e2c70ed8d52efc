// SPDX-License-Identifier: Apache-2.0
// The tokens a random row of Sample may draw: top-k, top-p, min-p, and the draw itself.
//
// Nothing is sorted: only blocks whose maximum is large enough are looked into, and selections find the thresholds.
// Candidates stay in vocabulary order; a filter drops one by giving it the weight 0. A row without filters has all
// tokens as candidates.
//
// Equal scores: top-k keeps all that equal the k-th largest; top-p prefers the lower token.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>

#include "scores.h"

namespace poptransformer {

/// Uniform number in [0, 1) of 24 bits that depends on `seed` and `step` alone.
inline double uniform(int64_t seed, int64_t step) {
  constexpr uint64_t kLow = 0xffffffffu;
  const auto mix = [](uint64_t x) {
    x ^= x >> 16;
    x = (x * 0x21f0aaadu) & kLow;
    x ^= x >> 15;
    x = (x * 0x735a2d97u) & kLow;
    return x ^ (x >> 15);
  };
  const uint64_t bits = static_cast<uint64_t>(seed);
  const uint64_t state = mix((bits & kLow) ^ mix(bits >> 32));
  return static_cast<double>(mix(state ^ mix(static_cast<uint64_t>(step))) >> 8) * 0x1p-24;
}

/// The tokens that pass the filters of one row, with weights in proportion to their probabilities.
class Candidates {
 public:
  Candidates(const SampleRequest& request, const SampleBuffers& buffers, const Scores& scores)
      : buffers_(buffers), scores_(scores), weights_(buffers.weights) {
    const int64_t k = request.top_k;
    if (k > 0 && k < scores.size()) {
      take_above(scores.reached_by(k));
      keep_largest(k);
      if (request.top_p < 1) keep_nucleus(sum(), request.top_p);
    } else if (request.top_p < 1) {
      take_all();
      const double total = sum();
      // All tokens below this weight together have at most what top-p drops.
      take_heavier(tail_limit(total, request.top_p) / static_cast<double>(count_));
      keep_nucleus(total, request.top_p);
    } else if (request.min_p > 0) {
      take_heavier(request.min_p);
    } else {
      take_all();
    }
    if (request.min_p > 0) drop([&](int64_t i) { return weights_[i] < request.min_p; });
    total_ = sum();
  }

  /// The first token, in vocabulary order, at which the summed probability exceeds `u`.
  int64_t draw(double u) const {
    const double target = u * total_;
    double before = 0;
    int64_t block = 0;
    while (before + buffers_.sums[block] <= target) before += buffers_.sums[block++];
    int64_t last = block * kBlock;  // Sums in another order may end a hair below the block's sum.
    const int64_t end = std::min(last + kBlock, count_);
    for (int64_t i = last; i < end && before <= target; ++i) {
      before += weights_[i];
      if (weights_[i] > 0) last = i;
    }
    return all_ ? last : buffers_.ids[last];
  }

  /// Writes the probabilities of all tokens.
  void write(float* probabilities) const {
    const float scale = static_cast<float>(1 / total_);
    if (!all_) std::fill_n(probabilities, scores_.size(), 0.0f);
    for (int64_t i = 0; i < count_; ++i) probabilities[all_ ? i : buffers_.ids[i]] = weights_[i] * scale;
  }

 private:
  static constexpr int kBins = 1024;

  void take_all() {
    all_ = true;
    count_ = scores_.size();
    POPTRANSFORMER_PICK(weigh)(scores_.data(), count_, scores_.maximum(), weights_);
  }

  /// Takes the tokens whose score is `bound` or more.
  void take_above(float bound) {
    all_ = false;
    count_ = scores_.collect(bound, buffers_.ids, buffers_.values);
    POPTRANSFORMER_PICK(weigh)(buffers_.values, count_, scores_.maximum(), weights_);
  }

  /// Takes the tokens whose weight is `weight` or more, and perhaps some that are a little lighter.
  void take_heavier(double weight) {
    const double maximum = scores_.maximum(), rounding = 1e-3 + 1e-6 * std::fabs(maximum);
    take_above(static_cast<float>(maximum + std::log(std::min(weight, 1.0)) - rounding));
  }

  /// Top-k: drops what is smaller than the k-th largest score.
  void keep_largest(int64_t k) {
    std::copy_n(buffers_.values, count_, buffers_.picked);
    std::nth_element(buffers_.picked, buffers_.picked + k - 1, buffers_.picked + count_, std::greater<>());
    const float smallest = buffers_.picked[k - 1];
    drop([&](int64_t i) { return buffers_.values[i] < smallest; });
  }

  /// Top-p: drops a token if it and all less likely ones together have at most 1 - p of `total`, but not the likeliest.
  void keep_nucleus(double total, float top_p) {
    // A histogram of the weights finds the narrow range of scores with the last token that stays.
    const double limit = tail_limit(total, top_p);
    double weight_of_bin[kBins] = {};
    for (int64_t i = 0; i < count_; ++i) weight_of_bin[bin(i)] += weights_[i];
    int last_bin = 0;
    double kept = 0;
    while (last_bin < kBins - 1 && total - (kept + weight_of_bin[last_bin]) > limit) kept += weight_of_bin[last_bin++];
    int64_t count = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (bin(i) == last_bin) buffers_.keys[count++] = key(i);
    }
    const uint64_t smallest = smallest_kept(count, total - kept, limit);
    drop([&](int64_t i) { return key(i) < smallest; });
  }

  /// The key of the last token to keep among the first `count` keys: what is behind it weighs at most `limit`.
  /// `rest` is the weight of these keys and of all smaller ones. Each step halves the keys in question: linear time.
  uint64_t smallest_kept(int64_t count, double rest, double limit) {
    uint64_t* keys = buffers_.keys;
    int64_t first = 0, last = count;
    while (last - first > 1) {
      const int64_t middle = first + (last - first) / 2;
      std::nth_element(keys + first, keys + middle, keys + last, std::greater<>());
      double upper = 0;
      for (int64_t i = first; i < middle; ++i) upper += weights_[position(keys[i])];
      if (rest - upper <= limit) {
        last = middle;
      } else {
        first = middle;
        rest -= upper;
      }
    }
    return first < count ? keys[first] : 0;
  }

  /// 1 - p is taken in fp32, as the op's definition does.
  static double tail_limit(double total, float top_p) { return static_cast<double>(1.0f - top_p) * total; }

  /// Number of the histogram's bin: larger scores have smaller numbers.
  int bin(int64_t i) const {
    constexpr float kBinsPerUnit = 32;
    const float distance = (scores_.maximum() - buffers_.values[i]) * kBinsPerUnit;
    return distance < kBins - 1 ? static_cast<int>(distance) : kBins - 1;
  }

  /// Orders candidates as integers: by score and, among equal scores, the earlier candidate as the larger key.
  uint64_t key(int64_t i) const {
    const uint32_t bits = bits_from_float(buffers_.values[i] + 0.0f);  // -0 becomes 0, its equal.
    const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(ordered) << 32 | ~static_cast<uint32_t>(i);
  }
  static int64_t position(uint64_t key) { return ~static_cast<uint32_t>(key); }

  template <class Condition>
  void drop(const Condition& condition) {
    for (int64_t i = 0; i < count_; ++i) weights_[i] = condition(i) ? 0.0f : weights_[i];
  }

  /// Sum of the weights; sets the sums of the blocks.
  double sum() {
    POPTRANSFORMER_PICK(sum_blocks)(weights_, count_, buffers_.sums);
    return std::accumulate(buffers_.sums, buffers_.sums + block_count(count_), 0.0);
  }

  const SampleBuffers& buffers_;
  const Scores& scores_;
  float* const weights_;
  int64_t count_ = 0;
  bool all_ = false;
  double total_ = 0;
};

}  // namespace poptransformer
