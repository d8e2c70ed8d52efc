// SPDX-License-Identifier: Apache-2.0
// Errors of kernels: thrown as exceptions, turned into an OrtStatus where onnxruntime calls us (ort_op.h).
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace poptransformer {

/// What the caller did wrong: the message names the op, the input, what was expected and what was found.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws an Error whose message is all `parts`, written one after the other.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

}  // namespace poptransformer
