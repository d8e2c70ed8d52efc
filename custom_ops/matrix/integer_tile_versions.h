// SPDX-License-Identifier: Apache-2.0
// The versions of integer_tile.h, one file each.
#pragma once

#include "integer_tile.h"

namespace poptransformer {

extern const IntegerTiles kIntegerTilesPortable;
#if POPTRANSFORMER_X86
extern const IntegerTiles kIntegerTilesAvx2;
extern const IntegerTiles kIntegerTilesAvx512;
#endif

}  // namespace poptransformer
