// SPDX-License-Identifier: Apache-2.0
// Products with many input rows (prefill): bound by arithmetic. Weights are packed, a panel at a time, to fp32
// [depth][columns] just before their use, whatever format they are stored in.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/scratch.h"
#include "panel_kernels.h"
#include "rectangle.h"

namespace poptransformer {

/// A panel of this depth (24 or 48 KB of fp32) comes fast enough from the first or second-level cache. A multiple of
/// kChunk.
constexpr int64_t kPanelDepth = 384;
/// Input rows per panel at most: their kPanelDepth columns (384 KB) stay in the second-level cache.
constexpr int64_t kBlockRows = 256;

/// The product of one rectangle. `Packer` knows the weight:
///
///   // panel[k * ld + r] = weight row (column + r), column (first + k) as fp32, for r < width <= 16 and k < depth;
///   // zero for the other r < 16. Writes to rows of the panel up to the next multiple of kChunk.
///   void pack(int64_t column, int width, int64_t first, int64_t depth, float* panel, int64_t ld) const;
///   // The memory that `pack` reads for weight row `column`, from column `first` on, and its bytes per column.
///   const void* row(int64_t column, int64_t first, int64_t depth) const;
///   static constexpr int64_t kRowBytes = ...;
template <class Packer>
class PanelProduct {
 public:
  PanelProduct(const Rectangle& rectangle, const Packer& packer)
      : p_(rectangle), packer_(packer), tile_(PanelTile::pick()),
        panel_(scratch<float>(Scratch::kOwn, kPanelDepth * tile_.columns)) {}

  void run() const {
    const int64_t blocks = (p_.rows + kBlockRows - 1) / kBlockRows;
    const int64_t tiles = (p_.rows + tile_.rows - 1) / tile_.rows;
    for (int64_t b = 0; b < blocks; ++b) {
      const Range share_of_tiles = share(tiles, static_cast<int>(b), static_cast<int>(blocks));
      run_rows({share_of_tiles.begin * tile_.rows, std::min(share_of_tiles.end * tile_.rows, p_.rows)});
    }
  }

 private:
  /// Columns [column, column + width) at depths [first, first + depth).
  struct Panel {
    int64_t column, width;
    int64_t first, depth;
  };

  int64_t panels_across() const { return (p_.columns + tile_.columns - 1) / tile_.columns; }

  Panel panel_at(int64_t index) const {
    const int64_t column = index % panels_across() * tile_.columns, first = index / panels_across() * kPanelDepth;
    return {column, std::min<int64_t>(tile_.columns, p_.columns - column), first,
            std::min(kPanelDepth, p_.depth - first)};
  }

  void run_rows(const Range& rows) const {
    // At depth 0 one empty step still writes zeros.
    const int64_t steps = std::max<int64_t>(1, (p_.depth + kPanelDepth - 1) / kPanelDepth);
    const int64_t count = steps * panels_across();
    for (int64_t i = 0; i < count; ++i) {
      const Panel now = panel_at(i), next = panel_at(std::min(i + 1, count - 1));
      for (int64_t c = 0; c < now.width; c += kTile) {
        const int width = static_cast<int>(std::min(kTile, now.width - c));
        packer_.pack(now.column + c, width, now.first, now.depth, panel_ + c, tile_.columns);
      }
      multiply_panel(rows, now, next);
    }
  }

  /// Adds the panel's part to y, and has the next one's weights come from memory meanwhile.
  void multiply_panel(const Range& rows, const Panel& now, const Panel& next) const {
    const int64_t tiles = (rows.end - rows.begin + tile_.rows - 1) / tile_.rows;
    for (int64_t t = 0; t < tiles; ++t) {
      PanelPrefetch ahead;
      ahead.depth_per_line = 64 / Packer::kRowBytes;
      ahead.count = 0;
      for (int64_t c = next.width * t / tiles; c < next.width * (t + 1) / tiles; ++c) {
        ahead.rows[ahead.count++] = static_cast<const char*>(packer_.row(next.column + c, next.first, next.depth));
      }
      const int64_t row = rows.begin + t * tile_.rows;
      multiply_tile(row, static_cast<int>(std::min<int64_t>(tile_.rows, rows.end - row)), now, ahead);
    }
  }

  void multiply_tile(int64_t row, int rows, const Panel& panel, const PanelPrefetch& ahead) const {
    static constexpr float kZeros[kMaxPanelColumns] = {};
    const int columns = panel.width <= kTile ? static_cast<int>(kTile) : tile_.columns;
    float edge[kMaxTileRows * kMaxPanelColumns];  // Stands in for y where the last columns do not fill a tile.
    float* y = p_.y + row * p_.ldy + panel.column;
    const bool whole = panel.width == columns, fresh = panel.first == 0;
    float* target = whole ? y : edge;
    const int64_t ld = whole ? p_.ldy : columns;
    if (!whole && !fresh) copy_rows(rows, panel.width, y, p_.ldy, edge, columns);
    tile_.run(rows, columns, {p_.x + row * p_.ldx + panel.first, p_.ldx, panel_, tile_.columns,
                              fresh ? kZeros : target, fresh ? 0 : ld, target, ld, panel.depth, &ahead});
    if (!whole) copy_rows(rows, panel.width, edge, columns, y, p_.ldy);
  }

  static void copy_rows(int rows, int64_t width, const float* from, int64_t ld_from, float* to, int64_t ld_to) {
    for (int r = 0; r < rows; ++r) std::copy_n(from + r * ld_from, width, to + r * ld_to);
  }

  const Rectangle& p_;
  const Packer& packer_;
  const PanelTile& tile_;
  float* panel_;
};

template <class Packer>
void multiply_by_panels(const Rectangle& rectangle, const Packer& packer) {
  PanelProduct<Packer>(rectangle, packer).run();
}

}  // namespace poptransformer
