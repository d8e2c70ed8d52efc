// SPDX-License-Identifier: Apache-2.0
// Send and Recv: values that go from one pipeline stage to another.
//
//   Send: x fp32 [...]         -> sent int64 [], the number of values; an output, so that the node is not left out
//   Recv: like (of any type)   -> y fp32 [...], of the shape that was sent; `like` only puts the node into a step
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "common/ort_op.h"
#include "parallel/communicator.h"

namespace poptransformer {
namespace {

/// Rank and dimensions; the values follow.
struct Header {
  int64_t rank = 0;
  int64_t dims[Shape::kMaxRank] = {};
};

class Transfer {
 public:
  Transfer(const Attributes& attributes, const char* peer)
      : node_(intern(attributes.node_name())),
        group_(current_groups().stages),
        peer_(static_cast<int>(attributes.get_int(peer))),
        tag_(static_cast<int>(attributes.get_int("tag"))) {
    const int stages = group_ ? group_->size() : 1;
    if (!group_ || peer_ < 0 || peer_ >= stages) {
      attributes.reject(peer, "one of the stages that run the model, 0 to " + std::to_string(stages - 1), peer_);
    }
  }

 protected:
  const char* const node_;
  const CommunicatorPtr group_;
  const int peer_, tag_;
};

class Send : Transfer {
 public:
  static OpSpec spec() { return {"Send", {{"x", kFloat32}}, {{"sent", kInt64}}}; }

  explicit Send(const Attributes& attributes) : Transfer(attributes, "to") {}

  void compute(Call& call) const {
    const Tensor x = call.input(0);
    Header header;
    header.rank = static_cast<int64_t>(x.shape.rank);
    std::copy_n(x.shape.dims, x.shape.rank, header.dims);
    const size_t bytes = static_cast<size_t>(x.shape.size()) * sizeof(float);
    Message message(sizeof header + bytes);
    std::memcpy(message.data(), &header, sizeof header);
    if (bytes > 0) std::memcpy(message.data() + sizeof header, x.data, bytes);
    group_->send(node_, peer_, tag_, std::move(message));
    *call.output<int64_t>(0, {}) = x.shape.size();
  }
};

class Recv : Transfer {
 public:
  static OpSpec spec() { return {"Recv", {{"like", kAnyType}}, {{"y", kFloat32}}}; }

  explicit Recv(const Attributes& attributes) : Transfer(attributes, "source") {}

  void compute(Call& call) const {
    const Message message = group_->receive(node_, peer_, tag_);
    Header header;
    if (message.size() < sizeof header) call.fail("a message of ", message.size(), " bytes is too short");
    std::memcpy(&header, message.data(), sizeof header);
    if (header.rank < 0 || header.rank > static_cast<int64_t>(Shape::kMaxRank)) {
      call.fail("a message has rank ", header.rank);
    }
    Shape shape;
    shape.rank = static_cast<size_t>(header.rank);
    std::copy_n(header.dims, shape.rank, shape.dims);
    const size_t bytes = message.size() - sizeof header;
    if (shape.size() < 0 || static_cast<size_t>(shape.size()) * sizeof(float) != bytes) {
      call.fail("a message of shape ", shape.text(), " has ", bytes, " bytes");
    }
    float* y = call.output<float>(0, shape);
    if (bytes > 0) std::memcpy(y, message.data() + sizeof header, bytes);
  }
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(Send)
POPTRANSFORMER_REGISTER_OP(Recv)

}  // namespace poptransformer
