// SPDX-License-Identifier: Apache-2.0
// Products with few input rows (decode): dot products with the weight rows, which are bound by reading them once.
//
// Each result is summed in an order that depends on `depth` alone, so a row's result depends neither on its neighbours
// nor on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/float_formats.h"
#include "rectangle.h"

namespace poptransformer {

constexpr int kDotRows = 4;        ///< Weight rows per call: four memory streams use the bandwidth of a core.
constexpr int kMaxDotInputs = 4;   ///< Input rows per call at most, on any processor.
constexpr int kMaxDotRows = 48;    ///< Input rows of a product by dots at most, on any processor.
/// Steps of this depth keep four weight rows and a few input rows in the first-level cache.
constexpr int64_t kDotDepth = 1024;

/// out[m][r] = sum over k of x[m][k] * weights[r][k], for 4 rows r. Weight is float, Float16 or BFloat16.
template <class Weight>
struct DotArguments {
  const Weight* weights[kDotRows];
  const float* x;
  int64_t ldx;
  int64_t depth;
  int64_t ahead;  ///< Bytes ahead of its place at which each row is asked for.
  float (*out)[kDotRows];
};

template <class Weight>
void dot_portable(int inputs, const DotArguments<Weight>& t) {
  constexpr int kLanes = 8;
  for (int m = 0; m < inputs; ++m) {
    const float* x = t.x + m * t.ldx;
    for (int r = 0; r < kDotRows; ++r) {
      const Weight* row = t.weights[r];
      float lanes[kLanes] = {};
      int64_t k = 0;
      for (; k + kLanes <= t.depth; k += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += to_float(row[k + lane]) * x[k + lane];
      }
      for (int lane = 0; k < t.depth; ++k, ++lane) lanes[lane] += to_float(row[k]) * x[k];
      for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
      }
      t.out[m][r] = lanes[0];
    }
  }
}

}  // namespace poptransformer

#include "dots_avx2.h"
#include "dots_avx512.h"

namespace poptransformer {

/// The dot products of this processor.
template <class Weight>
struct Dots {
  void (*run)(int inputs, const DotArguments<Weight>& t);  ///< 1 <= inputs <= `inputs`
  int inputs;        ///< Input rows per call at most.
  int single_pass;   ///< Input rows up to which one call beats two that share them.
  int64_t max_rows;  ///< Input rows up to which these beat panels (measured).

  static const Dots& pick() {
    static const Dots picked = make();
    return picked;
  }

 private:
  static Dots make() {
#if POPTRANSFORMER_X86
    // Four rows of fp32 come faster than the sums with three inputs and more let the processor look ahead; the second
    // pass gives the prefetches of the first one time.
    if (simd() >= Simd::kAvx512) return {dot_avx512<Weight>, 4, sizeof(Weight) == 4 ? 2 : 4, 48};
    if (simd() >= Simd::kAvx2) return {dot_avx2<Weight>, 2, 2, 20};
#endif
    return {dot_portable<Weight>, kMaxDotInputs, kMaxDotInputs, 4};
  }
};

/// The product of one rectangle, 1 <= rows <= max_rows, with weight rows that follow each other.
template <class Weight>
class DotProduct {
 public:
  DotProduct(const Rectangle& rectangle, const Weight* weight)
      : p_(rectangle), weight_(weight), dots_(Dots<Weight>::pick()) {
    const int rows = static_cast<int>(p_.rows);
    passes_ = std::max((rows + dots_.inputs - 1) / dots_.inputs, rows > dots_.single_pass ? 2 : 1);
    // One input: far enough to cross a page, where the processor's own prefetcher stops. Several passes: that one has
    // nothing to do in the later ones, and more can be read meanwhile (all measured).
    ahead_ = passes_ > 1 ? 4096 : rows > 1 ? 2048 : 1024;
  }

  /// The columns are walked as four streams side by side: one stream does not use the bandwidth of a core.
  void run() const {
    float sums[kMaxDotRows][kDotRows];
    const int64_t stream = (p_.columns + kDotRows - 1) / kDotRows;
    for (int64_t step = 0; step < stream; ++step) {
      int64_t column[kDotRows];
      const Weight* weights[kDotRows];
      for (int r = 0; r < kDotRows; ++r) {
        // Streams that are through repeat the last column: the same value is written twice.
        column[r] = std::min(r * stream + step, p_.columns - 1);
        weights[r] = weight_ + column[r] * p_.depth;
      }
      multiply_rows(weights, sums);
      for (int64_t m = 0; m < p_.rows; ++m) {
        for (int r = 0; r < kDotRows; ++r) p_.y[m * p_.ldy + column[r]] = sums[m][r];
      }
    }
  }

 private:
  /// sums[m][r] = x[m] . weights[r] for all rows m and four weight rows, in steps of kDotDepth.
  void multiply_rows(const Weight* const* weights, float (*sums)[kDotRows]) const {
    std::fill_n(sums[0], p_.rows * kDotRows, 0.0f);
    for (int64_t first = 0; first < p_.depth; first += kDotDepth) {
      float part[kMaxDotInputs][kDotRows];
      DotArguments<Weight> t;
      for (int r = 0; r < kDotRows; ++r) t.weights[r] = weights[r] + first;
      t.ldx = p_.ldx;
      t.depth = std::min(kDotDepth, p_.depth - first);
      t.ahead = ahead_;
      t.out = part;
      for (int pass = 0; pass < passes_; ++pass) {
        const Range inputs = share(p_.rows, pass, passes_);
        t.x = p_.x + inputs.begin * p_.ldx + first;
        dots_.run(static_cast<int>(inputs.end - inputs.begin), t);
        for (int64_t m = inputs.begin; m < inputs.end; ++m) {
          for (int r = 0; r < kDotRows; ++r) sums[m][r] += part[m - inputs.begin][r];
        }
      }
    }
  }

  const Rectangle& p_;
  const Weight* weight_;
  const Dots<Weight>& dots_;
  int passes_;  ///< Over each weight row, with the inputs shared among them.
  int64_t ahead_;
};

template <class Weight>
void multiply_by_dots(const Rectangle& rectangle, const Weight* weight) {
  DotProduct<Weight>(rectangle, weight).run();
}

}  // namespace poptransformer
