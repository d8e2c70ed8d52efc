// SPDX-License-Identifier: Apache-2.0
// fp8 weights, packed in tiles, times fp32 activations. As with floats.cpp, there is one algorithm for few input rows
// (decode) and one for many (prefill).
#include <algorithm>
#include <cstdint>

#include "../common/scratch.h"
#include "float8_kernels.h"
#include "matrix.h"
#include "panels.h"

namespace poptransformer {
namespace {

/// Codes and scales of a matrix by tile.
struct PackedTiles {
  const uint8_t* codes;
  const float* scales;
  int64_t padded, block;
  int64_t first;  ///< Number of the first tile of the rectangle.

  PackedTiles(const Matrix& m, const Block& rectangle)
      : codes(static_cast<const uint8_t*>(m.data)), scales(static_cast<const float*>(m.scales)), padded(m.padded),
        block(m.block), first(rectangle.columns.begin / kTile) {}

  const uint8_t* codes_of(int64_t tile) const { return codes + (first + tile) * padded * kTile; }
  const float* scales_of(int64_t tile) const { return scales + (first + tile) * (padded / block) * kTile; }
};

/// Packs tiles for `multiply_by_panels`.
struct TilePacker {
  PackedTiles tiles;
  void (*pack_tile)(const Float8PackArguments& t);

  void pack(int64_t column, int, int64_t first, int64_t depth, float* panel, int64_t ld_panel) const {
    const int64_t tile = column / kTile;
    pack_tile({tiles.codes_of(tile), tiles.scales_of(tile), tiles.block, first, depth, panel, ld_panel});
  }

  static constexpr int64_t kRowBytes = 1;

  /// A sixteenth of the tile's codes: they lie by columns, not by rows.
  const void* row(int64_t column, int64_t first, int64_t depth) const {
    return tiles.codes_of(column / kTile) + first * kTile + column % kTile * depth;
  }
};

/// x as Float8Arguments wants it: [rows, padded], in scratch memory of this thread.
const float* reordered(const Rectangle& p, int64_t padded) {
  float* const copy = scratch<float>(Scratch::kOwn, static_cast<size_t>(p.rows * padded));
  for (int64_t m = 0; m < p.rows; ++m) {
    const float* x = p.x + m * p.ldx;
    float* out = copy + m * padded;
    const int64_t whole = p.depth / 4 * 4;
    for (int64_t k = 0; k < whole; k += 4) {
      for (int i = 0; i < 4; ++i) out[k + float8_place(i)] = x[k + i];
    }
    std::fill(out + whole, out + padded, 0.0f);
    for (int64_t k = whole; k < p.depth; ++k) out[float8_place(k)] = x[k];
  }
  return copy;
}

/// The tiles are walked as two streams side by side: one stream does not use the bandwidth of a core.
void multiply_by_dots(const Rectangle& p, const PackedTiles& tiles, const Float8Kernels& kernels) {
  const int64_t count = (p.columns + kTile - 1) / kTile, stream = (count + kFloat8Tiles - 1) / kFloat8Tiles;
  const int passes = static_cast<int>((p.rows + kernels.inputs - 1) / kernels.inputs);
  const float* x = reordered(p, tiles.padded);
  float out[kMaxFloat8Inputs][kFloat8Tiles * kTile];
  for (int64_t step = 0; step < stream; ++step) {
    // A stream that is through repeats the last tile: the same values are written twice.
    const int64_t tile[kFloat8Tiles] = {step, std::min(stream + step, count - 1)};
    Float8Arguments t = {};
    t.padded = tiles.padded;
    t.block = tiles.block;
    t.out = out;
    for (int i = 0; i < kFloat8Tiles; ++i) {
      t.codes[i] = tiles.codes_of(tile[i]);
      t.scales[i] = tiles.scales_of(tile[i]);
    }
    for (int pass = 0; pass < passes; ++pass) {
      const Range inputs = share(p.rows, pass, passes);
      t.x = x + inputs.begin * tiles.padded;
      kernels.dot(static_cast<int>(inputs.end - inputs.begin), t);
      for (int64_t m = inputs.begin; m < inputs.end; ++m) {
        for (int i = 0; i < kFloat8Tiles; ++i) {
          const int64_t column = tile[i] * kTile;
          std::copy_n(out[m - inputs.begin] + i * kTile, std::min(kTile, p.columns - column), p.y + m * p.ldy + column);
        }
      }
    }
  }
}

}  // namespace

void multiply_float8(const Matrix& m, const Input& input, const Block& block, float* y, int64_t ldy) {
  const Float8Kernels& kernels = Float8Kernels::pick(m.format);
  const Rectangle rectangle = rectangle_of(m, input, block, y, ldy);
  const PackedTiles tiles(m, block);
  // Chosen by the rows of the whole product: a row's result must not depend on how the work is shared out.
  if (input.rows <= kernels.max_rows) return multiply_by_dots(rectangle, tiles, kernels);
  multiply_by_panels(rectangle, TilePacker{tiles, kernels.pack});
}

}  // namespace poptransformer
