// SPDX-License-Identifier: Apache-2.0
// The portable version: loops that compilers vectorise, one row and tile at a time.
#include "integer_tile.h"

#include <algorithm>

#include "integer_tile_versions.h"

namespace poptransformer {
namespace {

/// products[r] = values of weight row r . codes of the activations, for one chunk.
template <Codes kCodes>
void dots_portable(const int8_t* x, const uint8_t* codes, int32_t* dots) {
  constexpr int kSteps = kCodes == Codes::kInt8 ? 8 : 4;
  int32_t lanes[4 * kTile] = {};  // Four columns of each row, as codes lie.
  for (int j = 0; j < kSteps; ++j, codes += 4 * kTile) {
    for (int64_t lane = 0; lane < 4 * kTile; ++lane) {
      const int32_t first = x[4 * j + lane % 4];
      if (kCodes == Codes::kInt8) {
        lanes[lane] += (codes[lane] - 128) * first;
      } else {
        const int32_t zero = kCodes == Codes::kInt4 ? 8 : 0, second = x[16 + 4 * j + lane % 4];
        lanes[lane] += ((codes[lane] & 15) - zero) * first + ((codes[lane] >> 4) - zero) * second;
      }
    }
  }
  for (int64_t r = 0; r < kTile; ++r) {
    dots[r] = lanes[4 * r] + lanes[4 * r + 1] + lanes[4 * r + 2] + lanes[4 * r + 3];
  }
}

template <Codes kCodes>
void tile_portable(const IntegerTile& tile) {
  float sums[kTile] = {};
  for (int64_t chunk = 0; chunk < tile.chunks(); ++chunk) {
    const int64_t block = chunk / tile.chunks_per_block;
    int32_t dots[kTile];
    dots_portable<kCodes>(tile.x + chunk * kChunk, tile.codes[0] + chunk * chunk_bytes(kCodes), dots);
    const Float16* const scales = tile.scales[0] + block * kTile;
    for (int64_t r = 0; r < kTile; ++r) {
      sums[r] += static_cast<float>(dots[r]) * (to_float(scales[r]) * tile.x_scales[chunk]);
    }
    if (kCodes != Codes::kInt4Offsets) continue;
    const Float16* const offsets = tile.offsets[0] + block * kTile;
    for (int64_t r = 0; r < kTile; ++r) sums[r] += to_float(offsets[r]) * tile.x_totals[chunk];
  }
  std::copy_n(sums, kTile, tile.y[0]);
}

IntegerTileFunction find(Codes codes, int, int) {
  switch (codes) {
    case Codes::kInt4: return tile_portable<Codes::kInt4>;
    case Codes::kInt4Offsets: return tile_portable<Codes::kInt4Offsets>;
    default: return tile_portable<Codes::kInt8>;
  }
}

}  // namespace

const IntegerTiles kIntegerTilesPortable{find, 1, [](int64_t) { return 1; }};

const IntegerTiles& IntegerTiles::pick() {
#if POPTRANSFORMER_X86
  if (simd() >= Simd::kAvx512) return kIntegerTilesAvx512;
  if (simd() >= Simd::kAvx2) return kIntegerTilesAvx2;
#endif
  return kIntegerTilesPortable;
}

}  // namespace poptransformer
