// SPDX-License-Identifier: Apache-2.0
// Linear: y = x @ weight.T + bias with fp32 accumulation.
//
//   x [..., K] fp32, weight [N, K] fp32, fp16 or bf16, bias [N] fp32 (optional) -> y [..., N] fp32
#include <cstdint>

#include "common/ort_op.h"
#include "common/thread_pool.h"
#include "matrix/matrix.h"

namespace poptransformer {
namespace {

class Linear {
 public:
  static OpSpec spec() {
    return {"Linear", {{"x", kFloat32}, {"weight", kAnyType}, {"bias", kFloat32, kOptional}}, {{"y", kFloat32}}};
  }

  explicit Linear(const Attributes&) {}

  void compute(Call& call) const {
    const Tensor x = call.input(0), weight = call.input(1), bias = call.input(2);
    if (x.shape.rank == 0) x.reject("of rank 1 or more", "a scalar");
    weight.expect_type({kFloat32, kFloat16, kBFloat16});
    weight.expect_shape({"N", x.shape.last()});
    if (bias) bias.expect_shape({weight.shape[0]});
    Matrix matrix;
    matrix.format = format_of(weight.type);
    matrix.columns = weight.shape[0];
    matrix.depth = x.shape.last();
    matrix.data = weight.data;
    Shape shape = x.shape;
    shape.dims[shape.rank - 1] = 1;
    Input input;
    input.x = x.as<float>();
    input.ld = input.depth = matrix.depth;
    input.rows = shape.size();
    shape.dims[shape.rank - 1] = matrix.columns;
    run(matrix, input, bias.as<float>(), call.output<float>(0, shape));
  }

 private:
  static Format format_of(ElementType type) {
    return type == kFloat32 ? Format::kFloat32 : type == kFloat16 ? Format::kFloat16 : Format::kBFloat16;
  }

  static void run(const Matrix& matrix, const Input& input, const float* bias, float* y) {
    ThreadPool::run_for(input.rows * matrix.columns * matrix.depth, [&](int part, int parts) {
      const Block block = share_product(input.rows, matrix.columns, part, parts);
      float* first = y + block.rows.begin * matrix.columns + block.columns.begin;
      multiply(matrix, input, block, first, matrix.columns);
      if (bias) add_bias(bias + block.columns.begin, block, first, matrix.columns);
    });
  }

  static void add_bias(const float* bias, const Block& block, float* y, int64_t ldy) {
    const int64_t rows = block.rows.end - block.rows.begin, columns = block.columns.end - block.columns.begin;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) y[row * ldy + column] += bias[column];
    }
  }
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(Linear)

}  // namespace poptransformer
