// SPDX-License-Identifier: Apache-2.0
// Encoding of one block of 16 rows.
#pragma once

#include <cstdint>

#include "request.h"

namespace poptransformer {

constexpr int kTileRows = 16;

/// The result for one block of a tile.
struct TileBlock {
  uint8_t* codes;  ///< [columns, 16], one code in a byte.
  alignas(64) float scales[kTileRows];
  alignas(64) float offsets[kTileRows];
  alignas(64) float errors[kTileRows];       ///< Sums of squared errors.
  alignas(64) float costs[kTileRows];        ///< The same, weighed.
  alignas(64) int32_t saturated[kTileRows];  ///< Values beyond the format's range.
};

/// Chooses scales for 16 rows of a block and encodes them.
/// @param x the values, transposed: [columns, 16].
/// @param weights of squared errors, [columns].
void encode_tile_block(
    const EncodeRequest& request, const float* x, const float* weights, int64_t columns, TileBlock& out);

}  // namespace poptransformer
