// SPDX-License-Identifier: Apache-2.0
// FusedLinear: one to three products of the same rows, with what comes before and after them, in one call.
//
//   x [..., K] fp32, norm_weight [K] fp32, norm_bias [K] fp32, residual [..., N] fp32,
//   and for each weight: weight (a float matrix as for Linear, or the codes of a packed one), scales, offsets (both as
//   for QuantizedLinear), bias [N] fp32; all but x and the first weight optional
//   -> y0 [..., N] fp32, y1, y2
//
//   y = norm(x) @ weight.T + bias for each weight, cut into the outputs as `splits` and `columns` say; then, where
//   attributes say so, y0 = activation(y0), or with two of them one output: y0 = activation(y0) * y1 (gated = 1), or
//   y0 = y0 * activation(y1) (gated = 2); and y0 += residual.
#include <string>
#include <utility>
#include <vector>

#include "common/ort_op.h"
#include "fused/activation.h"
#include "fused/operands.h"
#include "fused/product.h"

namespace poptransformer {
namespace {

class FusedLinear {
 public:
  static OpSpec spec() {
    return {"FusedLinear",
            {{"x", kFloat32},
             {"norm_weight", kFloat32, kOptional},
             {"norm_bias", kFloat32, kOptional},
             {"residual", kFloat32, kOptional},
             {"weight0", kAnyType},
             {"scales0", kAnyType, kOptional},
             {"offsets0", kFloat16, kOptional},
             {"bias0", kFloat32, kOptional},
             {"weight1", kAnyType, kOptional},
             {"scales1", kAnyType, kOptional},
             {"offsets1", kFloat16, kOptional},
             {"bias1", kFloat32, kOptional},
             {"weight2", kAnyType, kOptional},
             {"scales2", kAnyType, kOptional},
             {"offsets2", kFloat16, kOptional},
             {"bias2", kFloat32, kOptional}},
            {{"y0", kFloat32}, {"y1", kFloat32, kOptional}, {"y2", kFloat32, kOptional}}};
  }

  explicit FusedLinear(const Attributes& attributes)
      : layout_(attributes), gated_(attributes.get_int("gated")) {
    const std::string name = attributes.get_string("activation");
    if (!find_activation(name, &activation_)) attributes.reject("activation", kActivationNames, name);
    const size_t count = layout_.columns.size();
    if (gated_ != 0 && (count != 2 || layout_.columns[0] != layout_.columns[1])) {
      attributes.reject("gated", "0 unless there are two projections of equal columns", gated_);
    }
    if (gated_ < 0 || gated_ > 2) attributes.reject("gated", "0, 1 or 2", gated_);
    has_residual_ = attributes.has_input(kResidual);
    if ((activation_ || has_residual_) && !gated_ && count != 1) {
      attributes.reject("activation", "none without a residual where there are several outputs", name);
    }
    for (size_t i = 0; i < kFusedInputs; ++i) {
      constants_.push_back(attributes.constant_input(i));
      if (i != kX && i != kResidual && !constants_.back() && attributes.has_input(i)) changing_.push_back(i);
    }
    // A subgraph's kernels see no constants of the outer graph: there, weights are read at each call.
    if (changing_.empty()) operands_ = FusedOperands(layout_, constants_);
  }

  void compute(Call& call) const {
    const Tensor x = call.input(kX);
    if (x.shape.rank == 0) x.reject("of rank 1 or more", "a scalar");
    if (changing_.empty()) return run(call, x, constants_, operands_);
    FusedTensors inputs = constants_;
    for (const size_t index : changing_) inputs[index] = call.input(index);
    run(call, x, inputs, FusedOperands(layout_, inputs));
  }

  /// The weights, where they are the same at every call.
  Upcoming upcoming() const {
    Upcoming all;
    if (!changing_.empty()) return all;
    for (size_t i = 0; i < operands_.count; ++i) {
      all.weights[all.count++] = upcoming_weight(operands_.projections[i].matrix);
    }
    all.is_gated = gated_ != 0;
    all.common = reinterpret_cast<const char*>(operands_.norm.weight);
    if (operands_.norm.weight) all.common_bytes = constants_[kNormWeight].shape.size() * static_cast<int64_t>(sizeof(float));
    return all;
  }

 private:
  void run(Call& call, const Tensor& x, const FusedTensors& inputs, FusedOperands operands) const {
    operands.set_depth(x, inputs);
    FusedProduct product;
    product.operands = &operands;
    product.activation = activation_;
    product.gated = gated_ != 0;
    if (gated_ == 2) std::swap(operands.projections[0], operands.projections[1]);
    product.x = x.as<float>();
    Shape shape = x.shape;
    shape[shape.rank - 1] = 1;
    product.rows = shape.size();
    product.depth = x.shape.last();
    if (has_residual_) {
      shape[shape.rank - 1] = layout_.columns[0];
      const Tensor residual = call.input(kResidual);
      if (!(residual.shape == shape)) residual.reject(shape.text(), residual.shape.text());
      product.residual = residual.as<float>();
    }
    for (size_t i = 0; i < product.outputs_count(); ++i) {
      shape[shape.rank - 1] = layout_.columns[i];
      product.outputs[i] = call.output<float>(i, shape);
      if (product.outputs[i] == nullptr && shape.size() > 0) call.fail("output 'y", i, "' must be taken, as columns counts it");
    }
    product.run();
  }

  const FusedLayout layout_;
  const int64_t gated_;
  RowFunction activation_ = nullptr;
  bool has_residual_ = false;
  FusedTensors constants_;
  std::vector<size_t> changing_;  // Inputs, x and residual apart, that are not constant.
  FusedOperands operands_;        // Where none is changing.
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(FusedLinear)

}  // namespace poptransformer
