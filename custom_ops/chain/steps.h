// SPDX-License-Identifier: Apache-2.0
// The steps of a chain (chain.cpp): which kernel each runs, and which values it reads and makes.
//
// Values are numbered: first the inputs of the node, then its outputs, then those that only steps see. The last kind lie
// in slots of memory, which values that are not needed at the same time share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../common/attributes.h"
#include "../common/kernel_type.h"

namespace poptransformer {
namespace chain {

constexpr int64_t kNoValue = StepOfNode::kNoValue;
constexpr size_t kNoSlot = static_cast<size_t>(-1);

struct Step {
  const OpSpec* spec = nullptr;
  std::unique_ptr<const AnyKernel> kernel;
  std::vector<int64_t> inputs, outputs;  ///< Numbers of values; kNoValue for one that is left out, or that nobody wants.
  Upcoming upcoming;  ///< The next weights that a step after this one reads; after the last the first step is next.
  const Step* next = nullptr;           ///< The step after this one, or the first.
  Memory next_kernel;                   ///< Kept here: to ask the kernel where it lies would be to wait for it.

  /// Weights have streamed through the caches since the next step was last run: has it come from memory meanwhile.
  void prefetch_next() const {
    prefetch(next, sizeof *next);
    prefetch(next_kernel.address, next_kernel.bytes);
  }
};

struct Steps {
  std::vector<Step> steps;
  size_t inputs = 0, outputs = 0;   ///< Of the node.
  std::vector<ElementType> types;   ///< Of each value behind the inputs; kAnyType for outputs that the call decides.
  std::vector<size_t> slot_of;      ///< Of each value behind the inputs; kNoSlot for outputs.
  size_t slots = 0;
  std::vector<size_t> changing;     ///< Inputs of the node that are not the same at every call.

  /// Number, behind the inputs, of a value that the first step makes.
  size_t first_made() const;

  /// Reads the attributes `kinds`, `steps` and those of the steps' ops, and makes the kernels.
  /// @throws Error
  explicit Steps(const Attributes& attributes);

 private:
  void add_step(const Attributes& attributes, const std::string& op, int64_t kind, Step step);
  void check_order(const Attributes& attributes) const;
  void assign_slots();
  void look_ahead();

  size_t behind_inputs(int64_t value) const { return static_cast<size_t>(value) - inputs; }
};

}  // namespace chain
}  // namespace poptransformer
