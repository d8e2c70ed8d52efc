// SPDX-License-Identifier: Apache-2.0
#include "steps.h"

#include <algorithm>
#include <string>
#include <utility>

namespace poptransformer {
namespace chain {
namespace {

constexpr char kLayout[] = "for each step: kind, count of inputs, their values, count of outputs, their values";

/// Reads the attribute `steps` number by number.
class Reader {
 public:
  explicit Reader(const Attributes& attributes) : attributes_(attributes), numbers_(attributes.get_ints("steps")) {}

  bool at_end() const { return place_ == numbers_.size(); }

  /// Of all numbers.
  size_t count() const { return numbers_.size(); }

  /// @throws Error unless there is another number, from `least` on and below `end`.
  int64_t next(int64_t least, int64_t end) {
    if (at_end()) attributes_.reject("steps", kLayout, "an end in the middle of a step");
    const int64_t number = numbers_[place_++];
    if (number < least || number >= end) attributes_.reject("steps", kLayout, number);
    return number;
  }

  /// A count, and so many values below `end`.
  std::vector<int64_t> values(int64_t end) {
    std::vector<int64_t> found(static_cast<size_t>(next(0, static_cast<int64_t>(numbers_.size()))));
    for (int64_t& value : found) value = next(kNoValue, end);
    return found;
  }

 private:
  const Attributes& attributes_;
  const std::vector<int64_t> numbers_;
  size_t place_ = 0;
};

}  // namespace

Steps::Steps(const Attributes& attributes) : inputs(attributes.input_count()), outputs(attributes.output_count()) {
  const std::vector<std::string> kinds = attributes.get_words("kinds");
  // Every step makes a value or more, each of which takes a number of `steps`: so many there are at most.
  Reader reader(attributes);
  const int64_t end = static_cast<int64_t>(inputs + outputs + reader.count());
  types.resize(outputs, kAnyType);
  while (!reader.at_end()) {
    const int64_t kind = reader.next(0, static_cast<int64_t>(kinds.size()));
    Step step;
    step.inputs = reader.values(end);
    step.outputs = reader.values(end);
    add_step(attributes, kinds[static_cast<size_t>(kind)], kind, std::move(step));
  }
  if (steps.empty()) attributes.reject("steps", "one step or more", "none");
  check_order(attributes);
  assign_slots();
  look_ahead();
  for (size_t i = 0; i < inputs; ++i) {
    if (!attributes.constant_input(i)) changing.push_back(i);
  }
}

void Steps::add_step(const Attributes& attributes, const std::string& op, int64_t kind, Step step) {
  const KernelType* type = find_kernel(op);
  if (type == nullptr || op == "Chain") attributes.reject("kinds", "ops of this library other than Chain", op);
  step.spec = &type->spec;
  if (step.inputs.size() > step.spec->inputs.size() || step.outputs.size() > step.spec->outputs.size()) {
    attributes.reject("steps", "no more inputs and outputs than " + op + " has", step.inputs.size() + step.outputs.size());
  }
  for (size_t i = 0; i < step.outputs.size(); ++i) {
    const int64_t value = step.outputs[i];
    if (value == kNoValue) continue;
    if (value < static_cast<int64_t>(inputs)) attributes.reject("steps", "outputs that are no inputs", value);
    const size_t index = behind_inputs(value);
    if (index >= types.size()) types.resize(index + 1, kAnyType);
    const ElementType declared = step.spec->outputs[i].type;
    if (index >= outputs && declared == kAnyType) {
      attributes.reject("steps", "outputs of the node where " + op + " decides their type", value);
    }
    types[index] = declared;
  }
  const StepOfNode view{std::to_string(kind) + ".", step.inputs, static_cast<int64_t>(inputs)};
  step.kernel = type->make(attributes.of_step(*step.spec, view));
  steps.push_back(std::move(step));
}

void Steps::check_order(const Attributes& attributes) const {
  std::vector<char> made(types.size(), 0);
  for (const Step& step : steps) {
    for (const int64_t value : step.inputs) {
      if (value < static_cast<int64_t>(inputs)) continue;  // Left out, or an input of the node.
      const size_t index = behind_inputs(value);
      if (index >= made.size() || !made[index]) attributes.reject("steps", "values made before they are read", value);
      if (types[index] == kAnyType) attributes.reject("steps", "no reader of values whose type a step decides", value);
    }
    for (const int64_t value : step.outputs) {
      if (value == kNoValue) continue;
      if (made[behind_inputs(value)]++) attributes.reject("steps", "values that one step makes", value);
    }
  }
  const auto missing = std::find(made.begin(), made.end(), 0);
  if (missing != made.end()) attributes.reject("steps", "a step for every value", inputs + static_cast<size_t>(missing - made.begin()));
}

void Steps::assign_slots() {
  std::vector<size_t> last_reader(types.size(), 0);
  for (size_t i = 0; i < steps.size(); ++i) {
    for (const auto* values : {&steps[i].inputs, &steps[i].outputs}) {
      for (const int64_t value : *values) {
        if (value >= static_cast<int64_t>(inputs)) last_reader[behind_inputs(value)] = i;
      }
    }
  }
  slot_of.assign(types.size(), kNoSlot);
  std::vector<size_t> free;
  for (size_t i = 0; i < steps.size(); ++i) {
    for (const int64_t value : steps[i].outputs) {
      if (value == kNoValue || behind_inputs(value) < outputs) continue;
      if (free.empty()) free.push_back(slots++);
      slot_of[behind_inputs(value)] = free.back();
      free.pop_back();
    }
    for (size_t index = outputs; index < types.size(); ++index) {
      if (last_reader[index] == i && slot_of[index] != kNoSlot) free.push_back(slot_of[index]);
    }
  }
}

size_t Steps::first_made() const {
  for (const int64_t value : steps.front().outputs) {
    if (value != kNoValue) return behind_inputs(value);
  }
  return 0;
}

void Steps::look_ahead() {
  for (size_t i = 0; i < steps.size(); ++i) {
    steps[i].next = &steps[(i + 1) % steps.size()];
    steps[i].next_kernel = steps[i].next->kernel->memory();
  }
  Upcoming next;
  for (int round = 0; round < 2; ++round) {  // The second one for the steps behind the last with weights.
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
      step->upcoming = next;
      const Upcoming own = step->kernel->upcoming();
      if (own.count > 0) next = own;
    }
  }
}

}  // namespace chain
}  // namespace poptransformer
