// SPDX-License-Identifier: Apache-2.0
// AllReduce and AllGather: collectives among the replicas of a tensor-parallel model.
//
//   AllReduce: x fp32 [...]    -> y fp32 [...], the sum of all replicas' x, in the order of the replicas
//   AllGather: x fp32 [..., C] -> y fp32 [..., replicas * C], all replicas' columns side by side
#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/ort_op.h"
#include "parallel/communicator.h"

namespace poptransformer {
namespace {

/// What both need: the node's name and the group of replicas.
class Collective {
 public:
  explicit Collective(const Attributes& attributes)
      : node_(intern(attributes.node_name())), group_(current_groups().replicas) {
    const int64_t replicas = attributes.get_int("replicas");
    const int64_t found = group_ ? group_->size() : 1;
    if (replicas != found) {
      attributes.reject("replicas", "the number of ranks that run the model, " + std::to_string(found), replicas);
    }
  }

 protected:
  bool is_alone() const { return !group_; }

  const char* const node_;
  const CommunicatorPtr group_;
};

class AllReduce : Collective {
 public:
  static OpSpec spec() { return {"AllReduce", {{"x", kFloat32}}, {{"y", kFloat32}}}; }

  explicit AllReduce(const Attributes& attributes) : Collective(attributes) {}

  void compute(Call& call) const {
    const Tensor x = call.input(0);
    float* y = call.output<float>(0, x.shape);
    if (is_alone()) {
      std::copy_n(x.as<float>(), x.shape.size(), y);
      return;
    }
    group_->all_reduce(node_, x.as<float>(), y, x.shape.size());
  }
};

class AllGather : Collective {
 public:
  static OpSpec spec() { return {"AllGather", {{"x", kFloat32}}, {{"y", kFloat32}}}; }

  explicit AllGather(const Attributes& attributes) : Collective(attributes) {}

  void compute(Call& call) const {
    const Tensor x = call.input(0);
    if (x.shape.rank == 0) x.reject("of rank 1 or more", "a scalar");
    const int64_t columns = x.shape.last(), size = x.shape.size(), replicas = is_alone() ? 1 : group_->size();
    const int64_t rows = columns == 0 ? 0 : size / columns;
    Shape shape = x.shape;
    shape.dims[shape.rank - 1] = replicas * columns;
    float* y = call.output<float>(0, shape);
    if (is_alone()) {
      std::copy_n(x.as<float>(), size, y);
    } else if (rows == 1) {
      group_->all_gather(node_, x.as<float>(), y, size * static_cast<int64_t>(sizeof(float)));
    } else {
      std::vector<float> blocks(static_cast<size_t>(replicas * size));
      group_->all_gather(node_, x.as<float>(), blocks.data(), size * static_cast<int64_t>(sizeof(float)));
      for (int64_t replica = 0; replica < replicas; ++replica) {
        for (int64_t row = 0; row < rows; ++row) {
          const float* block = blocks.data() + replica * size + row * columns;
          std::copy_n(block, columns, y + (row * replicas + replica) * columns);
        }
      }
    }
  }
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(AllReduce)
POPTRANSFORMER_REGISTER_OP(AllGather)

}  // namespace poptransformer
