// SPDX-License-Identifier: Apache-2.0
// The scores of one row of Sample: its logits after repetition penalty and temperature, with the maximum of each block.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

#include "../common/error.h"
#include "../common/scratch.h"
#include "passes.h"

namespace poptransformer {

/// One row of Sample's inputs, checked except for the logits.
struct SampleRequest {
  int64_t row;
  const float* logits;
  int64_t vocabulary;
  const int64_t* history;
  int64_t history_size;
  float temperature;
  int64_t top_k;
  float top_p;
  float min_p;
  float repetition_penalty;
  int64_t seed;
  int64_t step;

  bool greedy() const { return temperature <= 0 || top_k == 1; }
  bool penalises() const { return repetition_penalty != 1 && history_size > 0; }
};

/// Work memory of one row; every part is as long as a row may ever need.
struct SampleBuffers {
  uint64_t* keys;  ///< Candidates of top-p, ordered by a selection.
  double* sums;    ///< Sum of the weights of each block.
  float* scores;   ///< Of all tokens.
  float* values;   ///< Scores of the candidates.
  float* weights;  ///< exp(score - maximum) of the candidates.
  float* picked;   ///< Values that a selection may shuffle.
  float* maxima;   ///< Largest score of each block.
  int32_t* ids;    ///< Tokens of the candidates, ascending.

  explicit SampleBuffers(int64_t vocabulary) {
    const size_t blocks = static_cast<size_t>(block_count(vocabulary)), size = blocks * kBlock;
    char* memory = scratch<char>(Scratch::kOwn, size * (sizeof *keys + 4 * sizeof *scores + sizeof *ids) +
                                                    blocks * (sizeof *sums + sizeof *maxima));
    // The largest element type first: so every part is aligned.
    memory = part(memory, size, &keys);
    memory = part(memory, blocks, &sums);
    for (float** floats : {&scores, &values, &weights, &picked}) memory = part(memory, size, floats);
    memory = part(memory, blocks, &maxima);
    part(memory, size, &ids);
  }

 private:
  template <class Value>
  static char* part(char* memory, size_t count, Value** values) {
    *values = reinterpret_cast<Value*>(memory);
    return memory + count * sizeof(Value);
  }
};

/// All scores of a row. They are the logits themselves if nothing changes them.
class Scores {
 public:
  /// @throws Error if a score is NaN, or if the largest one is infinite.
  Scores(const SampleRequest& request, const SampleBuffers& buffers)
      : request_(request), buffers_(buffers), size_(request.vocabulary), blocks_(block_count(size_)) {
    compute();
    maximum_ = -std::numeric_limits<float>::infinity();
    bool numbers = true;
    for (const float* maximum = maxima(); maximum < maxima() + blocks_; ++maximum) {
      maximum_ = std::max(maximum_, *maximum);
      numbers &= !std::isnan(*maximum);
    }
    if (numbers && std::isfinite(maximum_)) return;
    fail("poptransformer.Sample: input 'logits' must hold no NaN, and a finite largest score, in every row, found ",
         numbers ? maximum_ : std::numeric_limits<float>::quiet_NaN(), " in row ", request.row, " (temperature ",
         request.temperature, ", repetition_penalty ", request.repetition_penalty, ")");
  }

  int64_t size() const { return size_; }
  float maximum() const { return maximum_; }
  const float* data() const { return scores_; }

  /// The token of the largest score, the first one if there are several.
  int64_t likeliest() const {
    const int64_t block = std::find(maxima(), maxima() + blocks_, maximum_) - maxima();
    return std::find(scores_ + block * kBlock, scores_ + size_, maximum_) - scores_;
  }

  /// A score that at least `count` tokens reach, but not many more.
  float reached_by(int64_t count) const {
    if (count > blocks_) return -std::numeric_limits<float>::infinity();
    std::copy_n(maxima(), blocks_, buffers_.picked);
    std::nth_element(buffers_.picked, buffers_.picked + count - 1, buffers_.picked + blocks_, std::greater<>());
    return buffers_.picked[count - 1];
  }

  /// Copies the tokens that reach `bound` and their scores, in vocabulary order. @returns their number.
  int64_t collect(float bound, int32_t* ids, float* values) const {
    int64_t count = 0;
    for (int64_t block = 0; block < blocks_; ++block) {
      if (maxima()[block] < bound) continue;
      const int64_t end = std::min((block + 1) * kBlock, size_);
      for (int64_t token = block * kBlock; token < end; ++token) {
        ids[count] = static_cast<int32_t>(token);
        values[count] = scores_[token];
        count += scores_[token] >= bound;  // No branch: half of a block's tokens would be mispredicted.
      }
    }
    return count;
  }

 private:
  const float* maxima() const { return buffers_.maxima; }

  void compute() {
    if (request_.greedy() && !request_.penalises()) {
      POPTRANSFORMER_PICK(maxima_of_logits)(request_.logits, size_, buffers_.maxima);
      scores_ = request_.logits;
      return;
    }
    const float temperature = request_.greedy() ? 1.0f : request_.temperature;
    POPTRANSFORMER_PICK(maxima_of_scores)(request_.logits, size_, temperature, buffers_.scores, buffers_.maxima);
    scores_ = buffers_.scores;
    if (request_.penalises()) penalise(temperature);
  }

  /// Starts from the logit each time, so a token that occurs twice is penalised once.
  void penalise(float temperature) {
    const float penalty = request_.repetition_penalty;
    for (int64_t i = 0; i < request_.history_size; ++i) {
      const int64_t token = request_.history[i];
      float& score = buffers_.scores[token];
      float& maximum = buffers_.maxima[token / kBlock];
      const float before = score, logit = request_.logits[token];
      score = (logit < 0 ? logit * penalty : logit / penalty) / temperature;
      if (score > maximum) {
        maximum = score;
      } else if (before == maximum) {
        const int64_t begin = token / kBlock * kBlock, end = std::min(begin + kBlock, size_);
        maximum = *std::max_element(buffers_.scores + begin, buffers_.scores + end);
      }
    }
  }

  const SampleRequest& request_;
  const SampleBuffers& buffers_;
  const int64_t size_;
  const int64_t blocks_;
  const float* scores_ = nullptr;
  float maximum_ = 0;
};

}  // namespace poptransformer
