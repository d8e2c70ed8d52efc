// SPDX-License-Identifier: Apache-2.0
// Kernels by the names of their ops, for those who run them without onnxruntime (chain.cpp).
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "attributes.h"
#include "call.h"
#include "upcoming.h"

namespace poptransformer {

/// Where an object lies.
struct Memory {
  const void* address = nullptr;
  size_t bytes = 0;
};

/// A kernel whose class only its maker knows.
class AnyKernel {
 public:
  virtual ~AnyKernel() = default;
  virtual void compute(Call& call) const = 0;
  virtual Memory memory() const = 0;
  /// The weights that it reads, where it knows them.
  virtual Upcoming upcoming() const = 0;
};

/// What a kernel class says that it reads; nothing where it does not say.
template <class Kernel>
auto upcoming_of(const Kernel& kernel, int) -> decltype(kernel.upcoming()) {
  return kernel.upcoming();
}
template <class Kernel>
Upcoming upcoming_of(const Kernel&, ...) {
  return {};
}

/// How to make the kernels of one op.
struct KernelType {
  const OpSpec& spec;
  std::unique_ptr<const AnyKernel> (*make)(const Attributes& attributes);

  template <class Kernel>
  static KernelType of(const OpSpec& spec) {
    class Held final : public AnyKernel {
     public:
      explicit Held(const Attributes& attributes) : kernel_(attributes) {}
      void compute(Call& call) const override { kernel_.compute(call); }
      Memory memory() const override { return {this, sizeof *this}; }
      Upcoming upcoming() const override { return upcoming_of(kernel_, 0); }

     private:
      const Kernel kernel_;
    };
    return {spec, [](const Attributes& attributes) -> std::unique_ptr<const AnyKernel> {
              return std::make_unique<const Held>(attributes);
            }};
  }
};

/// Those of all ops of this library, filled while it is loaded.
inline std::vector<const KernelType*>& registered_kernels() {
  static std::vector<const KernelType*> kernels;
  return kernels;
}

/// Registers a kernel class for chains alone: onnxruntime does not hear of it.
#define POPTRANSFORMER_REGISTER_STEP(Kernel)                                                       \
  namespace {                                                                                      \
  const ::poptransformer::OpSpec g_spec_##Kernel = Kernel::spec();                                 \
  const ::poptransformer::KernelType g_kernel_##Kernel =                                           \
      ::poptransformer::KernelType::of<Kernel>(g_spec_##Kernel);                                   \
  const bool g_registered_##Kernel =                                                               \
      (::poptransformer::registered_kernels().push_back(&g_kernel_##Kernel), true);                \
  }

/// The kernels of the op of that name; null if there is none.
inline const KernelType* find_kernel(const std::string& op) {
  for (const KernelType* kernel : registered_kernels()) {
    if (op == kernel->spec.name) return kernel;
  }
  return nullptr;
}

}  // namespace poptransformer
