// SPDX-License-Identifier: Apache-2.0
// A packed weight among the inputs of an op.
#pragma once

#include <cstdint>

#include "../common/tensor.h"
#include "matrix.h"

namespace poptransformer {

/// The weight of `columns` rows whose parts these tensors are. Its depth is left out: only the op's x tells it.
/// @throws Error if a tensor's type or shape does not fit the format, `columns` or the other tensors.
Matrix packed_matrix(Format format, int64_t columns, const Tensor& codes, const Tensor& scales, const Tensor& offsets);

/// Sets the depth of a packed weight to the columns of x, which must be what it was packed from.
/// @throws Error
void set_packed_depth(const Tensor& x, Matrix* matrix);

}  // namespace poptransformer
