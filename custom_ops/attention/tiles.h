// SPDX-License-Identifier: Apache-2.0
// The two products of attention for many query rows: keys and values of a block of slots are widened once, the keys
// transposed too, and multiplied by tiles of query rows. Portable versions.
#pragma once

#include <algorithm>

#include "cache_value.h"

namespace poptransformer {
namespace attention {

constexpr int64_t kBlockSlots = 64;  ///< Slots whose keys and values are held widened at a time.
constexpr int64_t kTileRows = 8;     ///< Most query rows of a tile.

/// c[r][j] = sum over k of a[r][k] * b[k][j], added to c if `adds`; for 1 <= rows <= kTileRows, columns a multiple of
/// 16. Each sum runs over k in order, so a row's result does not depend on the other rows.
struct TileArguments {
  int64_t rows, columns, depth;
  const float* a;
  int64_t ld_a;
  const float* b;
  int64_t ld_b;
  float* c;
  int64_t ld_c;
  bool adds;
};

inline void multiply_tile_portable(const TileArguments& t) {
  for (int64_t r = 0; r < t.rows; ++r) {
    float* c = t.c + r * t.ld_c;
    if (!t.adds) std::fill_n(c, t.columns, 0.0f);
    for (int64_t k = 0; k < t.depth; ++k) {
      const float a = t.a[r * t.ld_a + k];
      const float* b = t.b + k * t.ld_b;
      for (int64_t j = 0; j < t.columns; ++j) c[j] += a * b[j];
    }
  }
}

/// panel[k][j] = keys[j][k] for j < count; the other columns up to a multiple of 16 are zero. Rows of the panel are
/// kBlockSlots apart.
template <class Cache>
void pack_keys_portable(const Cache* keys, int64_t head_dim, int64_t count, float* panel) {
  for (int64_t k = 0; k < head_dim; ++k, panel += kBlockSlots) {
    for (int64_t j = 0; j < count; ++j) panel[j] = widen(keys[j * head_dim + k]);
    std::fill(panel + count, panel + (count + 15) / 16 * 16, 0.0f);
  }
}

/// rows[j] = values[j] with zeros from `head_dim` up to `width`.
template <class Cache>
void widen_rows_portable(const Cache* values, int64_t head_dim, int64_t width, int64_t count, float* rows) {
  for (int64_t j = 0; j < count; ++j, values += head_dim, rows += width) {
    for (int64_t k = 0; k < head_dim; ++k) rows[k] = widen(values[k]);
    std::fill(rows + head_dim, rows + width, 0.0f);
  }
}

}  // namespace attention
}  // namespace poptransformer
