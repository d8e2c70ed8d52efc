// SPDX-License-Identifier: Apache-2.0
// int4 and int8 weights times int8 activations, see integer_tile.h. Here: in which order tiles and rows are visited.
#include <algorithm>
#include <cstdint>

#include "integer_tile.h"
#include "matrix.h"

namespace poptransformer {
namespace {

/// Activations that are multiplied with one tile after the other stay in the second-level cache.
constexpr int64_t kActivationBytes = 256 << 10;

/// One rectangle of the output.
class Rectangle {
 public:
  Rectangle(const Matrix& matrix, const QuantizedRows& rows, const Block& block, float* y, int64_t ldy)
      : m_(matrix), x_(rows), block_(block), y_(y), ldy_(ldy) {}

  void multiply() const {
    const int64_t groups = std::max<int64_t>(1, kActivationBytes / std::max<int64_t>(1, m_.padded) / tiles_.max_rows);
    const int64_t step = groups * tiles_.max_rows;
    for (int64_t row = block_.rows.begin; row < block_.rows.end; row += step) {
      multiply_rows({row, std::min(row + step, block_.rows.end)});
    }
  }

 private:
  /// All tiles, as streams side by side: each stream is a run of tiles that lie one behind the other in memory.
  void multiply_rows(Range rows) const {
    int64_t tile = block_.columns.begin / kTile;
    const int64_t end = block_.columns.end / kTile;  // Of the whole tiles.
    for (int width = tiles_.max_tiles(rows.end - rows.begin); width > 0; width /= 2) {
      const int64_t stream = (end - tile) / width;
      for (int64_t i = 0; i < stream; ++i) {
        IntegerTile call = make_call();
        for (int t = 0; t < width; ++t) set_tile(&call, t, rows.begin, tile + t * stream + i);
        multiply_tiles(&call, width, rows);
      }
      tile += width * stream;
    }
    if (block_.columns.end % kTile != 0 && block_.columns.end > block_.columns.begin) multiply_last(end, rows);
  }

  /// A tile of which only some rows are there.
  void multiply_last(int64_t tile, Range rows) const {
    const int64_t width = block_.columns.end - tile * kTile;
    for (int64_t row = rows.begin; row < rows.end; row += tiles_.max_rows) {
      const Range few{row, std::min(row + tiles_.max_rows, rows.end)};
      float results[kMaxIntegerRows * kTile];
      IntegerTile call = make_call();
      set_tile(&call, 0, row, tile);
      call.y[0] = results;
      call.ldy = kTile;
      multiply_group(&call, 1, few);
      for (int64_t r = 0; r < few.end - few.begin; ++r) {
        std::copy_n(results + r * kTile, width, y_at(few.begin + r, tile));
      }
    }
  }

  /// Rows are taken in groups of about equal height, for each group decodes the tiles anew.
  void multiply_tiles(IntegerTile* call, int tiles, Range rows) const {
    const int64_t count = rows.end - rows.begin;
    const int groups = static_cast<int>((count + tiles_.max_rows - 1) / tiles_.max_rows);
    for (int group = 0; group < groups; ++group) {
      const Range part = share(count, group, groups);
      multiply_group(call, tiles, {rows.begin + part.begin, rows.begin + part.end});
      for (int t = 0; t < tiles; ++t) call->y[t] += (part.end - part.begin) * ldy_;
    }
  }

  void multiply_group(IntegerTile* call, int tiles, Range rows) const {
    const int64_t chunks = m_.padded / kChunk;
    call->x = x_.codes + rows.begin * x_.padded;
    call->x_scales = x_.scales + rows.begin * chunks;
    call->x_sums = x_.sums + rows.begin * chunks;
    call->x_totals = x_.totals + rows.begin * chunks;
    tiles_.find(codes_, static_cast<int>(rows.end - rows.begin), tiles)(*call);
  }

  IntegerTile make_call() const {
    IntegerTile call;
    call.blocks = m_.padded / m_.block;
    call.chunks_per_block = m_.block / kChunk;
    call.ldy = ldy_;
    return call;
  }

  void set_tile(IntegerTile* call, int t, int64_t row, int64_t tile) const {
    const int64_t scales = tile * call->blocks * kTile;
    call->codes[t] = static_cast<const uint8_t*>(m_.data) + tile * (m_.padded / kChunk) * chunk_bytes(codes_);
    call->scales[t] = static_cast<const Float16*>(m_.scales) + scales;
    if (m_.offsets) call->offsets[t] = static_cast<const Float16*>(m_.offsets) + scales;
    call->y[t] = y_at(row, tile);
  }

  float* y_at(int64_t row, int64_t tile) const {
    return y_ + (row - block_.rows.begin) * ldy_ + tile * kTile - block_.columns.begin;
  }

  const Matrix& m_;
  const QuantizedRows& x_;
  const Block& block_;
  float* const y_;
  const int64_t ldy_;
  const IntegerTiles& tiles_ = IntegerTiles::pick();
  const Codes codes_ = m_.format == Format::kInt8 ? Codes::kInt8 : m_.offsets ? Codes::kInt4Offsets : Codes::kInt4;
};

}  // namespace

void multiply_integers(const Matrix& matrix, const Input& input, const Block& block, float* y, int64_t ldy) {
  Rectangle(matrix, input.quantized, block, y, ldy).multiply();
}

}  // namespace poptransformer
