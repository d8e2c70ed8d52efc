// SPDX-License-Identifier: Apache-2.0
// What a kernel sees of onnxruntime: the attributes of its node, and the inputs and outputs of one call.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "error.h"
#include "tensor.h"

namespace poptransformer {

/// onnxruntime's function table; set by RegisterCustomOps before anything else here runs.
inline const OrtApi* g_ort = nullptr;

/// Throws the message of a failed onnxruntime call.
inline void check(OrtStatus* status) {
  if (status == nullptr) return;
  std::string message = g_ort->GetErrorMessage(status);
  g_ort->ReleaseStatus(status);
  throw Error(message);
}

constexpr bool kOptional = true;

/// Name and element type of one input or output; an optional one may be left out of the node.
struct ArgumentSpec {
  const char* name;
  ElementType type;
  bool optional = false;
};

/// What onnxruntime has to know of an op before it makes a kernel.
struct OpSpec {
  const char* name;
  std::vector<ArgumentSpec> inputs;
  std::vector<ArgumentSpec> outputs;
};

/// Fills in `tensor` from a value of onnxruntime's, which keeps owning the data.
/// @param declared what its element type must be.
inline void read_tensor(const OrtValue* value, ElementType declared, Tensor* tensor) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(g_ort->GetTensorTypeAndShape(value, &info));
  OrtStatus* status = g_ort->GetTensorElementType(info, &tensor->type);
  if (status == nullptr) status = g_ort->GetDimensionsCount(info, &tensor->shape.rank);
  if (status == nullptr && tensor->shape.rank <= Shape::kMaxRank) {
    status = g_ort->GetDimensions(info, tensor->shape.dims, tensor->shape.rank);
  }
  g_ort->ReleaseTensorTypeAndShapeInfo(info);
  check(status);
  if (tensor->shape.rank > Shape::kMaxRank) {
    tensor->reject("of rank " + std::to_string(Shape::kMaxRank) + " or less", tensor->shape.rank);
  }
  if (declared != kAnyType) tensor->expect_type({declared});
  check(g_ort->GetTensorMutableData(const_cast<OrtValue*>(value), const_cast<void**>(&tensor->data)));
  tensor->present = true;
}

/// The attributes of one node and those of its inputs that are constant, read when its kernel is created.
class Attributes {
 public:
  Attributes(const OpSpec& spec, const OrtKernelInfo* info) : spec_(spec), info_(info) {}

  /// @throws Error if the attribute is missing.
  int64_t get_int(const char* name) const {
    int64_t value = 0;
    require(g_ort->KernelInfoGetAttribute_int64(info_, name, &value), name, "int");
    return value;
  }

  /// @throws Error if the attribute is missing.
  float get_float(const char* name) const {
    float value = 0;
    require(g_ort->KernelInfoGetAttribute_float(info_, name, &value), name, "float");
    return value;
  }

  /// @throws Error if the attribute is missing.
  std::string get_string(const char* name) const {
    size_t size = 0;  // With the terminating zero.
    require(g_ort->KernelInfoGetAttribute_string(info_, name, nullptr, &size), name, "string");
    std::string value(size, '\0');
    require(g_ort->KernelInfoGetAttribute_string(info_, name, value.data(), &size), name, "string");
    value.resize(size > 0 ? size - 1 : 0);
    return value;
  }

  /// @throws Error if the attribute is missing.
  std::vector<int64_t> get_ints(const char* name) const {
    size_t size = 0;
    require(g_ort->KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size), name, "ints");
    std::vector<int64_t> values(size);
    require(g_ort->KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size), name, "ints");
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

  /// Whether the node has an input at `index`; an optional one may be left out.
  bool has_input(size_t index) const {
    size_t count = 0, size = 0;  // The size of a name counts the terminating zero.
    check(g_ort->KernelInfo_GetInputCount(info_, &count));
    if (index >= count) return false;
    check(g_ort->KernelInfo_GetInputName(info_, index, nullptr, &size));
    return size > 1;
  }

  /// The input at `index` if it is the same at every call: an initializer of the node's own graph. Its data stay where
  /// they are as long as the kernel lives. False in a boolean context otherwise.
  Tensor constant_input(size_t index) const {
    Tensor tensor(spec_.name, spec_.inputs[index].name);
    if (!has_input(index)) return tensor;
    int is_constant = 0;
    const OrtValue* value = nullptr;
    check(g_ort->KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
    if (is_constant && value != nullptr) read_tensor(value, spec_.inputs[index].type, &tensor);
    return tensor;
  }

  /// Whether the node has a string of that name.
  bool has_string(const char* name) const {
    size_t size = 0;
    OrtStatus* status = g_ort->KernelInfoGetAttribute_string(info_, name, nullptr, &size);
    if (status != nullptr) g_ort->ReleaseStatus(status);
    return status == nullptr;
  }

  /// Throws `poptransformer.<op>: attribute '<name>' must be <expected>, found <found>`.
  template <class Found>
  [[noreturn]] void reject(const char* name, const std::string& expected, const Found& found) const {
    fail("poptransformer.", spec_.name, ": attribute '", name, "' must be ", expected, ", found ", found);
  }

 private:
  void require(OrtStatus* status, const char* name, const char* kind) const {
    if (status == nullptr) return;
    g_ort->ReleaseStatus(status);
    fail("poptransformer.", spec_.name, ": attribute '", name, "' (", kind, ") is required");
  }

  const OpSpec& spec_;
  const OrtKernelInfo* info_;
};

/// One execution of a node: its inputs and outputs.
class Call {
 public:
  Call(const OpSpec& spec, OrtKernelContext* context) : spec_(spec), context_(context) {}

  /// The input at `index`; false in a boolean context if it is optional and was left out.
  Tensor input(size_t index) const {
    Tensor tensor(spec_.name, spec_.inputs[index].name);
    const OrtValue* value = nullptr;
    if (index < input_count()) check(g_ort->KernelContext_GetInput(context_, index, &value));
    if (value != nullptr) {
      read_tensor(value, spec_.inputs[index].type, &tensor);
    } else if (!spec_.inputs[index].optional) {
      tensor.reject("given", "none");
    }
    return tensor;
  }

  /// Memory for the output at `index`; null if it is optional and nobody wants it.
  template <class T>
  T* output(size_t index, const Shape& shape) {
    OrtValue* value = nullptr;
    if (index < output_count()) {
      check(g_ort->KernelContext_GetOutput(context_, index, shape.dims, shape.rank, &value));
    }
    void* data = nullptr;
    if (value != nullptr) check(g_ort->GetTensorMutableData(value, &data));
    return static_cast<T*>(data);
  }

  /// Throws `poptransformer.<op>: <parts...>`, for conditions between inputs.
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    poptransformer::fail("poptransformer.", spec_.name, ": ", parts...);
  }

 private:
  size_t input_count() const {
    size_t count = 0;
    check(g_ort->KernelContext_GetInputCount(context_, &count));
    return count;
  }

  size_t output_count() const {
    size_t count = 0;
    check(g_ort->KernelContext_GetOutputCount(context_, &count));
    return count;
  }

  const OpSpec& spec_;
  OrtKernelContext* context_;
};

}  // namespace poptransformer
