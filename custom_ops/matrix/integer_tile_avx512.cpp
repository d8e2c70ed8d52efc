// SPDX-License-Identifier: Apache-2.0
// AVX-512 with VNNI: one instruction multiplies 16 weight rows x 4 columns.
#include <array>
#include <cstring>
#include <utility>

#include "integer_tile_versions.h"

#if POPTRANSFORMER_X86

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own headers: the intrinsics without a mask pass an undefined vector for the lanes left out.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace poptransformer {
namespace {

/// Bytes of codes ahead at which they are asked for (measured). What lies beyond a share is asked for in vain, and its
/// beginning by threads that have nothing else to do (thread_crew.h).
constexpr int64_t kAhead = 1024;

/// Four codes of a row, in every lane.
POPTRANSFORMER_AVX512 inline __m512i four_codes(const int8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, sizeof four);
  __m512i all = _mm512_set1_epi32(four);
  asm("" : "+v"(all));  // Loaded once, not again as an operand of each instruction.
  return all;
}

POPTRANSFORMER_AVX512 inline __m512 load_scales(const Float16* values) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
}

/// What is added to the dot product of the codes to get that of the values.
template <Codes kCodes>
POPTRANSFORMER_AVX512 inline __m512i zero_correction(int32_t sum) {
  if (kCodes == Codes::kInt4Offsets) return _mm512_setzero_si512();
  return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(_mm512_set1_epi32(sum), zero_bits(kCodes)));
}

/// dots[m][t] += codes of row m . codes of tile t, for one chunk.
template <Codes kCodes, int kRows, int kTiles>
POPTRANSFORMER_AVX512 inline void add_dots(const int8_t* const* x, const uint8_t* const* codes,
                                           __m512i (*dots)[kTiles]) {
  constexpr bool kPairs = kCodes != Codes::kInt8;
  constexpr int kSteps = kPairs ? 4 : 8;
  const __m512i low_bits = _mm512_set1_epi8(15);
  POPTRANSFORMER_UNROLL
  for (int j = 0; j < kSteps; ++j) {
    __m512i low[kTiles], high[kTiles];
    POPTRANSFORMER_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      low[t] = _mm512_loadu_si512(codes[t] + 64 * j);
      if (!kPairs) continue;
      high[t] = _mm512_and_si512(_mm512_srli_epi16(low[t], 4), low_bits);
      low[t] = _mm512_and_si512(low[t], low_bits);
    }
    POPTRANSFORMER_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const __m512i first = four_codes(x[m] + 4 * j);
      POPTRANSFORMER_UNROLL
      for (int t = 0; t < kTiles; ++t) dots[m][t] = _mm512_dpbusd_epi32(dots[m][t], low[t], first);
      if (!kPairs) continue;
      const __m512i second = four_codes(x[m] + 16 + 4 * j);
      POPTRANSFORMER_UNROLL
      for (int t = 0; t < kTiles; ++t) dots[m][t] = _mm512_dpbusd_epi32(dots[m][t], high[t], second);
    }
  }
}

template <Codes kCodes, int kRows, int kTiles>
POPTRANSFORMER_AVX512 void tile_avx512(const IntegerTile& tile) {
  constexpr bool kOffsets = kCodes == Codes::kInt4Offsets;
  constexpr int64_t kBytes = chunk_bytes(kCodes);
  const int64_t chunks = tile.chunks();
  const int8_t* x[kRows];
  const uint8_t* codes[kTiles];
  __m512 sums[kRows][kTiles];
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kRows; ++m) x[m] = tile.x + m * chunks * kChunk;
  POPTRANSFORMER_UNROLL
  for (int t = 0; t < kTiles; ++t) codes[t] = tile.codes[t];
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kRows; ++m) {
    POPTRANSFORMER_UNROLL
    for (int t = 0; t < kTiles; ++t) sums[m][t] = _mm512_setzero_ps();
  }
  for (int64_t chunk = 0, block = 0, left = tile.chunks_per_block; chunk < chunks; ++chunk) {
    __m512i dots[kRows][kTiles];
    POPTRANSFORMER_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const __m512i correction = zero_correction<kCodes>(tile.x_sums[m * chunks + chunk]);
      POPTRANSFORMER_UNROLL
      for (int t = 0; t < kTiles; ++t) dots[m][t] = correction;
    }
    POPTRANSFORMER_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      for (int64_t line = 0; line < kBytes; line += 64) prefetch(codes[t] + kAhead + line);
    }
    add_dots<kCodes, kRows, kTiles>(x, codes, dots);
    // Not loaded before: dots and sums leave no registers for them.
    __m512 scales[kTiles], offsets[kTiles];
    POPTRANSFORMER_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      scales[t] = load_scales(tile.scales[t] + block * kTile);
      prefetch(tile.scales[t] + block * kTile + kAhead / 16);
      if (!kOffsets) continue;
      offsets[t] = load_scales(tile.offsets[t] + block * kTile);
      prefetch(tile.offsets[t] + block * kTile + kAhead / 16);
    }
    POPTRANSFORMER_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const __m512 scale = _mm512_set1_ps(tile.x_scales[m * chunks + chunk]);
      POPTRANSFORMER_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        if (kOffsets) {
          sums[m][t] = _mm512_fmadd_ps(offsets[t], _mm512_set1_ps(tile.x_totals[m * chunks + chunk]), sums[m][t]);
        }
        sums[m][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[m][t]), _mm512_mul_ps(scales[t], scale), sums[m][t]);
      }
      x[m] += kChunk;
    }
    POPTRANSFORMER_UNROLL
    for (int t = 0; t < kTiles; ++t) codes[t] += kBytes;
    if (--left > 0) continue;
    left = tile.chunks_per_block;
    ++block;
  }
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kRows; ++m) {
    POPTRANSFORMER_UNROLL
    for (int t = 0; t < kTiles; ++t) _mm512_storeu_ps(tile.y[t] + m * tile.ldy, sums[m][t]);
  }
}

template <Codes kCodes, int kTiles, size_t... kRows>
IntegerTileFunction find_rows(int rows, std::index_sequence<kRows...>) {
  static constexpr std::array<IntegerTileFunction, sizeof...(kRows)> kFunctions{
      tile_avx512<kCodes, static_cast<int>(kRows) + 1, kTiles>...};
  return kFunctions[static_cast<size_t>(rows - 1)];
}

template <Codes kCodes>
IntegerTileFunction find_tiles(int rows, int tiles) {
  if (tiles == 4) return find_rows<kCodes, 4>(rows, std::make_index_sequence<2>());
  if (tiles == 2) return find_rows<kCodes, 2>(rows, std::make_index_sequence<6>());
  return find_rows<kCodes, 1>(rows, std::make_index_sequence<6>());
}

IntegerTileFunction find(Codes codes, int rows, int tiles) {
  switch (codes) {
    case Codes::kInt4: return find_tiles<Codes::kInt4>(rows, tiles);
    case Codes::kInt4Offsets: return find_tiles<Codes::kInt4Offsets>(rows, tiles);
    default: return find_tiles<Codes::kInt8>(rows, tiles);
  }
}

}  // namespace

// Six rows times two tiles fill the 32 registers; of more, sums would lie on the stack.
const IntegerTiles kIntegerTilesAvx512{find, 6, [](int64_t rows) { return rows <= 2 ? 4 : 2; }};

}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
