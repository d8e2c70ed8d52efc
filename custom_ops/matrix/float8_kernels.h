// SPDX-License-Identifier: Apache-2.0
// The loops over packed fp8 weights (docs/quantization.md): 16 rows x 4 columns are 64 bytes that follow each other, row
// by row, so that two vectors per tile hold a row's sums side by side and nothing is added across rows.
//
// - dot:  few input rows times two tiles, read once (decode);
// - pack: a tile as 16 columns of a panel of fp32 (prefill, panels.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "float8_codes.h"
#include "matrix.h"

namespace poptransformer {

constexpr int kFloat8Tiles = 2;      ///< Tiles per call: memory streams side by side.
constexpr int kMaxFloat8Inputs = 8;  ///< Input rows per call at most, on any processor.

/// out[m][16 * t + r] = sum over k of x[m][k] * value(row r of tile t, column k).
struct Float8Arguments {
  const uint8_t* codes[kFloat8Tiles];
  const float* scales[kFloat8Tiles];
  int64_t padded, block;  ///< As in Matrix.
  /// [inputs, padded], zero from the depth on; of four columns the odd ones stand behind the even ones (0 2 1 3).
  const float* x;
  float (*out)[kFloat8Tiles * kTile];
};

/// The place of a column in Float8Arguments::x.
constexpr int64_t float8_place(int64_t column) {
  const int64_t inside = column % 4;
  return column - inside + (inside == 1 ? 2 : inside == 2 ? 1 : inside);
}

template <Format kFormat>
void float8_dot_portable(int inputs, const Float8Arguments& t) {
  const Float8Values& values = Float8Values::get(kFormat);
  for (int tile = 0; tile < kFloat8Tiles; ++tile) {
    for (int m = 0; m < inputs; ++m) {
      const float* x = t.x + m * t.padded;
      float totals[kTile] = {};
      for (int64_t b = 0; b < t.padded / t.block; ++b) {
        float sums[kTile] = {};
        for (int64_t k = b * t.block; k < (b + 1) * t.block; ++k) {
          const uint8_t* codes = t.codes[tile] + k / 4 * 64 + k % 4;
          for (int r = 0; r < kTile; ++r) sums[r] += values.of[codes[r * 4]] * x[float8_place(k)];
        }
        for (int r = 0; r < kTile; ++r) totals[r] += t.scales[tile][b * kTile + r] * sums[r];
      }
      std::copy_n(totals, kTile, t.out[m] + tile * kTile);
    }
  }
}

/// panel[k * ld_panel + r] = value(row r, column first + k) for k < depth, of one tile's codes and scales. Rows of the
/// panel up to the next multiple of four may be written too.
struct Float8PackArguments {
  const uint8_t* codes;
  const float* scales;
  int64_t block;
  int64_t first, depth;
  float* panel;
  int64_t ld_panel;
};

template <Format kFormat>
void float8_pack_portable(const Float8PackArguments& t) {
  const Float8Values& values = Float8Values::get(kFormat);
  for (int64_t k = 0; k < t.depth; ++k) {
    const int64_t column = t.first + k;
    const uint8_t* codes = t.codes + column / 4 * 64 + column % 4;
    const float* scales = t.scales + column / t.block * kTile;
    for (int r = 0; r < kTile; ++r) t.panel[k * t.ld_panel + r] = values.of[codes[r * 4]] * scales[r];
  }
}

/// Makes the sums of tile rows that hold a NaN code NaN: the vector code takes it for a number.
inline void spoil_nan_rows(Format format, int inputs, const Float8Arguments& t) {
  const Float8Values& values = Float8Values::get(format);
  for (int tile = 0; tile < kFloat8Tiles; ++tile) {
    for (int64_t i = 0; i < t.padded * kTile; ++i) {
      if (!std::isnan(values.of[t.codes[tile][i]])) continue;
      const int64_t r = i / 4 % kTile;
      for (int m = 0; m < inputs; ++m) t.out[m][tile * kTile + r] = std::numeric_limits<float>::quiet_NaN();
    }
  }
}

}  // namespace poptransformer

#include "float8_avx2.h"
#include "float8_avx512.h"

namespace poptransformer {

/// The loops of this processor for one format.
struct Float8Kernels {
  void (*dot)(int inputs, const Float8Arguments& t);  ///< 1 <= inputs <= `inputs`
  void (*pack)(const Float8PackArguments& t);
  int inputs;        ///< Input rows per dot call at most.
  int64_t max_rows;  ///< Input rows up to which dots beat panels (measured).

  static const Float8Kernels& pick(Format format) {
    static const Float8Kernels picked[] = {make<Format::kE4M3FN>(), make<Format::kE5M2>(), make<Format::kE4M3FNUZ>(),
                                           make<Format::kE5M2FNUZ>()};
    return picked[static_cast<int>(format) - static_cast<int>(Format::kE4M3FN)];
  }

 private:
  template <Format kFormat>
  static Float8Kernels make() {
#if POPTRANSFORMER_X86
    if (simd() >= Simd::kAvx512) return {float8_dot_avx512<kFormat>, float8_pack_avx512<kFormat>, 8, 12};
    if (simd() >= Simd::kAvx2) return {float8_dot_avx2<kFormat>, float8_pack_avx2<kFormat>, 4, 8};
#endif
    return {float8_dot_portable<kFormat>, float8_pack_portable<kFormat>, kMaxFloat8Inputs, kMaxFloat8Inputs};
  }
};

}  // namespace poptransformer
