// SPDX-License-Identifier: Apache-2.0
// Quantizing and packing a weight, for Python through ctypes (poptransformer/quantization/native_encoder.py).
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "../common/error.h"
#include "../common/thread_pool.h"
#include "request.h"
#include "tile.h"

#define POPTRANSFORMER_EXPORT extern "C" __attribute__((visibility("default")))

namespace poptransformer {
namespace {

constexpr int64_t kChunk = 32;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// fp16 bits of a float that is an fp16 number.
uint16_t half_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  constexpr uint32_t kLeastNormal = 113u << 23;
  if (magnitude >= kLeastNormal) return static_cast<uint16_t>(sign | ((magnitude >> 13) - (112u << 10)));
  float size;
  std::memcpy(&size, &magnitude, sizeof size);
  return static_cast<uint16_t>(sign | static_cast<uint32_t>(size * 0x1p24f));
}

/// Encodes tiles of one request; one for each part of the job.
class TileEncoder {
 public:
  TileEncoder(const EncodeRequest& request, std::atomic<int64_t>& not_finite)
      : request_(request),
        not_finite_(not_finite),
        padded_(round_up(request.depth, request.block)),
        x_(static_cast<size_t>(request.block * kTileRows)),
        ones_(static_cast<size_t>(request.block), 1.0f),
        codes_(static_cast<size_t>(padded_ * kTileRows), static_cast<uint8_t>(request.zero)) {}

  void encode(int64_t tile) {
    const int64_t blocks = padded_ / request_.block;
    const int64_t rows = std::min<int64_t>(kTileRows, request_.rows - tile * kTileRows);
    TileBlock out;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t begin = b * request_.block;
      const int64_t columns = std::min(request_.block, request_.depth - begin);
      transpose(tile * kTileRows, rows, begin, columns);
      out.codes = codes_.data() + begin * kTileRows;
      const float* weights = request_.importance != nullptr ? request_.importance + begin : ones_.data();
      encode_tile_block(request_, x_.data(), weights, columns, out);
      store_scales(out, tile * blocks + b, rows);
      for (int64_t r = 0; r < rows; ++r) {
        request_.row_errors[tile * kTileRows + r] += out.errors[r];
        request_.row_costs[tile * kTileRows + r] += out.costs[r];
        request_.row_saturated[tile * kTileRows + r] += out.saturated[r];
      }
    }
    clear_missing_rows(rows);
    pack(tile);
  }

 private:
  /// Brings columns of the tile's rows to x_ [columns, 16]; missing rows are zero.
  void transpose(int64_t first, int64_t rows, int64_t begin, int64_t columns) {
    if (rows < kTileRows) std::fill(x_.begin(), x_.end(), 0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      const float* source = request_.weight + (first + r) * request_.depth + begin;
      uint32_t special = 0;
      for (int64_t k = 0; k < columns; ++k) {
        uint32_t bits;
        std::memcpy(&bits, source + k, sizeof bits);
        special |= (bits & 0x7f800000u) == 0x7f800000u;
        x_[static_cast<size_t>(k * kTileRows + r)] = source[k];
      }
      if (special) report(source - request_.weight, columns);
    }
  }

  void report(int64_t start, int64_t columns) {
    for (int64_t index = start; index < start + columns; ++index) {
      if (std::isfinite(request_.weight[index])) continue;
      int64_t known = not_finite_.load();
      while (index < known && !not_finite_.compare_exchange_weak(known, index)) {
      }
      return;
    }
  }

  void store_scales(const TileBlock& out, int64_t index, int64_t rows) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      const int64_t at = index * kTileRows + r;
      const float scale = r < rows ? out.scales[r] : 0.0f;
      if (request_.mantissa >= 0) {
        static_cast<float*>(request_.scales)[at] = scale;
      } else {
        static_cast<uint16_t*>(request_.scales)[at] = half_bits(scale);
      }
      if (request_.offsets != nullptr) request_.offsets[at] = r < rows ? half_bits(out.offsets[r]) : 0;
    }
  }

  void clear_missing_rows(int64_t rows) {
    for (int64_t k = 0; k < padded_ && rows < kTileRows; ++k) {
      std::memset(codes_.data() + k * kTileRows + rows, static_cast<int>(request_.zero), kTileRows - rows);
    }
  }

  /// From codes [columns, 16] to the tile's bytes.
  void pack(int64_t tile) {
    const int64_t paired = request_.bits == 4 ? kChunk / 2 : 0, kept = request_.bits == 4 ? kChunk / 2 : kChunk;
    uint8_t* to = request_.codes + tile * padded_ / kChunk * kept * kTileRows;
    for (int64_t begin = 0; begin < padded_; begin += kChunk) {
      for (int64_t k = 0; k < kept; k += 4, to += 4 * kTileRows) {
        pack_columns(codes_.data() + (begin + k) * kTileRows, paired * kTileRows, to);
      }
    }
  }

  static void pack_columns(const uint8_t* codes, int64_t partner, uint8_t* to) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      for (int64_t i = 0; i < 4; ++i) {
        const uint8_t* code = codes + i * kTileRows + r;
        to[r * 4 + i] = partner == 0 ? *code : static_cast<uint8_t>(*code | code[partner] << 4);
      }
    }
  }

  const EncodeRequest& request_;
  std::atomic<int64_t>& not_finite_;
  int64_t padded_;
  std::vector<float> x_, ones_;
  std::vector<uint8_t> codes_;
};

}  // namespace
}  // namespace poptransformer

/// How many fields an EncodeRequest has.
POPTRANSFORMER_EXPORT int poptransformer_encode_fields() { return poptransformer::kEncodeFields; }

/// Quantizes and packs a weight on the thread pool.
/// @returns -1 when done, -2 where memory ran out, else the index of a value that is NaN or infinite.
POPTRANSFORMER_EXPORT int64_t poptransformer_encode(const poptransformer::EncodeRequest* request) {
  using namespace poptransformer;
  std::atomic<int64_t> not_finite{INT64_MAX};
  try {
    simd();
    const int64_t tiles = (request->rows + kTileRows - 1) / kTileRows;
    ThreadPool::run_for(request->rows * request->depth * (request->count + 1), [&](int part, int parts) {
      TileEncoder encoder(*request, not_finite);
      const Range range = share(tiles, part, parts);
      for (int64_t tile = range.begin; tile < range.end; ++tile) encoder.encode(tile);
    });
  } catch (...) {
    return -2;
  }
  return not_finite == INT64_MAX ? -1 : not_finite.load();
}
