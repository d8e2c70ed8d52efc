// SPDX-License-Identifier: Apache-2.0
// AVX2: `maddubs` multiplies 8 weight rows x 4 columns, unsigned times signed, and adds pairs of products in int16.
#include <array>
#include <cstring>
#include <utility>

#include "integer_tile_versions.h"

#if POPTRANSFORMER_X86

namespace poptransformer {
namespace {

constexpr int kMaxRows = 4;
constexpr int kHalves = 2;  ///< A tile is two vectors of 8 weight rows.
/// Bytes of codes ahead at which they are asked for: across a page, where the processor's own prefetcher stops.
constexpr int64_t kAhead = 4096;

/// Four codes of a row, in every lane.
POPTRANSFORMER_AVX2 inline __m256i four_codes(const int8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, sizeof four);
  __m256i all = _mm256_set1_epi32(four);
  asm("" : "+x"(all));  // Loaded once, not again as an operand of each instruction.
  return all;
}

POPTRANSFORMER_AVX2 inline __m256i load_codes(const uint8_t* codes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
}

/// The dot products of one chunk, int4: nibbles up to 15 times 127, eight pairs of them are within int16.
template <int kRows>
POPTRANSFORMER_AVX2 inline void dots_of_int4(const int8_t* const* x, const uint8_t* codes,
                                             __m256i (*dots)[kHalves]) {
  const __m256i low_bits = _mm256_set1_epi8(15);
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kRows; ++m) {
    POPTRANSFORMER_UNROLL
    for (int h = 0; h < kHalves; ++h) dots[m][h] = _mm256_setzero_si256();
  }
  POPTRANSFORMER_UNROLL
  for (int j = 0; j < 4; ++j) {
    __m256i low[kHalves], high[kHalves];
    POPTRANSFORMER_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      const __m256i pairs = load_codes(codes + 64 * j + 32 * h);
      low[h] = _mm256_and_si256(pairs, low_bits);
      high[h] = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low_bits);
    }
    POPTRANSFORMER_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const __m256i first = four_codes(x[m] + 4 * j), second = four_codes(x[m] + 16 + 4 * j);
      POPTRANSFORMER_UNROLL
      for (int h = 0; h < kHalves; ++h) {
        dots[m][h] = _mm256_add_epi16(dots[m][h], _mm256_maddubs_epi16(low[h], first));
        dots[m][h] = _mm256_add_epi16(dots[m][h], _mm256_maddubs_epi16(high[h], second));
      }
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kRows; ++m) {
    POPTRANSFORMER_UNROLL
    for (int h = 0; h < kHalves; ++h) dots[m][h] = _mm256_madd_epi16(dots[m][h], ones);
  }
}

/// The same, int8. Codes around zero, without their sign, are up to 128: times 127, a pair of them is just within int16.
/// The sign goes to the activations.
template <int kRows>
POPTRANSFORMER_AVX2 inline void dots_of_int8(const int8_t* const* x, const uint8_t* codes,
                                             __m256i (*dots)[kHalves]) {
  const __m256i zero_code = _mm256_set1_epi8(static_cast<char>(0x80)), ones = _mm256_set1_epi16(1);
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kRows; ++m) {
    POPTRANSFORMER_UNROLL
    for (int h = 0; h < kHalves; ++h) dots[m][h] = _mm256_setzero_si256();
  }
  POPTRANSFORMER_UNROLL
  for (int j = 0; j < 8; ++j) {
    __m256i values[kHalves], magnitudes[kHalves];
    POPTRANSFORMER_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      values[h] = _mm256_xor_si256(load_codes(codes + 64 * j + 32 * h), zero_code);
      magnitudes[h] = _mm256_abs_epi8(values[h]);
    }
    POPTRANSFORMER_UNROLL
    for (int m = 0; m < kRows; ++m) {
      const __m256i four = four_codes(x[m] + 4 * j);
      POPTRANSFORMER_UNROLL
      for (int h = 0; h < kHalves; ++h) {
        const __m256i pairs = _mm256_maddubs_epi16(magnitudes[h], _mm256_sign_epi8(four, values[h]));
        dots[m][h] = _mm256_add_epi32(dots[m][h], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
}

/// dots[m][h] = codes of row m . values of half h of the tile, for one chunk; int4 values are codes around zero where
/// they have no offsets.
template <Codes kCodes, int kRows>
POPTRANSFORMER_AVX2 inline void dots_of(const int8_t* const* x, const int32_t* x_sums, int64_t chunks,
                                        const uint8_t* codes, __m256i (*dots)[kHalves]) {
  if (kCodes == Codes::kInt8) return dots_of_int8<kRows>(x, codes, dots);
  dots_of_int4<kRows>(x, codes, dots);
  if (kCodes == Codes::kInt4Offsets) return;
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kRows; ++m) {
    const __m256i correction = _mm256_slli_epi32(_mm256_set1_epi32(x_sums[m * chunks]), zero_bits(kCodes));
    POPTRANSFORMER_UNROLL
    for (int h = 0; h < kHalves; ++h) dots[m][h] = _mm256_sub_epi32(dots[m][h], correction);
  }
}

template <Codes kCodes, int kRows, int kTiles>
POPTRANSFORMER_AVX2 void tile_avx2(const IntegerTile& tile) {
  constexpr bool kOffsets = kCodes == Codes::kInt4Offsets;
  constexpr int64_t kBytes = chunk_bytes(kCodes);
  const int64_t chunks = tile.chunks();
  const int8_t* x[kRows];
  const uint8_t* codes[kTiles];
  __m256 sums[kTiles][kRows][kHalves];
  POPTRANSFORMER_UNROLL
  for (int m = 0; m < kRows; ++m) x[m] = tile.x + m * chunks * kChunk;
  POPTRANSFORMER_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    codes[t] = tile.codes[t];
    POPTRANSFORMER_UNROLL
    for (int m = 0; m < kRows; ++m) {
      POPTRANSFORMER_UNROLL
      for (int h = 0; h < kHalves; ++h) sums[t][m][h] = _mm256_setzero_ps();
    }
  }
  int64_t chunk = 0;
  for (int64_t block = 0; block < tile.blocks; ++block) {
    POPTRANSFORMER_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      prefetch(tile.scales[t] + block * kTile + kAhead / 16);
      if (kOffsets) prefetch(tile.offsets[t] + block * kTile + kAhead / 16);
    }
    for (int64_t end = chunk + tile.chunks_per_block; chunk < end; ++chunk) {
      POPTRANSFORMER_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        for (int64_t line = 0; line < kBytes; line += 64) prefetch(codes[t] + kAhead + line);
        __m256i dots[kRows][kHalves];
        dots_of<kCodes, kRows>(x, tile.x_sums + chunk, chunks, codes[t], dots);
        codes[t] += kBytes;
        POPTRANSFORMER_UNROLL
        for (int h = 0; h < kHalves; ++h) {
          const __m256 scales = load8(tile.scales[t] + block * kTile + 8 * h);
          POPTRANSFORMER_UNROLL
          for (int m = 0; m < kRows; ++m) {
            const __m256 scale = _mm256_set1_ps(tile.x_scales[m * chunks + chunk]);
            if (kOffsets) {
              sums[t][m][h] = _mm256_fmadd_ps(load8(tile.offsets[t] + block * kTile + 8 * h),
                                              _mm256_set1_ps(tile.x_totals[m * chunks + chunk]), sums[t][m][h]);
            }
            sums[t][m][h] =
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[m][h]), _mm256_mul_ps(scales, scale), sums[t][m][h]);
          }
        }
      }
      POPTRANSFORMER_UNROLL
      for (int m = 0; m < kRows; ++m) x[m] += kChunk;
    }
  }
  POPTRANSFORMER_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    POPTRANSFORMER_UNROLL
    for (int m = 0; m < kRows; ++m) {
      POPTRANSFORMER_UNROLL
      for (int h = 0; h < kHalves; ++h) _mm256_storeu_ps(tile.y[t] + m * tile.ldy + 8 * h, sums[t][m][h]);
    }
  }
}

template <Codes kCodes, int kTiles, size_t... kRows>
IntegerTileFunction find_rows(int rows, std::index_sequence<kRows...>) {
  static constexpr std::array<IntegerTileFunction, sizeof...(kRows)> kFunctions{
      tile_avx2<kCodes, static_cast<int>(kRows) + 1, kTiles>...};
  return kFunctions[static_cast<size_t>(rows - 1)];
}

template <Codes kCodes>
IntegerTileFunction find_tiles(int rows, int tiles) {
  if (tiles == 4) return find_rows<kCodes, 4>(rows, std::make_index_sequence<2>());
  if (tiles == 2) return find_rows<kCodes, 2>(rows, std::make_index_sequence<2>());
  return find_rows<kCodes, 1>(rows, std::make_index_sequence<kMaxRows>());
}

IntegerTileFunction find(Codes codes, int rows, int tiles) {
  switch (codes) {
    case Codes::kInt4: return find_tiles<Codes::kInt4>(rows, tiles);
    case Codes::kInt4Offsets: return find_tiles<Codes::kInt4Offsets>(rows, tiles);
    default: return find_tiles<Codes::kInt8>(rows, tiles);
  }
}

}  // namespace

const IntegerTiles kIntegerTilesAvx2{find, kMaxRows, [](int64_t rows) { return rows <= 2 ? 4 : 1; }};

}  // namespace poptransformer

#endif  // POPTRANSFORMER_X86
