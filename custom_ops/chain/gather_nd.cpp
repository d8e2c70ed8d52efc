// SPDX-License-Identifier: Apache-2.0
// ONNX's GatherND as a step of a chain, in the form that chooses tokens: one index for each row of the result.
//
//   data [B, L, K] fp32, indices [B, M, 1] int64 -> output [B, M, K] fp32, with batch_dims = 1
#include <algorithm>
#include <cstdint>
#include <string>

#include "../common/kernel_type.h"

namespace poptransformer {
namespace {

class GatherND {
 public:
  static OpSpec spec() { return {"GatherND", {{"data", kFloat32}, {"indices", kInt64}}, {{"output", kFloat32}}}; }

  explicit GatherND(const Attributes& attributes) {
    const int64_t batch_dims = attributes.get_int("batch_dims");
    if (batch_dims != 1) attributes.reject("batch_dims", "1", batch_dims);
  }

  void compute(Call& call) const {
    const Tensor data = call.input(0), indices = call.input(1);
    data.expect_shape({"B", "L", "K"});
    indices.expect_shape({data.shape[0], "M", 1});
    const int64_t batch = data.shape[0], tokens = data.shape[1], width = data.shape[2], count = indices.shape[1];
    const int64_t* const index = indices.as<int64_t>();
    for (int64_t i = 0; i < batch * count; ++i) {
      if (index[i] >= -tokens && index[i] < tokens) continue;
      indices.reject("from -" + std::to_string(tokens) + " to " + std::to_string(tokens - 1), index[i]);
    }
    float* const output = call.output<float>(0, {batch, count, width});
    for (int64_t i = 0; i < batch * count; ++i) {
      const int64_t token = index[i] < 0 ? index[i] + tokens : index[i];
      std::copy_n(data.as<float>() + (i / count * tokens + token) * width, width, output + i * width);
    }
  }
};

}  // namespace

POPTRANSFORMER_REGISTER_STEP(GatherND)

}  // namespace poptransformer
