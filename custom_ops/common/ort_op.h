// SPDX-License-Identifier: Apache-2.0
// Glue between a kernel class and onnxruntime's raw C API (measured: half the call overhead of the C++ wrappers).
//
// An op is one class in one .cpp file:
//
//   class Scale {
//    public:
//     static OpSpec spec() { return {"Scale", {{"x", kFloat32}, {"offset", kFloat32, kOptional}}, {{"y", kFloat32}}}; }
//     explicit Scale(const Attributes& attributes) : factor_(attributes.get_float("factor")) {}
//     void compute(Call& call) const {
//       Tensor x = call.input(0);
//       float* y = call.output<float>(0, x.shape);
//       ...
//     }
//   };
//   POPTRANSFORMER_REGISTER_OP(Scale);
//
// One kernel object serves all runs of its node, from any thread: `compute` is const. Constructor and `compute` report
// mistakes by throwing (error.h); the message reaches Python in onnxruntime's exception. Outputs may be bound buffers
// that outlive the call: check everything before writing.
#pragma once

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#include "attributes.h"
#include "call.h"
#include "error.h"
#include "kernel_type.h"
#include "tensor.h"

namespace poptransformer {

/// Runs `body` and turns what it throws into an OrtStatus: no exception may cross into onnxruntime.
template <class Body>
OrtStatus* guarded(Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Error& error) {
    return g_ort->CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return g_ort->CreateStatus(ORT_FAIL, "poptransformer: out of memory in a kernel");
  } catch (const std::exception& error) {
    return g_ort->CreateStatus(ORT_FAIL, error.what());
  } catch (...) {
    return g_ort->CreateStatus(ORT_FAIL, "poptransformer: unknown exception in a kernel");
  }
}

/// All ops of this library, filled while it is loaded.
inline std::vector<const OrtCustomOp*>& registered_ops() {
  static std::vector<const OrtCustomOp*> ops;
  return ops;
}

/// OrtCustomOp of a kernel class: onnxruntime's callbacks, answered from `Kernel::spec()`.
template <class Kernel>
class Op : public OrtCustomOp {
 public:
  Op() : OrtCustomOp{}, spec_(Kernel::spec()) {
    version = ORT_API_VERSION;
    GetName = [](const OrtCustomOp* op) { return self(op).name; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    set_input_callbacks();
    set_output_callbacks();
    set_kernel_callbacks();
    registered_ops().push_back(this);
    registered_kernels().push_back(&kind_);
  }

 private:
  struct Instance {
    const OpSpec& spec;
    std::unique_ptr<const AnyKernel> kernel;
  };

  static const OpSpec& self(const OrtCustomOp* op) { return static_cast<const Op*>(op)->spec_; }

  /// onnxruntime lets every type through where it can, as its own message says neither what is expected nor for which
  /// input of the op; `Call::input` checks. An output of any type gets the type of the last input of any type, which must
  /// not be another one than before.
  static ElementType announced(const OpSpec& spec, size_t index) {
    const auto is_any = [](const ArgumentSpec& argument) { return argument.type == kAnyType; };
    const bool leads = std::any_of(spec.inputs.begin() + static_cast<std::ptrdiff_t>(index), spec.inputs.end(), is_any);
    const bool follows = std::any_of(spec.outputs.begin(), spec.outputs.end(), is_any);
    return follows && !leads ? spec.inputs[index].type : kAnyType;
  }

  static OrtCustomOpInputOutputCharacteristic characteristic(const ArgumentSpec& argument) {
    switch (argument.arity) {
      case Arity::kOptional: return INPUT_OUTPUT_OPTIONAL;
      case Arity::kVariadic: return INPUT_OUTPUT_VARIADIC;
      default: return INPUT_OUTPUT_REQUIRED;
    }
  }

  void set_input_callbacks() {
    GetInputTypeCount = [](const OrtCustomOp* op) { return self(op).inputs.size(); };
    GetInputType = [](const OrtCustomOp* op, size_t index) { return announced(self(op), index); };
    GetInputCharacteristic = [](const OrtCustomOp* op, size_t i) { return characteristic(self(op).inputs[i]); };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  }

  void set_output_callbacks() {
    GetOutputTypeCount = [](const OrtCustomOp* op) { return self(op).outputs.size(); };
    GetOutputType = [](const OrtCustomOp* op, size_t index) { return self(op).outputs[index].type; };
    GetOutputCharacteristic = [](const OrtCustomOp* op, size_t i) { return characteristic(self(op).outputs[i]); };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    // onnxruntime gives an output of any type the type of the last such input; with several such inputs it insists on
    // a function that could say otherwise.
    InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext*) -> OrtStatus* { return nullptr; };
  }

  void set_kernel_callbacks() {
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return guarded([&] {
        const OpSpec& spec = self(op);
        *kernel = new Instance{spec, static_cast<const Op*>(op)->kind_.make(Attributes(spec, info))};
      });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return guarded([&] {
        const Instance* instance = static_cast<const Instance*>(kernel);
        NodeArguments arguments(context);
        Call call(instance->spec, arguments);
        instance->kernel->compute(call);
      });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
  }

  OpSpec spec_;
  const KernelType kind_ = KernelType::of<Kernel>(spec_);
};

/// Registers a kernel class when the library is loaded; an op needs no entry anywhere else.
#define POPTRANSFORMER_REGISTER_OP(Kernel)                  \
  namespace {                                               \
  ::poptransformer::Op<Kernel> g_registered_##Kernel;       \
  }

}  // namespace poptransformer
