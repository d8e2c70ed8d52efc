// SPDX-License-Identifier: Apache-2.0
// Inputs and outputs of one execution of a kernel, wherever they are: in onnxruntime's hands, or, for a step of a chain
// (chain.cpp), in the chain's.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
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

enum class Arity { kRequired, kOptional, kVariadic };
constexpr Arity kOptional = Arity::kOptional;  ///< May be left out of the node.
constexpr Arity kVariadic = Arity::kVariadic;  ///< The last one: it stands for one or more.

/// Name and element type of one input or output.
struct ArgumentSpec {
  const char* name;
  ElementType type;
  Arity arity = Arity::kRequired;
};

/// What onnxruntime has to know of an op before it makes a kernel.
struct OpSpec {
  const char* name;
  std::vector<ArgumentSpec> inputs;
  std::vector<ArgumentSpec> outputs;

  /// What is declared for the input at `index`.
  const ArgumentSpec& input(size_t index) const { return index < inputs.size() ? inputs[index] : inputs.back(); }
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

class Arguments {
 public:
  /// Fills in `tensor` with the input at `index`. @returns false if it was left out.
  /// @throws Error if it has another element type than `declared`, where that is not any.
  virtual bool read(size_t index, ElementType declared, Tensor* tensor) const = 0;

  /// Memory for the output at `index`; null if nobody wants it.
  virtual void* allocate(size_t index, const Shape& shape) = 0;

 protected:
  ~Arguments() = default;
};

/// Those of a node that onnxruntime runs.
class NodeArguments final : public Arguments {
 public:
  explicit NodeArguments(OrtKernelContext* context) : context_(context) {}

  bool read(size_t index, ElementType declared, Tensor* tensor) const override {
    size_t count = 0;
    const OrtValue* value = nullptr;
    check(g_ort->KernelContext_GetInputCount(context_, &count));
    if (index < count) check(g_ort->KernelContext_GetInput(context_, index, &value));
    if (value == nullptr) return false;
    read_tensor(value, declared, tensor);
    return true;
  }

  void* allocate(size_t index, const Shape& shape) override {
    size_t count = 0;
    OrtValue* value = nullptr;
    void* data = nullptr;
    check(g_ort->KernelContext_GetOutputCount(context_, &count));
    if (index < count) check(g_ort->KernelContext_GetOutput(context_, index, shape.dims, shape.rank, &value));
    if (value != nullptr) check(g_ort->GetTensorMutableData(value, &data));
    return data;
  }

 private:
  OrtKernelContext* const context_;
};

}  // namespace poptransformer
