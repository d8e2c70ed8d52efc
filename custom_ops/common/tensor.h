// SPDX-License-Identifier: Apache-2.0
// A read-only view of one input of an op, with checks whose messages name the op and the input.
#pragma once

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "error.h"

namespace poptransformer {

using ElementType = ONNXTensorElementDataType;
constexpr ElementType kFloat32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr ElementType kFloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr ElementType kBFloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
constexpr ElementType kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr ElementType kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr ElementType kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
constexpr ElementType kUInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
/// In an op's declaration: the kernel takes several element types, and checks with `Tensor::expect_type`.
constexpr ElementType kAnyType = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

/// numpy's name of an element type, for messages.
inline const char* type_name(ElementType type) {
  switch (type) {
    case kFloat32: return "float32";
    case kFloat16: return "float16";
    case kBFloat16: return "bfloat16";
    case kInt64: return "int64";
    case kInt32: return "int32";
    case kInt8: return "int8";
    case kUInt8: return "uint8";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return "float64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16: return "int16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16: return "uint16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32: return "uint32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64: return "uint64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: return "bool";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING: return "string";
    default: return "an unsupported element type";
  }
}

/// Bytes of one value.
inline size_t size_of(ElementType type) {
  switch (type) {
    case kFloat32:
    case kInt32: return 4;
    case kFloat16:
    case kBFloat16: return 2;
    case kInt64: return 8;
    case kInt8:
    case kUInt8: return 1;
    default: fail("poptransformer: no kernel makes values of ", type_name(type));
  }
}

/// Dimensions of a tensor. Fixed capacity: reading a shape in the hot path allocates nothing of ours.
struct Shape {
  static constexpr size_t kMaxRank = 8;
  size_t rank = 0;
  int64_t dims[kMaxRank] = {};

  Shape() = default;
  Shape(std::initializer_list<int64_t> values) {
    for (int64_t value : values) dims[rank++] = value;
  }

  int64_t operator[](size_t axis) const { return dims[axis]; }
  int64_t& operator[](size_t axis) { return dims[axis]; }
  int64_t last() const { return dims[rank - 1]; }

  bool operator==(const Shape& other) const {
    return rank == other.rank && std::equal(dims, dims + rank, other.dims);
  }

  /// Number of elements; 1 for a scalar.
  int64_t size() const {
    int64_t product = 1;
    for (size_t axis = 0; axis < rank; ++axis) product *= dims[axis];
    return product;
  }

  std::string text() const {
    std::string out = "[";
    for (size_t axis = 0; axis < rank; ++axis) out += (axis ? ", " : "") + std::to_string(dims[axis]);
    return out + "]";
  }
};

/// One dimension of an expected shape: a number that must match, or the name of a size that is free.
struct Dim {
  const char* name = nullptr;
  int64_t value = -1;
  Dim(const char* free_size) : name(free_size) {}  // NOLINT: implicit, so that {"N", 576} reads as a shape
  Dim(int64_t fixed_size) : value(fixed_size) {}   // NOLINT
};

/// One input as the kernel sees it. `data` is null for an optional input that was left out.
class Tensor {
 public:
  const void* data = nullptr;
  ElementType type = kAnyType;
  Shape shape;

  Tensor(const char* op, const char* input) : op_(op), input_(input) {}

  explicit operator bool() const { return present; }

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }

  /// Makes it a view of these values.
  void hold(const void* values, ElementType element_type, const Shape& dimensions) {
    data = values;
    type = element_type;
    shape = dimensions;
    present = true;
  }

  /// Throws unless the element type is one of `allowed`.
  void expect_type(std::initializer_list<ElementType> allowed) const {
    std::string names;
    for (ElementType candidate : allowed) {
      if (candidate == type) return;
      names += (names.empty() ? "" : " or ") + std::string(type_name(candidate));
    }
    reject(names, type_name(type));
  }

  /// Throws unless the shape is `dims`: numbers must match, names are free: `expect_shape({"N", 576})`.
  void expect_shape(std::initializer_list<Dim> dims) const {
    bool matches = dims.size() == shape.rank;
    size_t axis = 0;
    for (const Dim& dim : dims) {
      if (!matches) break;
      matches = dim.name != nullptr || dim.value == shape[axis];
      ++axis;
    }
    if (matches) return;
    std::string expected;
    for (const Dim& dim : dims) {
      expected += (expected.empty() ? "[" : ", ") + (dim.name ? dim.name : std::to_string(dim.value));
    }
    reject(expected + "]", shape.text());
  }

  /// Throws `poptransformer.<op>: input '<name>' must be <expected>, found <found>`.
  template <class Found>
  [[noreturn]] void reject(const std::string& expected, const Found& found) const {
    fail("poptransformer.", op_, ": input '", input_, "' must be ", expected, ", found ", found);
  }

  bool present = false;

 private:
  const char* op_;
  const char* input_;
};

}  // namespace poptransformer
