// SPDX-License-Identifier: Apache-2.0
// Sample: from logits to the next token of every row; what a row does is in sampling/.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>

#include "common/ort_op.h"
#include "common/thread_pool.h"
#include "sampling/candidates.h"
#include "sampling/scores.h"

namespace poptransformer {
namespace {

/// Fewer logits than this are done sooner than a sleeping thread is awake. A single row is never shared.
constexpr int64_t kMinParallelLogits = 1 << 19;

/// Throws unless all values of `input` are `valid`; `expected` are the parts of the text that says which ones are.
template <class Value, class Condition, class... Parts>
void check_values(const Tensor& input, Condition valid, const Parts&... expected) {
  const int64_t size = input.shape.size();
  for (int64_t i = 0; i < size; ++i) {
    const Value value = input.as<Value>()[i];
    if (valid(value)) continue;
    std::ostringstream text, found;
    (text << ... << expected);
    found << value << " in row " << i / (size / input.shape[0]);
    input.reject(text.str(), found.str());
  }
}

/// Token of one row. @param probabilities null if nobody wants them.
int64_t sample_row(const SampleRequest& request, float* probabilities) {
  const SampleBuffers buffers(request.vocabulary);
  const Scores scores(request, buffers);
  if (!request.greedy()) {
    const Candidates candidates(request, buffers, scores);
    if (probabilities != nullptr) candidates.write(probabilities);
    return candidates.draw(uniform(request.seed, request.step));
  }
  const int64_t token = scores.likeliest();
  if (probabilities != nullptr) {
    std::fill_n(probabilities, request.vocabulary, 0.0f);
    probabilities[token] = 1.0f;
  }
  return token;
}

class Sample {
 public:
  static OpSpec spec() {
    return {"Sample",
            {{"logits", kFloat32},
             {"history", kInt64},
             {"temperature", kFloat32},
             {"top_k", kInt64},
             {"top_p", kFloat32},
             {"min_p", kFloat32},
             {"repetition_penalty", kFloat32},
             {"seed", kInt64},
             {"step", kInt64}},
            {{"token", kInt64}, {"probabilities", kFloat32, kOptional}}};
  }

  explicit Sample(const Attributes&) {}

  void compute(Call& call) const {
    const Inputs inputs(call);
    inputs.check();
    const int64_t rows = inputs.logits.shape[0], vocabulary = inputs.logits.shape.last();
    int64_t* tokens = call.output<int64_t>(0, {rows});
    float* probabilities = call.output<float>(1, {rows, vocabulary});
    const auto job = [&](int thread, int threads) {
      const Range mine = share(rows, thread, threads);
      for (int64_t row = mine.begin; row < mine.end; ++row) {
        const SampleRequest request = inputs.row(row);
        tokens[row] = sample_row(request, probabilities ? probabilities + row * vocabulary : nullptr);
      }
    };
    if (rows == 1 || rows * vocabulary < kMinParallelLogits) return job(0, 1);
    ThreadPool::instance().run(job);
  }

 private:
  struct Inputs {
    const Tensor logits, history, temperature, top_k, top_p, min_p, repetition_penalty, seed, step;

    explicit Inputs(const Call& call)
        : logits(call.input(0)),
          history(call.input(1)),
          temperature(call.input(2)),
          top_k(call.input(3)),
          top_p(call.input(4)),
          min_p(call.input(5)),
          repetition_penalty(call.input(6)),
          seed(call.input(7)),
          step(call.input(8)) {}

    void check() const {
      if (logits.shape.rank == 3) {
        logits.expect_shape({"B", 1, "V"});
      } else {
        logits.expect_shape({"B", "V"});
      }
      const int64_t rows = logits.shape[0], vocabulary = logits.shape.last();
      if (vocabulary < 1 || vocabulary > std::numeric_limits<int32_t>::max()) {
        logits.reject("[B, V] with 1 <= V < 2^31", logits.shape.text());
      }
      history.expect_shape({rows, "T"});
      for (const Tensor* setting : {&temperature, &top_k, &top_p, &min_p, &repetition_penalty, &seed, &step}) {
        setting->expect_shape({rows});
      }
      const auto is_token = [=](int64_t x) { return x >= 0 && x < vocabulary; };
      const auto is_natural = [](int64_t x) { return x >= 0; };
      const auto is_finite = [](float x) { return std::isfinite(x); };
      const auto is_number = [](float x) { return !std::isnan(x); };
      check_values<int64_t>(history, is_token, "tokens from 0 to ", vocabulary - 1);
      check_values<float>(temperature, is_finite, "finite (0 is greedy)");
      check_values<float>(top_p, is_number, "a number (1 is off)");
      check_values<float>(min_p, [](float x) { return x <= 1; }, "1 or less (0 is off)");
      check_values<float>(repetition_penalty, [=](float x) { return x > 0 && is_finite(x); },
                          "finite and above 0 (1 is off)");
      check_values<int64_t>(seed, is_natural, "0 or more");
      check_values<int64_t>(step, is_natural, "0 or more");
    }

    SampleRequest row(int64_t row) const {
      SampleRequest request;
      request.row = row;
      request.vocabulary = logits.shape.last();
      request.logits = logits.as<float>() + row * request.vocabulary;
      request.history_size = history.shape[1];
      request.history = history.as<int64_t>() + row * request.history_size;
      request.temperature = temperature.as<float>()[row];
      request.top_k = top_k.as<int64_t>()[row];
      request.top_p = top_p.as<float>()[row];
      request.min_p = min_p.as<float>()[row];
      request.repetition_penalty = repetition_penalty.as<float>()[row];
      request.seed = seed.as<int64_t>()[row];
      request.step = step.as<int64_t>()[row];
      return request;
    }
  };
};

/// Sample without its second output.
class SampleToken : public Sample {
 public:
  static OpSpec spec() {
    OpSpec spec = Sample::spec();
    spec.name = "SampleToken";
    spec.outputs.pop_back();
    return spec;
  }

  using Sample::Sample;
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(Sample)
POPTRANSFORMER_REGISTER_OP(SampleToken)

}  // namespace poptransformer
