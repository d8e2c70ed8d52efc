// SPDX-License-Identifier: Apache-2.0
#include "operands.h"

#include <numeric>

#include "../matrix/packed.h"

namespace poptransformer {
namespace {

constexpr char kFloatFormat[] = "float";

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

/// One whole weight.
Projection read_weight(const std::string& name, int64_t columns, const Tensor* inputs) {
  const Tensor &weight = inputs[0], &scales = inputs[1], &offsets = inputs[2], &bias = inputs[3];
  if (!weight) weight.reject("given", "none");
  if (bias) bias.expect_shape({columns});
  Format format = Format::kFloat32;
  if (parse_packed_format(name, &format)) {
    if (!scales) scales.reject("given, as the weight is packed", "none");
    return {packed_matrix(format, columns, weight, scales, offsets), bias.as<float>()};
  }
  for (const Tensor* other : {&scales, &offsets}) {
    if (*other) other->reject("left out, as the weight is not packed", other->shape.text());
  }
  return {float_matrix(weight, columns), bias.as<float>()};
}

/// Columns [first, first + columns) of a weight; of a packed one, `first` is at the beginning of a tile.
Projection part_of(const Projection& whole, int64_t first, int64_t columns) {
  const auto forward = [](const void* data, int64_t bytes) -> const void* {
    return data == nullptr ? nullptr : static_cast<const char*>(data) + bytes;
  };
  Projection part = whole;
  Matrix& matrix = part.matrix;
  matrix.columns = columns;
  if (part.bias) part.bias += first;
  if (!is_packed(matrix.format)) {
    matrix.data = forward(matrix.data, first * matrix.depth * (matrix.format == Format::kFloat32 ? 4 : 2));
    return part;
  }
  const int64_t scales = first * (matrix.padded / matrix.block) * (is_float8(matrix.format) ? 4 : 2);
  matrix.data = forward(matrix.data, first * matrix.padded / (matrix.format == Format::kInt4 ? 2 : 1));
  matrix.scales = forward(matrix.scales, scales);
  matrix.offsets = forward(matrix.offsets, scales);
  return part;
}

}  // namespace

FusedLayout::FusedLayout(const Attributes& attributes)
    : epsilon(attributes.get_float("epsilon")),
      columns(attributes.get_ints("columns")),
      splits(attributes.get_ints("splits")),
      formats(attributes.get_words("formats")) {
  const std::string norm_name = attributes.get_string("norm");
  if (!parse_norm(norm_name, &norm)) attributes.reject("norm", "none, rms or layer", norm_name);
  check(attributes);
}

void FusedLayout::check(const Attributes& attributes) const {
  if (formats.empty() || formats.size() > kMaxProjections) attributes.reject("formats", "1 to 3 words", formats.size());
  if (splits.size() != formats.size()) attributes.reject("splits", "as many as there are formats", splits.size());
  if (columns.size() > kMaxProjections) attributes.reject("columns", "3 or fewer", columns.size());
  for (const std::string& name : formats) {
    Format format = Format::kFloat32;
    if (name == kFloatFormat || parse_packed_format(name, &format)) continue;
    attributes.reject("formats", "words out of float, int4, int8, e4m3fn, e5m2, e4m3fnuz, e5m2fnuz", name);
  }
  size_t projection = 0;
  for (size_t weight = 0; weight < splits.size(); ++weight) {
    if (splits[weight] < 1) attributes.reject("splits", "1 or more", splits[weight]);
    for (int64_t part = 1; part <= splits[weight]; ++part, ++projection) {
      if (projection == columns.size()) attributes.reject("columns", "as many as splits adds up to", columns.size());
      if (columns[projection] < 0) attributes.reject("columns", "0 or more", columns[projection]);
      if (part == splits[weight] || formats[weight] == kFloatFormat || columns[projection] % kTile == 0) continue;
      attributes.reject("columns", "multiples of 16 where a packed weight is cut", columns[projection]);
    }
  }
  if (projection != columns.size()) attributes.reject("columns", "as many as splits adds up to", columns.size());
}

FusedOperands::FusedOperands(const FusedLayout& layout, const FusedTensors& inputs) {
  read_norm(layout, inputs);
  for (size_t i = 0; i < kMaxProjections; ++i) {
    const Tensor* own = &inputs[kFirstWeight + i * kWeightInputs];
    if (i >= layout.formats.size()) {
      if (own[0]) own[0].reject("left out, as formats does not name it", own[0].shape.text());
      continue;
    }
    const int64_t* widths = &layout.columns[count];
    const int64_t width = std::accumulate(widths, widths + layout.splits[i], int64_t{0});
    const Projection whole = read_weight(layout.formats[i], width, own);
    int64_t first = 0;
    for (int64_t part = 0; part < layout.splits[i]; first += widths[part], ++part, ++count) {
      projections[count] = part_of(whole, first, widths[part]);
      weight_of_[count] = i;
    }
  }
}

void FusedOperands::read_norm(const FusedLayout& layout, const FusedTensors& inputs) {
  const Tensor &weight = inputs[kNormWeight], &bias = inputs[kNormBias];
  if (layout.norm == NormKind::kNone) {
    for (const Tensor* tensor : {&weight, &bias}) {
      if (*tensor) tensor->reject("left out, as there is no norm", tensor->shape.text());
    }
    return;
  }
  if (!weight) weight.reject("given", "none");
  weight.expect_shape({"K"});
  if (bias && layout.norm == NormKind::kRms) bias.reject("left out for rms", bias.shape.text());
  if (bias) bias.expect_shape({weight.shape[0]});
  norm = {layout.norm, layout.epsilon, weight.as<float>(), bias.as<float>()};
}

void FusedOperands::set_depth(const Tensor& x, const FusedTensors& inputs) {
  const int64_t depth = x.shape.last();
  if (norm.weight) inputs[kNormWeight].expect_shape({depth});
  for (size_t i = 0; i < count; ++i) {
    Matrix& matrix = projections[i].matrix;
    const Tensor& weight = inputs[kFirstWeight + weight_of_[i] * kWeightInputs];
    if (is_packed(matrix.format)) {
      set_packed_depth(x, &matrix);
    } else if (matrix.depth != depth) {
      weight.expect_shape({weight.shape[0], depth});
    }
  }
}

}  // namespace poptransformer
