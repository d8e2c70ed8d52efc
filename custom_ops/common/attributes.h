// SPDX-License-Identifier: Apache-2.0
// What a kernel sees of its node when it is created.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "error.h"
#include "tensor.h"

namespace poptransformer {

/// The part of a node that is about one step of it, where the node is a chain of steps that each have a kernel.
struct StepOfNode {
  std::string prefix;             ///< Of the names of the step's attributes.
  std::vector<int64_t> inputs;    ///< For each input of the step the number of the node's; kNoValue if left out.
  int64_t node_inputs;            ///< Inputs of the node. Larger numbers are values that steps hand to each other.
  static constexpr int64_t kNoValue = -1;
};

/// The attributes of one node and those of its inputs that are constant, read when its kernel is created.
class Attributes {
 public:
  Attributes(const OpSpec& spec, const OrtKernelInfo* info) : spec_(spec), info_(info) {}

  /// Those of one step of this node.
  /// @param spec of the step's op.
  /// @param step must outlive the result.
  Attributes of_step(const OpSpec& spec, const StepOfNode& step) const { return Attributes(spec, info_, &step); }

  /// @throws Error if the attribute is missing.
  int64_t get_int(const char* name) const {
    int64_t value = 0;
    require(g_ort->KernelInfoGetAttribute_int64(info_, full(name).c_str(), &value), name, "int");
    return value;
  }

  /// @throws Error if the attribute is missing.
  float get_float(const char* name) const {
    float value = 0;
    require(g_ort->KernelInfoGetAttribute_float(info_, full(name).c_str(), &value), name, "float");
    return value;
  }

  /// @throws Error if the attribute is missing.
  std::string get_string(const char* name) const {
    const std::string key = full(name);
    size_t size = 0;  // With the terminating zero.
    require(g_ort->KernelInfoGetAttribute_string(info_, key.c_str(), nullptr, &size), name, "string");
    std::string value(size, '\0');
    require(g_ort->KernelInfoGetAttribute_string(info_, key.c_str(), value.data(), &size), name, "string");
    value.resize(size > 0 ? size - 1 : 0);
    return value;
  }

  /// The words of a string.
  /// @throws Error if the attribute is missing.
  std::vector<std::string> get_words(const char* name) const {
    std::istringstream stream(get_string(name));
    std::vector<std::string> found;
    for (std::string word; stream >> word;) found.push_back(word);
    return found;
  }

  /// @throws Error if the attribute is missing.
  std::vector<int64_t> get_ints(const char* name) const {
    const std::string key = full(name);
    size_t size = 0;
    require(g_ort->KernelInfoGetAttributeArray_int64(info_, key.c_str(), nullptr, &size), name, "ints");
    std::vector<int64_t> values(size);
    require(g_ort->KernelInfoGetAttributeArray_int64(info_, key.c_str(), values.data(), &size), name, "ints");
    return values;
  }

  /// The node's name in its graph, which begins with the layer's scope.
  std::string node_name() const {
    size_t size = 0;  // With the terminating zero.
    check(g_ort->KernelInfo_GetNodeName(info_, nullptr, &size));
    std::string name(size, '\0');
    check(g_ort->KernelInfo_GetNodeName(info_, name.data(), &size));
    name.resize(size > 0 ? size - 1 : 0);
    return name;
  }

  /// How many inputs the node has, left out ones before the last included.
  size_t input_count() const {
    if (step_) return step_->inputs.size();
    size_t count = 0;
    check(g_ort->KernelInfo_GetInputCount(info_, &count));
    return count;
  }

  /// How many outputs the node has.
  size_t output_count() const {
    size_t count = 0;
    check(g_ort->KernelInfo_GetOutputCount(info_, &count));
    return count;
  }

  /// Whether the node has an input at `index`; an optional one may be left out.
  bool has_input(size_t index) const {
    if (index >= input_count()) return false;
    if (step_) return step_->inputs[index] != StepOfNode::kNoValue;
    size_t size = 0;  // Of the name, with its terminating zero.
    check(g_ort->KernelInfo_GetInputName(info_, index, nullptr, &size));
    return size > 1;
  }

  /// The input at `index` if it is the same at every call: an initializer of the node's own graph. Its data stay where
  /// they are as long as the kernel lives. False in a boolean context otherwise.
  Tensor constant_input(size_t index) const {
    Tensor tensor(spec_.name, spec_.input(index).name);
    if (!has_input(index)) return tensor;
    const int64_t number = step_ ? step_->inputs[index] : static_cast<int64_t>(index);
    if (step_ && number >= step_->node_inputs) return tensor;
    int is_constant = 0;
    const OrtValue* value = nullptr;
    check(g_ort->KernelInfoGetConstantInput_tensor(info_, static_cast<size_t>(number), &is_constant, &value));
    if (is_constant && value != nullptr) read_tensor(value, spec_.input(index).type, &tensor);
    return tensor;
  }

  /// Whether the node has a string of that name.
  bool has_string(const char* name) const {
    size_t size = 0;
    OrtStatus* status = g_ort->KernelInfoGetAttribute_string(info_, full(name).c_str(), nullptr, &size);
    if (status != nullptr) g_ort->ReleaseStatus(status);
    return status == nullptr;
  }

  /// Throws `poptransformer.<op>: attribute '<name>' must be <expected>, found <found>`.
  template <class Found>
  [[noreturn]] void reject(const char* name, const std::string& expected, const Found& found) const {
    fail("poptransformer.", spec_.name, ": attribute '", name, "' must be ", expected, ", found ", found);
  }

 private:
  Attributes(const OpSpec& spec, const OrtKernelInfo* info, const StepOfNode* step)
      : spec_(spec), info_(info), step_(step) {}

  std::string full(const char* name) const { return step_ ? step_->prefix + name : name; }

  void require(OrtStatus* status, const char* name, const char* kind) const {
    if (status == nullptr) return;
    g_ort->ReleaseStatus(status);
    fail("poptransformer.", spec_.name, ": attribute '", name, "' (", kind, ") is required");
  }

  const OpSpec& spec_;
  const OrtKernelInfo* info_;
  const StepOfNode* step_ = nullptr;
};

}  // namespace poptransformer
