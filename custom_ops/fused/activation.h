// SPDX-License-Identifier: Apache-2.0
// Activation functions over rows, in place. Errors relative to the result: 1e-6 or less (measured), however large or
// small the argument is, as long as the result is a normal number.
#pragma once

#include <cstdint>
#include <string>

namespace poptransformer {

/// x[i] = f(x[i]) for n values.
using RowFunction = void (*)(float* x, int64_t n);

/// Sets `function` to the activation of that name (null for "none"), for this processor. @returns whether there is one.
bool find_activation(const std::string& name, RowFunction* function);

/// The names that `find_activation` knows, for messages.
constexpr char kActivationNames[] = "none, silu, gelu, gelu_tanh, relu, sigmoid or tanh";

}  // namespace poptransformer
