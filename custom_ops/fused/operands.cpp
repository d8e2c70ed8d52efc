// SPDX-License-Identifier: Apache-2.0
#include "operands.h"

#include <sstream>

namespace poptransformer {
namespace {

constexpr char kFloatFormat[] = "float";

std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> found;
  for (std::string word; stream >> word;) found.push_back(word);
  return found;
}

Matrix float_matrix(const Tensor& weight, int64_t columns) {
  weight.expect_type({kFloat32, kFloat16, kBFloat16});
  weight.expect_shape({columns, "K"});
  Matrix matrix;
  matrix.format = weight.type == kFloat32   ? Format::kFloat32
                  : weight.type == kFloat16 ? Format::kFloat16
                                            : Format::kBFloat16;
  matrix.columns = columns;
  matrix.depth = weight.shape[1];
  matrix.data = weight.data;
  return matrix;
}

Matrix packed_matrix(Format format, int64_t columns, const Tensor& codes, const Tensor& scales, const Tensor& offsets) {
  Matrix matrix;
  matrix.format = format;
  matrix.columns = columns;
  codes.expect_type({kUInt8});
  codes.expect_shape({matrix.tiles(), "K / 32", format == Format::kInt4 ? 4 : 8, kTile, 4});
  matrix.padded = codes.shape[1] * kChunk;
  if (!scales) scales.reject("given, as the weight is packed", "none");
  scales.expect_type({is_float8(format) ? kFloat32 : kFloat16});
  scales.expect_shape({matrix.tiles(), "blocks", kTile});
  const int64_t blocks = scales.shape[1];
  if (matrix.padded > 0 && (blocks == 0 || matrix.padded % (blocks * kChunk) != 0)) {
    scales.reject("of a number of blocks that divides " + std::to_string(codes.shape[1]), scales.shape.text());
  }
  matrix.block = blocks == 0 ? kChunk : matrix.padded / blocks;
  if (offsets) {
    if (format != Format::kInt4) offsets.reject("left out, as only int4 has offsets", offsets.shape.text());
    offsets.expect_type({kFloat16});
    offsets.expect_shape({matrix.tiles(), blocks, kTile});
  }
  matrix.data = codes.data;
  matrix.scales = scales.data;
  matrix.offsets = offsets.data;
  return matrix;
}

Projection read_projection(const std::string& name, int64_t columns, const Tensor* inputs) {
  const Tensor &weight = inputs[0], &scales = inputs[1], &offsets = inputs[2], &bias = inputs[3];
  if (!weight) weight.reject("given", "none");
  if (bias) bias.expect_shape({columns});
  Format format = Format::kFloat32;
  if (parse_packed_format(name, &format)) {
    return {packed_matrix(format, columns, weight, scales, offsets), bias.as<float>()};
  }
  for (const Tensor* other : {&scales, &offsets}) {
    if (*other) other->reject("left out, as the weight is not packed", other->shape.text());
  }
  return {float_matrix(weight, columns), bias.as<float>()};
}

}  // namespace

FusedLayout::FusedLayout(const Attributes& attributes)
    : epsilon(attributes.get_float("epsilon")),
      columns(attributes.get_ints("columns")),
      formats(words(attributes.get_string("formats"))) {
  const std::string norm_name = attributes.get_string("norm");
  if (!parse_norm(norm_name, &norm)) attributes.reject("norm", "none, rms or layer", norm_name);
  if (formats.empty() || formats.size() > kMaxProjections) attributes.reject("formats", "1 to 3 words", formats.size());
  if (columns.size() != formats.size()) {
    attributes.reject("columns", "as many numbers as there are formats", columns.size());
  }
  for (const std::string& name : formats) {
    Format format = Format::kFloat32;
    if (name == kFloatFormat || parse_packed_format(name, &format)) continue;
    attributes.reject("formats", "words out of float, int4, int8, e4m3fn, e5m2, e4m3fnuz, e5m2fnuz", name);
  }
  for (const int64_t number : columns) {
    if (number < 0) attributes.reject("columns", "0 or more", number);
  }
}

FusedOperands::FusedOperands(const FusedLayout& layout, const FusedTensors& inputs)
    : count(static_cast<int>(layout.formats.size())) {
  const Tensor &weight = inputs[kNormWeight], &bias = inputs[kNormBias];
  if (layout.norm == NormKind::kNone) {
    for (const Tensor* tensor : {&weight, &bias}) {
      if (*tensor) tensor->reject("left out, as there is no norm", tensor->shape.text());
    }
  } else {
    if (!weight) weight.reject("given", "none");
    weight.expect_shape({"K"});
    if (bias && layout.norm == NormKind::kRms) bias.reject("left out for rms", bias.shape.text());
    if (bias) bias.expect_shape({weight.shape[0]});
  }
  norm = {layout.norm, layout.epsilon, weight.as<float>(), bias.as<float>()};
  for (size_t i = 0; i < kMaxProjections; ++i) {
    const Tensor* own = &inputs[kFirstProjection + i * kProjectionInputs];
    if (i < layout.formats.size()) {
      projections[i] = read_projection(layout.formats[i], layout.columns[i], own);
    } else if (own[0]) {
      own[0].reject("left out, as formats does not name it", own[0].shape.text());
    }
  }
}

void FusedOperands::set_depth(const Tensor& x, const FusedTensors& inputs) {
  const int64_t depth = x.shape.last();
  if (norm.weight && inputs[kNormWeight].shape[0] != depth) inputs[kNormWeight].expect_shape({depth});
  for (int i = 0; i < count; ++i) {
    Matrix& matrix = projections[static_cast<size_t>(i)].matrix;
    if (is_packed(matrix.format)) {
      if (depth > matrix.padded || depth <= matrix.padded - matrix.block) {
        x.reject("of " + std::to_string(matrix.padded - matrix.block + 1) + " to " + std::to_string(matrix.padded) +
                     " columns, as the weight is",
                 x.shape.text());
      }
      matrix.depth = depth;
    } else if (matrix.depth != depth) {
      inputs[kFirstProjection + static_cast<size_t>(i) * kProjectionInputs].expect_shape({matrix.columns, depth});
    }
  }
}

}  // namespace poptransformer
