// SPDX-License-Identifier: Apache-2.0
// QuantizedEmbedding: rows of a packed table (the layout is described in poptransformer/ops/quantized.py).
//
//   ids [...] int64, codes [Nt, Kt, 4 or 8, 16, 4] uint8, scales [Nt, Kb, 16] fp16 (int4, int8) or fp32 (fp8),
//   offsets [Nt, Kb, 16] fp16 (optional) -> y [..., K] fp32
#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "common/float8.h"
#include "common/float_formats.h"
#include "common/ort_op.h"
#include "common/thread_pool.h"

namespace poptransformer {
namespace {

constexpr int64_t kTile = 16;   // rows
constexpr int64_t kChunk = 32;  // columns
constexpr int64_t kGroup = 4;   // columns that lie side by side

/// A packed table and how to read it.
struct Table {
  const uint8_t* codes;
  const void* scales;
  const Float16* offsets;  // May be null.
  bool wide_scales;        // fp32 instead of fp16
  bool nibbles;            // two codes in a byte
  int64_t chunks, blocks;  // of a row
  int64_t depth;           // columns without padding

  float scale(int64_t index) const {
    return wide_scales ? static_cast<const float*>(scales)[index] : to_float(static_cast<const Float16*>(scales)[index]);
  }
};

/// Writes one row; `values` are those of the codes.
void decode_row(const Table& table, const float* values, int64_t row, float* y) {
  const int64_t tile = row / kTile, lane = row % kTile;
  const int64_t groups = table.nibbles ? 4 : 8, chunks_per_block = table.chunks / table.blocks;
  for (int64_t chunk = 0; chunk * kChunk < table.depth; ++chunk) {
    const int64_t block = (tile * table.blocks + chunk / chunks_per_block) * kTile + lane;
    const float scale = table.scale(block), offset = table.offsets ? to_float(table.offsets[block]) : 0.0f;
    const uint8_t* const codes = table.codes + ((tile * table.chunks + chunk) * groups * kTile + lane) * kGroup;
    float decoded[kChunk];
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t i = 0; i < kGroup; ++i) {
        const uint8_t code = codes[group * kTile * kGroup + i];
        const int64_t column = group * kGroup + i;
        decoded[column] = values[table.nibbles ? code & 15 : code] * scale + offset;
        if (table.nibbles) decoded[column + kChunk / 2] = values[code >> 4] * scale + offset;
      }
    }
    std::copy_n(decoded, std::min(kChunk, table.depth - chunk * kChunk), y + chunk * kChunk);
  }
}

class QuantizedEmbedding {
 public:
  static OpSpec spec() {
    return {"QuantizedEmbedding",
            {{"ids", kInt64}, {"codes", kUInt8}, {"scales", kAnyType}, {"offsets", kFloat16, kOptional}},
            {{"y", kFloat32}}};
  }

  explicit QuantizedEmbedding(const Attributes& attributes)
      : rows_(attributes.get_int("columns")), depth_(attributes.get_int("depth")) {
    const std::string format = attributes.get_string("format");
    const Float8Format* const float8 = find_float8(format);
    is_int4_ = format == "int4";
    is_float8_ = float8 != nullptr;
    if (!is_int4_ && !is_float8_ && format != "int8") {
      attributes.reject("format", "int4, int8, e4m3fn, e5m2, e4m3fnuz or e5m2fnuz", format);
    }
    if (rows_ < 1) attributes.reject("columns", "1 or more", rows_);
    if (depth_ < 1) attributes.reject("depth", "1 or more", depth_);
    for (int code = 0; code < 256; ++code) {
      values_[static_cast<size_t>(code)] =
          is_float8_ ? float8->decode(static_cast<uint8_t>(code)) : static_cast<float>(code);
    }
  }

  void compute(Call& call) const {
    const Tensor ids = call.input(0), codes = call.input(1), scales = call.input(2), offsets = call.input(3);
    check_table(codes, scales, offsets);
    if (ids.shape.rank == Shape::kMaxRank) ids.reject("of rank 7 or less", ids.shape.rank);
    const int64_t count = ids.shape.size();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = ids.as<int64_t>()[i];
      if (id < 0 || id >= rows_) ids.reject("from 0 to " + std::to_string(rows_ - 1), id);
    }
    Shape shape = ids.shape;
    shape.dims[shape.rank++] = depth_;
    float* const y = call.output<float>(0, shape);
    const Table table{codes.as<uint8_t>(), scales.data, offsets.as<Float16>(), is_float8_, is_int4_,
                      codes.shape[1],      scales.shape[1], depth_};
    const float zero = is_float8_ || offsets ? 0.0f : is_int4_ ? 8.0f : 128.0f;
    std::array<float, 256> values = values_;
    for (float& value : values) value -= zero;
    ThreadPool::run_for(count * depth_, [&](int part, int parts) {
      const Range mine = share(count, part, parts);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        decode_row(table, values.data(), ids.as<int64_t>()[i], y + i * depth_);
      }
    });
  }

 private:
  void check_table(const Tensor& codes, const Tensor& scales, const Tensor& offsets) const {
    const int64_t tiles = (rows_ + kTile - 1) / kTile;
    codes.expect_shape({tiles, "Kt", is_int4_ ? 4 : 8, kTile, kGroup});
    if (codes.shape[1] * kChunk < depth_) {
      codes.reject("of " + std::to_string((depth_ + kChunk - 1) / kChunk) + " chunks or more", codes.shape.text());
    }
    scales.expect_type({is_float8_ ? kFloat32 : kFloat16});
    scales.expect_shape({tiles, "Kb", kTile});
    if (scales.shape[1] < 1 || codes.shape[1] % scales.shape[1] != 0) {
      scales.reject("of a number of blocks that divides " + std::to_string(codes.shape[1]), scales.shape.text());
    }
    if (!offsets) return;
    if (!is_int4_) offsets.reject("absent, as only int4 has offsets", offsets.shape.text());
    offsets.expect_shape({tiles, scales.shape[1], kTile});
  }

  int64_t rows_, depth_;
  bool is_int4_, is_float8_;
  std::array<float, 256> values_;  // of the codes, before their zero point
};

}  // namespace

POPTRANSFORMER_REGISTER_OP(QuantizedEmbedding)

}  // namespace poptransformer
