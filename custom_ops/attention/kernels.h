// SPDX-License-Identifier: Apache-2.0
// The building blocks of attention over a cache of type Cache, chosen for this processor.
#pragma once

#include "dots.h"
#include "dots_avx2.h"
#include "dots_avx512.h"
#include "rows.h"
#include "softmax.h"
#include "softmax_simd.h"
#include "tiles.h"
#include "tiles_avx2.h"
#include "tiles_avx512.h"

namespace poptransformer {
namespace attention {

template <class Cache>
struct Kernels {
  decltype(&scale_portable) scale;
  decltype(&rotate_portable) rotate;
  decltype(&soften_portable) soften;
  decltype(&multiply_tile_portable) multiply_tile;
  int64_t tile_rows;  ///< Query rows per tile.
  decltype(&narrow_row_portable<Cache>) narrow_row;
  decltype(&score_portable<Cache>) score;
  decltype(&weigh_portable<Cache>) weigh;
  decltype(&pack_keys_portable<Cache>) pack_keys;
  decltype(&widen_rows_portable<Cache>) widen_rows;

  static const Kernels& pick() {
    static const Kernels picked = make();
    return picked;
  }

 private:
  static Kernels make() {
#if POPTRANSFORMER_X86
    if (simd() >= Simd::kAvx512) {
      return {scale_avx2,
              rotate_avx2,
              soften_avx512,
              multiply_tile_avx512,
              kTileRows,
              narrow_row_avx512<Cache>,
              score_avx512<Cache>,
              weigh_avx512<Cache>,
              pack_keys_avx512<Cache>,
              widen_rows_avx512<Cache>};
    }
    if (simd() >= Simd::kAvx2) {
      return {scale_avx2,
              rotate_avx2,
              soften_avx2,
              multiply_tile_avx2,
              kTileRowsAvx2,
              narrow_row_avx2<Cache>,
              score_avx2<Cache>,
              weigh_avx2<Cache>,
              pack_keys_avx2<Cache>,
              widen_rows_avx2<Cache>};
    }
#endif
    return {scale_portable,
            rotate_portable,
            soften_portable,
            multiply_tile_portable,
            kTileRows,
            narrow_row_portable<Cache>,
            score_portable<Cache>,
            weigh_portable<Cache>,
            pack_keys_portable<Cache>,
            widen_rows_portable<Cache>};
  }
};

}  // namespace attention
}  // namespace poptransformer
