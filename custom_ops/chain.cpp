// SPDX-License-Identifier: Apache-2.0
// Chain: steps that each are one op of this library, run one after the other as one node.
//
//   inputs, any number and type -> outputs, any number and type
//
// `kinds` names the op of each kind of step, and the attributes of kind k are called `k.<name>`; `steps` holds for each
// step its kind, and count and numbers of the values it reads and makes (chain/steps.h). The results are those
// of the same nodes one by one. What is saved is what onnxruntime does between two nodes: where weights stream through the
// caches its own code is gone from them, and it takes several times the microsecond that it takes alone.
#include "chain/steps.h"
#include "common/ort_op.h"
#include "common/scratch.h"
#include "common/thread_pool.h"

namespace poptransformer {
namespace {

/// A thread keeps slots of up to so many bytes for its next call; those of a long prompt are freed.
constexpr size_t kKeptBytes = size_t{1} << 20;

/// A value that a step has made.
struct Value {
  void* data = nullptr;
  Shape shape;
};

/// What one call works with: the inputs that are not constant, the values behind them, and the memory of those that only
/// steps see.
struct WorkMemory {
  std::vector<Tensor> inputs;
  std::vector<Value> values;
  std::vector<ScratchBuffer> slots;

  static WorkMemory& of_this_thread() {
    thread_local WorkMemory memory;
    return memory;
  }

  void make_room(const chain::Steps& steps) {
    if (inputs.size() < steps.inputs) inputs.resize(steps.inputs, Tensor("Chain", "inputs"));
    if (values.size() < steps.types.size()) values.resize(steps.types.size());
    if (slots.size() < steps.slots) slots.resize(steps.slots);
  }
};

/// Tidies up when a call ends, however it ends.
class AtTheEnd {
 public:
  AtTheEnd(WorkMemory& memory, const chain::Steps& chain) : memory_(memory), chain_(chain) {}
  ~AtTheEnd() {
    ThreadPool::set_upcoming(nullptr);
    for (const size_t index : chain_.changing) memory_.inputs[index].present = false;
    for (ScratchBuffer& slot : memory_.slots) {
      if (slot.bytes() > kKeptBytes) slot.release();
    }
  }

 private:
  WorkMemory& memory_;
  const chain::Steps& chain_;
};

/// Inputs and outputs of one step.
class StepArguments final : public Arguments {
 public:
  StepArguments(const chain::Steps& chain, const chain::Step& step, Arguments& node, WorkMemory& memory)
      : chain_(chain), step_(step), node_(node), memory_(memory) {}

  bool read(size_t index, ElementType declared, Tensor* tensor) const override {
    if (index >= step_.inputs.size() || step_.inputs[index] == chain::kNoValue) return false;
    const size_t number = static_cast<size_t>(step_.inputs[index]);
    if (number >= chain_.inputs) {
      const Value& value = memory_.values[number - chain_.inputs];
      tensor->hold(value.data, chain_.types[number - chain_.inputs], value.shape);
    } else if (const Tensor& input = memory_.inputs[number]) {
      tensor->hold(input.data, input.type, input.shape);
    } else {
      return node_.read(number, declared, tensor);
    }
    if (declared != kAnyType) tensor->expect_type({declared});
    return true;
  }

  void* allocate(size_t index, const Shape& shape) override {
    if (index >= step_.outputs.size() || step_.outputs[index] == chain::kNoValue) return nullptr;
    const size_t number = static_cast<size_t>(step_.outputs[index]) - chain_.inputs;
    Value& value = memory_.values[number];
    value.shape = shape;
    if (number < chain_.outputs) {
      value.data = node_.allocate(number, shape);
    } else {
      const size_t bytes = static_cast<size_t>(shape.size()) * size_of(chain_.types[number]);
      value.data = memory_.slots[chain_.slot_of[number]].reserve(bytes);
    }
    return value.data;
  }

 private:
  const chain::Steps& chain_;
  const chain::Step& step_;
  Arguments& node_;
  WorkMemory& memory_;
};

class Chain {
 public:
  static OpSpec spec() { return {"Chain", {{"inputs", kAnyType, kVariadic}}, {{"outputs", kAnyType, kVariadic}}}; }

  explicit Chain(const Attributes& attributes) : chain_(attributes), first_made_(chain_.first_made()) {}

  void compute(Call& call) const {
    WorkMemory& memory = WorkMemory::of_this_thread();
    const AtTheEnd at_the_end(memory, chain_);
    memory.make_room(chain_);
    // All at once: onnxruntime's code for it comes from memory once, and several steps read the same ones.
    for (const size_t index : chain_.changing) call.arguments().read(index, kAnyType, &memory.inputs[index]);
    for (const chain::Step& step : chain_.steps) {
      StepArguments arguments(chain_, step, call.arguments(), memory);
      Call step_call(*step.spec, arguments);
      if (&step != chain_.steps.data()) ThreadPool::set_upcoming(is_decode(memory) ? &step.upcoming : nullptr);
      step.prefetch_next();
      step.kernel->compute(step_call);
    }
  }

 private:
  /// Whether the steps have so few rows that they wait for their weights; what the first step made tells.
  bool is_decode(const WorkMemory& memory) const {
    constexpr int64_t kFewRows = 8;
    const Shape& shape = memory.values[first_made_].shape;
    return shape.rank > 0 && shape.size() <= kFewRows * shape.last();
  }

  const chain::Steps chain_;
  const size_t first_made_;  ///< Number, behind the inputs, of a value that the first step makes.
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(Chain)

}  // namespace poptransformer
