// SPDX-License-Identifier: Apache-2.0
// The innermost product with integer weights: a few rows of activations times a few tiles of 16 weight rows, over the
// whole depth. `IntegerTiles::pick` gives the fastest version this processor runs.
//
// Every version computes each result by the same steps, whatever the other rows and tiles of the call: for one chunk of
// 32 columns after the other the exact dot product of the codes, converted to fp32, times the product of both scales,
// added by a fused multiply-add where there is one. So a result depends on its own row and weight row alone.
#pragma once

#include <cstdint>

#include "../common/float_formats.h"
#include "../common/simd.h"
#include "matrix.h"

namespace poptransformer {

constexpr int kMaxTiles = 4;          ///< Tiles of one call: four streams use the bandwidth of a core.
constexpr int kMaxIntegerRows = 8;    ///< Rows of one call.

/// How weights are stored: int4 around 8, int4 with offsets, int8 around 128.
enum class Codes { kInt4, kInt4Offsets, kInt8 };

constexpr int64_t chunk_bytes(Codes codes) { return codes == Codes::kInt8 ? 512 : 256; }
/// The code of zero is 2 to the power of this; codes with offsets have none.
constexpr int zero_bits(Codes codes) { return codes == Codes::kInt8 ? 7 : 3; }

struct IntegerTile {
  int64_t blocks = 0;              ///< Of the weight's scales.
  int64_t chunks_per_block = 0;
  const int8_t* x = nullptr;       ///< First row's codes; from one row to the next are `chunks` * 32.
  const float* x_scales = nullptr;
  const int32_t* x_sums = nullptr;
  const float* x_totals = nullptr;
  const uint8_t* codes[kMaxTiles] = {};
  const Float16* scales[kMaxTiles] = {};
  const Float16* offsets[kMaxTiles] = {};
  float* y[kMaxTiles] = {};        ///< 16 results of each row and tile.
  int64_t ldy = 0;

  int64_t chunks() const { return blocks * chunks_per_block; }
};

using IntegerTileFunction = void (*)(const IntegerTile& tile);

/// The versions for one instruction set.
struct IntegerTiles {
  /// The function for that many rows and tiles. Tiles are 1, 2 or 4 and no more than `max_tiles(rows)`.
  IntegerTileFunction (*find)(Codes codes, int rows, int tiles);
  int max_rows;
  int (*max_tiles)(int64_t rows);

  static const IntegerTiles& pick();
};

}  // namespace poptransformer
