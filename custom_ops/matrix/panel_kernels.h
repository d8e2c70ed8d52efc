// SPDX-License-Identifier: Apache-2.0
// The two loops of products with many input rows (panels.h):
//
// - pack: 16 weight rows, transposed to columns of a panel [depth][columns] of fp32;
// - tile: a few input rows times such a panel.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/float_formats.h"
#include "matrix.h"

namespace poptransformer {

constexpr int kMaxTileRows = 8;
constexpr int kMaxPanelColumns = 32;

/// panel[k * ld_panel + r] = weights[r * ld + k] for r < rows <= 16; the other columns up to 16 are zero.
template <class Weight>
void pack_rows_portable(const Weight* weights, int64_t ld, int rows, int64_t depth, float* panel, int64_t ld_panel) {
  for (int64_t k = 0; k < depth; ++k, panel += ld_panel) {
    for (int r = 0; r < rows; ++r) panel[r] = to_float(weights[r * ld + k]);
    std::fill(panel + rows, panel + kTile, 0.0f);
  }
}

/// What a tile asks for while it multiplies, a little at a time: more than a few lines at once would hold it up.
struct PanelPrefetch {
  const char* rows[kMaxPanelColumns];
  int count;
  int64_t depth_per_line;  ///< One cache line of each row per so many columns of the input.
};

/// c[r][j] = start[r][j] + sum over k of x[r][k] * panel[k][j]. Leading dimensions in values; ld_start = 0 starts every
/// row from the same values.
struct PanelArguments {
  const float* x;
  int64_t ldx;
  const float* panel;
  int64_t ld_panel;
  const float* start;
  int64_t ld_start;
  float* c;
  int64_t ldc;
  int64_t depth;
  const PanelPrefetch* ahead;
};

inline void panel_tile_portable(int rows, int columns, const PanelArguments& t) {
  for (int r = 0; r < rows; ++r) {
    const float* x = t.x + r * t.ldx;
    for (int first = 0; first < columns; first += kTile) {
      float sums[kTile];
      std::copy_n(t.start + r * t.ld_start + first, kTile, sums);
      for (int64_t k = 0; k < t.depth; ++k) {
        for (int j = 0; j < kTile; ++j) sums[j] += x[k] * t.panel[k * t.ld_panel + first + j];
      }
      std::copy_n(sums, kTile, t.c + r * t.ldc + first);
    }
  }
}

}  // namespace poptransformer

#include "panel_avx2.h"
#include "panel_avx512.h"

namespace poptransformer {

template <class Weight>
using PackRows = void (*)(const Weight* weights, int64_t ld, int rows, int64_t depth, float* panel, int64_t ld_panel);

template <class Weight>
PackRows<Weight> pick_pack_rows() {
#if POPTRANSFORMER_X86
  if (simd() >= Simd::kAvx2) return pack_rows_avx2<Weight>;
#endif
  return pack_rows_portable<Weight>;
}

/// The tile of this processor.
struct PanelTile {
  void (*run)(int rows, int columns, const PanelArguments& t);  ///< columns: 16 or, if `columns` is, 32.
  int rows;     ///< Input rows per call at most.
  int columns;  ///< Columns of a panel.

  static const PanelTile& pick() {
    static const PanelTile picked = make();
    return picked;
  }

 private:
  static PanelTile make() {
#if POPTRANSFORMER_X86
    if (simd() >= Simd::kAvx512) return {panel_tile_avx512, 8, 32};
    if (simd() >= Simd::kAvx2) return {panel_tile_avx2, 6, 16};
#endif
    return {panel_tile_portable, 6, 16};
  }
};

}  // namespace poptransformer
