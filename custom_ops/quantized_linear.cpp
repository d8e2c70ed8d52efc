// SPDX-License-Identifier: Apache-2.0
// QuantizedLinear: y = x @ weight.T + bias with a packed weight of 4 or 8 bits, fp32 accumulation.
//
//   x [..., K] fp32, codes uint8 [Nt, Kt, 4 or 8, 16, 4], scales [Nt, Kb, 16] fp16 (int4, int8) or fp32 (fp8),
//   offsets [Nt, Kb, 16] fp16 (optional, int4), bias [N] fp32 (optional) -> y [..., N] fp32
//
// `format` says how codes are read, `columns` is N. Weights of int4 and int8 are multiplied with x rounded to int8, see
// matrix/quantized_rows.h.
#include <cstdint>
#include <string>

#include "common/ort_op.h"
#include "common/scratch.h"
#include "common/thread_pool.h"
#include "matrix/packed.h"

namespace poptransformer {
namespace {

class QuantizedLinear {
 public:
  static OpSpec spec() {
    return {"QuantizedLinear",
            {{"x", kFloat32},
             {"codes", kAnyType},
             {"scales", kAnyType},
             {"offsets", kAnyType, kOptional},
             {"bias", kFloat32, kOptional}},
            {{"y", kFloat32}}};
  }

  explicit QuantizedLinear(const Attributes& attributes)
      : format_(read_format(attributes)), columns_(attributes.get_int("columns")) {
    if (columns_ < 0) attributes.reject("columns", "0 or more", columns_);
    bool constant = true;
    for (size_t index = kCodes; index <= kBias; ++index) {
      constant = constant && (!attributes.has_input(index) || attributes.constant_input(index));
    }
    if (!constant) return;
    weight_ = read_weight([&](size_t index) { return attributes.constant_input(index); });
    weight_is_known_ = true;
  }

  void compute(Call& call) const {
    const Tensor x = call.input(kX);
    if (x.shape.rank == 0) x.reject("of rank 1 or more", "a scalar");
    Weight weight = weight_is_known_ ? weight_ : read_weight([&](size_t index) { return call.input(index); });
    set_packed_depth(x, &weight.matrix);
    Shape shape = x.shape;
    shape[shape.rank - 1] = 1;
    Input input;
    input.x = x.as<float>();
    input.ld = input.depth = weight.matrix.depth;
    input.rows = shape.size();
    shape[shape.rank - 1] = columns_;
    float* const y = call.output<float>(0, shape);
    if (takes_quantized_rows(format_)) input.quantized = quantize(input, weight.matrix.padded);
    run(weight, input, y);
  }

 private:
  enum InputNumber : size_t { kX, kCodes, kScales, kOffsets, kBias };

  struct Weight {
    Matrix matrix;
    const float* bias = nullptr;
  };

  static Format read_format(const Attributes& attributes) {
    const std::string name = attributes.get_string("format");
    Format format = Format::kInt4;
    if (parse_packed_format(name, &format)) return format;
    attributes.reject("format", "int4, int8, e4m3fn, e5m2, e4m3fnuz or e5m2fnuz", "'" + name + "'");
  }

  /// @param tensor function that returns the input of a number.
  template <class Read>
  Weight read_weight(Read tensor) const {
    const Tensor bias = tensor(kBias);
    Weight weight{packed_matrix(format_, columns_, tensor(kCodes), tensor(kScales), tensor(kOffsets)), nullptr};
    if (bias) bias.expect_shape({columns_});
    weight.bias = bias.as<float>();
    return weight;
  }

  /// All rows rounded, on the pool where there are many.
  static QuantizedRows quantize(const Input& input, int64_t padded) {
    void* const memory = scratch<char>(Scratch::kShared, quantized_rows_bytes(input.rows, padded));
    const QuantizedRows rows = quantized_rows_at(memory, input.rows, padded);
    ThreadPool::run_for(input.rows * padded, [&](int part, int parts) {
      quantize_rows(input.x, input.ld, input.depth, share(input.rows, part, parts), rows);
    });
    return rows;
  }

  static void run(const Weight& weight, const Input& input, float* y) {
    const Matrix& matrix = weight.matrix;
    ThreadPool::run_for(input.rows * matrix.columns * matrix.depth, [&](int part, int parts) {
      const Block block = share_product(input.rows, matrix.columns, part, parts);
      float* const first = y + block.rows.begin * matrix.columns + block.columns.begin;
      multiply(matrix, input, block, first, matrix.columns);
      if (weight.bias) add_bias(weight.bias + block.columns.begin, block, first, matrix.columns);
    });
  }

  static void add_bias(const float* bias, const Block& block, float* y, int64_t ldy) {
    const int64_t rows = block.rows.end - block.rows.begin, columns = block.columns.end - block.columns.begin;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) y[row * ldy + column] += bias[column];
    }
  }

  const Format format_;
  const int64_t columns_;
  bool weight_is_known_ = false;
  Weight weight_;  // Where all of its inputs are constant; in a subgraph they are not.
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(QuantizedLinear)

}  // namespace poptransformer
