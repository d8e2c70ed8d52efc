// SPDX-License-Identifier: Apache-2.0
// One execution of a kernel: what it reads and where it writes.
#pragma once

#include <cstddef>

#include "arguments.h"
#include "error.h"
#include "tensor.h"

namespace poptransformer {

class Call {
 public:
  Call(const OpSpec& spec, Arguments& arguments) : spec_(spec), arguments_(arguments) {}

  /// The input at `index`; false in a boolean context if it is optional and was left out.
  Tensor input(size_t index) const {
    const ArgumentSpec& declared = spec_.input(index);
    Tensor tensor(spec_.name, declared.name);
    if (!arguments_.read(index, declared.type, &tensor) && declared.arity != kOptional) {
      tensor.reject("given", "none");
    }
    return tensor;
  }

  /// Memory for the output at `index`; null if it is optional and nobody wants it.
  template <class T>
  T* output(size_t index, const Shape& shape) {
    return static_cast<T*>(arguments_.allocate(index, shape));
  }

  /// Inputs and outputs as they are, for those who hand them on.
  Arguments& arguments() { return arguments_; }

  /// Throws `poptransformer.<op>: <parts...>`, for conditions between inputs.
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    poptransformer::fail("poptransformer.", spec_.name, ": ", parts...);
  }

 private:
  const OpSpec& spec_;
  Arguments& arguments_;
};

}  // namespace poptransformer
