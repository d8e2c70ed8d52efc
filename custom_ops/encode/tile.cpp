// SPDX-License-Identifier: Apache-2.0
// The encoder, once for each instruction set. Its vectors are the compiler's own, so the same text serves all of them.
// AVX-512 was no faster than AVX2 here.
#include "tile.h"

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/simd.h"

namespace poptransformer {

namespace portable {
constexpr int kWidth = 4;
#include "lanes.inl"
#include "tile.inl"
}  // namespace portable

#if POPTRANSFORMER_X86
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
constexpr int kWidth = 8;
#include "lanes.inl"
#include "tile.inl"
}  // namespace avx2
#pragma GCC pop_options
#endif

void encode_tile_block(
    const EncodeRequest& request, const float* x, const float* weights, int64_t columns, TileBlock& out) {
#if POPTRANSFORMER_X86
  if (simd() >= Simd::kAvx2) return avx2::encode_block(request, x, weights, columns, out);
#endif
  portable::encode_block(request, x, weights, columns, out);
}

}  // namespace poptransformer
