// SPDX-License-Identifier: Apache-2.0
// Linear: y = x @ weight.T + bias with fp32 accumulation.
//
//   x [..., K] fp32, weight [N, K] fp32, fp16 or bf16, bias [N] fp32 (optional) -> y [..., N] fp32
//
// The weight is used as it lies in the memory-mapped checkpoint: never copied or repacked as a whole. Few input rows
// (decode) are bound by reading it once, many (prefill) by arithmetic, hence two algorithms.
#include <algorithm>
#include <cstdint>

#include "common/ort_op.h"
#include "common/scratch.h"
#include "common/thread_pool.h"
#include "common/tiles.h"

namespace poptransformer {
namespace {

/// Steps of this depth keep four weight rows and a few input rows in the first-level cache.
constexpr int64_t kDotDepth = 1024;
/// A panel of this depth (16 KB of fp32) stays in the first-level cache.
constexpr int64_t kPanelDepth = 256;
/// Input rows per panel: their kPanelDepth columns (246 KB) stay in the second-level cache.
constexpr int64_t kBlockRows = 240;

template <class Weight>
struct Problem {
  const float* x;
  const Weight* weight;
  const float* bias;  // May be null.
  float* y;
  int64_t rows;     // of x and y
  int64_t columns;  // of y: N
  int64_t depth;    // K
};

/// sums[m][r] = x[m] . weights[r] for all rows m and four weight rows, in steps of kDotDepth.
template <class Weight>
void multiply_rows(const Problem<Weight>& p, const Weight* const* weights, float (*sums)[kDotRows]) {
  const auto dot = Tiles<Weight>::pick().dot;
  std::fill_n(sums[0], p.rows * kDotRows, 0.0f);
  for (int64_t first = 0; first < p.depth; first += kDotDepth) {
    const int64_t depth = std::min(kDotDepth, p.depth - first);
    const Weight* parts[kDotRows];
    for (int r = 0; r < kDotRows; ++r) parts[r] = weights[r] + first;
    for (int64_t m = 0; m < p.rows; m += kDotInputs) {
      const int inputs = static_cast<int>(std::min<int64_t>(kDotInputs, p.rows - m));
      float part[kDotInputs][kDotRows];
      dot(parts, p.x + m * p.depth + first, p.depth, inputs, depth, part);
      for (int i = 0; i < inputs; ++i) {
        for (int r = 0; r < kDotRows; ++r) sums[m + i][r] += part[i][r];
      }
    }
  }
}

/// Computes y[:, range] by dot products. The range is walked as four streams side by side.
template <class Weight>
void multiply_by_dots(const Problem<Weight>& p, Range range) {
  float sums[kMaxDotRows][kDotRows];
  const int64_t stream = (range.end - range.begin + kDotRows - 1) / kDotRows;
  for (int64_t step = 0; step < stream; ++step) {
    int64_t column[kDotRows];
    const Weight* weights[kDotRows];
    for (int r = 0; r < kDotRows; ++r) {
      // Streams that are through repeat the last column: the same value is written twice.
      column[r] = std::min(range.begin + r * stream + step, range.end - 1);
      weights[r] = p.weight + column[r] * p.depth;
    }
    multiply_rows(p, weights, sums);
    for (int64_t m = 0; m < p.rows; ++m) {
      for (int r = 0; r < kDotRows; ++r) {
        p.y[m * p.columns + column[r]] = sums[m][r] + (p.bias ? p.bias[column[r]] : 0.0f);
      }
    }
  }
}

/// Rows [begin, end) of x and depths [first, last) of one product step.
struct Step {
  int64_t begin, end;
  int64_t first, last;
};

/// Adds one panel's part to y[begin:end, column : column + 16], cut at the last column.
template <class Weight>
void multiply_panel(const Problem<Weight>& p, const Step& step, int64_t column, const float* panel) {
  const auto tile = Tiles<Weight>::pick().tile;
  const int64_t width = std::min<int64_t>(kTileColumns, p.columns - column);
  float bias[kTileColumns] = {};
  if (p.bias) std::copy_n(p.bias + column, width, bias);
  float edge[kTileRows * kTileColumns] = {};  // Stands in for y where fewer than 16 columns are left.
  for (int64_t m = step.begin; m < step.end; m += kTileRows) {
    const int rows = static_cast<int>(std::min<int64_t>(kTileRows, step.end - m));
    float* y = p.y + m * p.columns + column;
    const bool whole = width == kTileColumns;
    float* target = whole ? y : edge;
    const int64_t ld = whole ? p.columns : kTileColumns;
    if (!whole && step.first > 0) {
      for (int r = 0; r < rows; ++r) std::copy_n(y + r * p.columns, width, edge + r * kTileColumns);
    }
    const bool fresh = step.first == 0;
    tile(rows, {p.x + m * p.depth + step.first, p.depth, panel, kTileColumns, fresh ? bias : target, fresh ? 0 : ld,
                target, ld, step.last - step.first});
    if (whole) continue;
    for (int r = 0; r < rows; ++r) std::copy_n(edge + r * kTileColumns, width, y + r * p.columns);
  }
}

/// Computes y[begin:end, first_panel * 16 : last_panel * 16], packing each panel of weights just before its use.
template <class Weight>
void multiply_block(const Problem<Weight>& p, int64_t begin, int64_t end, Range panels) {
  const auto pack = Tiles<Weight>::pick().pack;
  float* panel = scratch<float>(Scratch::kOwn, kPanelDepth * kTileColumns);
  // At depth 0 one empty step still writes the bias.
  for (int64_t first = 0; first == 0 || first < p.depth; first += kPanelDepth) {
    const Step step{begin, end, first, std::min(first + kPanelDepth, p.depth)};
    for (int64_t index = panels.begin; index < panels.end; ++index) {
      const int64_t column = index * kTileColumns;
      const int width = static_cast<int>(std::min<int64_t>(kTileColumns, p.columns - column));
      pack(p.weight + column * p.depth + first, p.depth, width, step.last - first, panel);
      multiply_panel(p, step, column, panel);
    }
  }
}

/// Computes one part of y by panels: a run of (row block, panel) pairs.
template <class Weight>
void multiply_by_panels(const Problem<Weight>& p, int64_t block_rows, int part, int parts) {
  const int64_t panels = (p.columns + kTileColumns - 1) / kTileColumns;
  const int64_t blocks = (p.rows + block_rows - 1) / block_rows;
  const Range mine = share(blocks * panels, part, parts);
  for (int64_t block = mine.begin / panels; block * panels < mine.end; ++block) {
    const int64_t begin = block * block_rows;
    const Range run{std::max(mine.begin - block * panels, int64_t{0}), std::min(mine.end - block * panels, panels)};
    multiply_block(p, begin, std::min(begin + block_rows, p.rows), run);
  }
}

/// Rows per block: as many as the cache holds, fewer if the parts would be too uneven.
int64_t choose_block_rows(int64_t rows, int64_t columns, int parts) {
  constexpr int kPiecesPerPart = 4;
  const int64_t panels = (columns + kTileColumns - 1) / kTileColumns;
  int64_t block_rows = kBlockRows;
  while (block_rows > 10 * kTileRows &&
         panels * ((rows + block_rows - 1) / block_rows) < kPiecesPerPart * parts) {
    block_rows /= 2;
  }
  return block_rows;
}

template <class Weight>
void multiply(const Problem<Weight>& p) {
  const auto job = [&p](int part, int parts) {
    if (p.rows <= Tiles<Weight>::pick().max_dot_rows) return multiply_by_dots(p, share(p.columns, part, parts));
    multiply_by_panels(p, choose_block_rows(p.rows, p.columns, parts), part, parts);
  };
  if (p.rows == 0 || p.columns == 0) return;
  ThreadPool::run_for(p.rows * p.columns * p.depth, job);
}

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
    switch (weight.type) {
      case kFloat32: return run<float>(call, x, weight, bias);
      case kFloat16: return run<Float16>(call, x, weight, bias);
      default: return run<BFloat16>(call, x, weight, bias);
    }
  }

 private:
  template <class Weight>
  static void run(Call& call, const Tensor& x, const Tensor& weight, const Tensor& bias) {
    Shape shape = x.shape;
    shape.dims[shape.rank - 1] = 1;
    const int64_t rows = shape.size();
    shape.dims[shape.rank - 1] = weight.shape[0];
    float* y = call.output<float>(0, shape);
    multiply<Weight>({x.as<float>(), weight.as<Weight>(), bias.as<float>(), y, rows, weight.shape[0], x.shape.last()});
  }
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(Linear)

}  // namespace poptransformer
