// SPDX-License-Identifier: Apache-2.0
// The fp32 building blocks of matrix products, shared by the ops. `Tiles<Weight>::pick()` gives the fastest versions
// this processor runs. Weight is float, Float16 or BFloat16 and is converted to fp32 on the fly.
//
// - dot:  few rows times row-major weights, read once, as they lie (decode);
// - pack: 16 weight rows, transposed to a panel [depth][16] of fp32;
// - tile: many rows times such a panel (prefill).
//
// Each result is summed in an order that depends on `depth` alone, so a row's result depends neither on its neighbours
// nor on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "float_formats.h"
#include "simd.h"

namespace poptransformer {

constexpr int kDotRows = 4;     ///< Weight rows per dot call: four memory streams use the bandwidth of a core.
constexpr int kDotInputs = 2;   ///< Input rows per dot call; more would reload the inputs for each weight row.
constexpr int kMaxDotRows = 24;
constexpr int kTileRows = 6;    ///< Rows per tile call; 6 x 16 sums fit as well.
constexpr int kTileColumns = 16;

/// c[r][j] = start[r][j] + sum over k of a[r][k] * b[k][j], for 1 <= rows <= 6 and 16 columns j.
/// Leading dimensions in values; ld_start = 0 starts every row from the same values (a bias).
struct TileArguments {
  const float* a;
  int64_t lda;
  const float* b;
  int64_t ldb;
  const float* start;
  int64_t ld_start;
  float* c;
  int64_t ldc;
  int64_t depth;
};

/// out[m][r] = sum over k of x[m][k] * weights[r][k], for 1 <= inputs <= 2 and 4 rows r.
template <class Weight>
void dot_portable(const Weight* const* weights, const float* x, int64_t ldx, int inputs, int64_t depth,
                  float (*out)[kDotRows]) {
  constexpr int kLanes = 8;
  for (int m = 0; m < inputs; ++m, x += ldx) {
    for (int r = 0; r < kDotRows; ++r) {
      const Weight* row = weights[r];
      float lanes[kLanes] = {};
      int64_t k = 0;
      for (; k + kLanes <= depth; k += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += to_float(row[k + lane]) * x[k + lane];
      }
      for (int lane = 0; k < depth; ++k, ++lane) lanes[lane] += to_float(row[k]) * x[k];
      for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
      }
      out[m][r] = lanes[0];
    }
  }
}

/// panel[k][r] = weights[r * ld + k] for r < rows; the other columns up to 16 are zero.
template <class Weight>
void pack_portable(const Weight* weights, int64_t ld, int rows, int64_t depth, float* panel) {
  for (int64_t k = 0; k < depth; ++k, panel += kTileColumns) {
    for (int r = 0; r < rows; ++r) panel[r] = to_float(weights[r * ld + k]);
    std::fill(panel + rows, panel + kTileColumns, 0.0f);
  }
}

inline void tile_portable(int rows, const TileArguments& t) {
  for (int r = 0; r < rows; ++r) {
    const float* a = t.a + r * t.lda;
    float sums[kTileColumns];
    std::copy_n(t.start + r * t.ld_start, kTileColumns, sums);
    for (int64_t k = 0; k < t.depth; ++k) {
      for (int j = 0; j < kTileColumns; ++j) sums[j] += a[k] * t.b[k * t.ldb + j];
    }
    std::copy_n(sums, kTileColumns, t.c + r * t.ldc);
  }
}

}  // namespace poptransformer

#include "tiles_avx2.h"

namespace poptransformer {

/// The three functions, chosen for this processor.
template <class Weight>
struct Tiles {
  decltype(&dot_portable<Weight>) dot;
  decltype(&pack_portable<Weight>) pack;
  decltype(&tile_portable) tile;
  int64_t max_dot_rows;  ///< Input rows up to which `dot` beats `pack` and `tile` (measured); at most kMaxDotRows.

  static const Tiles& pick() {
    static const Tiles picked = make();
    return picked;
  }

 private:
  static Tiles make() {
#if POPTRANSFORMER_X86
    if (simd() >= Simd::kAvx2) return {dot_avx2<Weight>, pack_avx2<Weight>, tile_avx2, kMaxDotRows};
#endif
    return {dot_portable<Weight>, pack_portable<Weight>, tile_portable, 4};
  }
};

}  // namespace poptransformer
