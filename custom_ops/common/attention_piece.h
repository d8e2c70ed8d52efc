// SPDX-License-Identifier: Apache-2.0
// Attention of the query heads of one kv head over a run of cache slots, block by block with an online softmax
// (Milakov and Gimelshein 2018, Dao et al. 2022): memory grows with the block, not with the context.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "scratch.h"
#include "softmax.h"
#include "tiles.h"

namespace poptransformer {

constexpr int64_t kSlotBlock = 64;  ///< Slots whose scores are held at a time.

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// `rows` query rows against slots [begin, end). Row r belongs to token r / group and sees slots [0, first_visible +
/// r / group), so that query heads which share keys and values read them once.
struct AttentionPiece {
  const float* query;  // Head 0 of the group in the piece's first token; heads lie `head_dim` apart.
  int64_t token_stride;
  const float* keys;  // [slots, head_dim], from slot 0 on.
  const float* values;
  int64_t group, tokens, head_dim;
  int64_t begin, end;
  int64_t first_visible;
  float scale;
  bool by_panels;  // Transpose the keys for many query rows. The order of sums depends on it.

  int64_t rows() const { return group * tokens; }
};

/// Attention before the division by `total`: sums[r] = sum of exp(score - peak[r]) * value, total[r] = sum of exp(...).
/// A row that sees no slot of the piece has total 0 and peak -infinity.
struct AttentionSums {
  float* sums;  // [rows, width], width = head_dim rounded up to 16.
  float* peak;
  float* total;
};

/// Values an AttentionSums of `rows` rows takes.
inline int64_t attention_sums_size(int64_t rows, int64_t head_dim) {
  return rows * (round_up(head_dim, kTileColumns) + 2);
}

inline AttentionSums attention_sums_at(float* memory, int64_t rows, int64_t head_dim) {
  float* peak = memory + rows * round_up(head_dim, kTileColumns);
  return {memory, peak, peak + rows};
}

/// Computes one piece. Its work memory is this thread's Scratch::kOwn.
class AttentionWorker {
 public:
  AttentionWorker(const AttentionPiece& piece, const AttentionSums& out)
      : p_(piece), out_(out), rows_(piece.rows()), width_(round_up(piece.head_dim, kTileColumns)) {
    const int64_t panels = p_.by_panels ? kTileColumns * p_.head_dim : 0;
    const int64_t padded = width_ == p_.head_dim ? 0 : kSlotBlock * width_;
    query_ = scratch<float>(Scratch::kOwn, rows_ * p_.head_dim + rows_ * kSlotBlock + panels + padded);
    scores_ = query_ + rows_ * p_.head_dim;
    panels_ = scores_ + rows_ * kSlotBlock;
    padded_ = panels_ + panels;
  }

  void run() {
    gather_query();
    std::fill_n(out_.sums, rows_ * width_, 0.0f);
    std::fill_n(out_.peak, rows_, -std::numeric_limits<float>::infinity());
    std::fill_n(out_.total, rows_, 0.0f);
    for (int64_t first = p_.begin; first < p_.end; first += kSlotBlock) {
      const int64_t count = std::min(kSlotBlock, p_.end - first);
      if (p_.by_panels) {
        score_by_panels(first, count);
      } else {
        score_by_dots(first, count);
      }
      for (int64_t r = 0; r < rows_; ++r) update_row(r, first, count);
      add_values(first, count);
    }
  }

 private:
  /// query_[r] = scale * query, rows one after the other.
  void gather_query() {
    float* target = query_;
    for (int64_t token = 0; token < p_.tokens; ++token) {
      const float* source = p_.query + token * p_.token_stride;
      for (int64_t i = 0; i < p_.group * p_.head_dim; ++i) *target++ = p_.scale * source[i];
    }
  }

  /// scores_[r][j] = query_[r] . keys[first + j]
  void score_by_dots(int64_t first, int64_t count) {
    const auto dot = Tiles<float>::pick().dot;
    for (int64_t j = 0; j < count; j += kDotRows) {
      int64_t slot[kDotRows];
      const float* keys[kDotRows];
      for (int i = 0; i < kDotRows; ++i) {
        slot[i] = std::min(j + i, count - 1);  // At the end the last one is computed again.
        keys[i] = p_.keys + (first + slot[i]) * p_.head_dim;
      }
      // With few queries this is bound by memory: have the values under way while the keys are read.
      prefetch_rows(p_.values, first + j);
      for (int64_t r = 0; r < rows_; r += kDotInputs) {
        const int inputs = static_cast<int>(std::min<int64_t>(kDotInputs, rows_ - r));
        float part[kDotInputs][kDotRows];
        dot(keys, query_ + r * p_.head_dim, p_.head_dim, inputs, p_.head_dim, part);
        for (int m = 0; m < inputs; ++m) {
          for (int i = 0; i < kDotRows; ++i) scores_[(r + m) * kSlotBlock + slot[i]] = part[m][i];
        }
      }
    }
  }

  /// Asks for four rows of a cache.
  void prefetch_rows(const float* cache, int64_t slot) {
    const char* begin = reinterpret_cast<const char*>(cache + slot * p_.head_dim);
    for (int64_t byte = 0; byte < kDotRows * p_.head_dim * int64_t{sizeof(float)}; byte += 64) {
      prefetch(begin + byte);
    }
  }

  /// The same for many rows: 16 keys at a time are transposed first.
  void score_by_panels(int64_t first, int64_t count) {
    const auto& tiles = Tiles<float>::pick();
    static constexpr float kZeros[kTileColumns] = {};
    for (int64_t j = 0; j < count; j += kTileColumns) {
      const int width = static_cast<int>(std::min<int64_t>(kTileColumns, count - j));
      tiles.pack(p_.keys + (first + j) * p_.head_dim, p_.head_dim, width, p_.head_dim, panels_);
      for (int64_t r = 0; r < rows_; r += kTileRows) {
        const int rows = static_cast<int>(std::min<int64_t>(kTileRows, rows_ - r));
        tiles.tile(rows, {query_ + r * p_.head_dim, p_.head_dim, panels_, kTileColumns, kZeros, 0,
                          scores_ + r * kSlotBlock + j, kSlotBlock, p_.head_dim});
      }
    }
  }

  /// Turns a row's scores into exponentials, and scales what the row has summed so far to their common peak.
  void update_row(int64_t r, int64_t first, int64_t count) {
    const Softmax& softmax = Softmax::pick();
    float* scores = scores_ + r * kSlotBlock;
    const int64_t visible = std::clamp<int64_t>(p_.first_visible + r / p_.group - first, 0, count);
    std::fill(scores + visible, scores + count, 0.0f);
    if (visible == 0) return;
    const float block_peak = softmax.row_max(scores, visible);
    const float peak = block_peak <= out_.peak[r] ? out_.peak[r] : block_peak;  // NaN if block_peak is.
    const float rescale = std::exp(out_.peak[r] - peak);
    out_.total[r] = out_.total[r] * rescale + softmax.row_exp(scores, visible, peak);
    if (peak == out_.peak[r]) return;
    out_.peak[r] = peak;
    float* sums = out_.sums + r * width_;
    for (int64_t i = 0; i < width_; ++i) sums[i] *= rescale;
  }

  /// sums[r] += scores_[r] . values[first : first + count]
  void add_values(int64_t first, int64_t count) {
    const auto tile = Tiles<float>::pick().tile;
    const float* values = p_.values + first * p_.head_dim;
    if (width_ != p_.head_dim) values = pad_values(values, count);
    for (int64_t column = 0; column < width_; column += kTileColumns) {
      for (int64_t r = 0; r < rows_; r += kTileRows) {
        const int rows = static_cast<int>(std::min<int64_t>(kTileRows, rows_ - r));
        float* sums = out_.sums + r * width_ + column;
        tile(rows, {scores_ + r * kSlotBlock, kSlotBlock, values + column, width_, sums, width_, sums, width_, count});
      }
    }
  }

  /// A copy of `count` value rows with zeros up to a multiple of 16 columns.
  const float* pad_values(const float* values, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      float* row = padded_ + j * width_;
      std::copy_n(values + j * p_.head_dim, p_.head_dim, row);
      std::fill(row + p_.head_dim, row + width_, 0.0f);
    }
    return padded_;
  }

  const AttentionPiece& p_;
  const AttentionSums& out_;
  const int64_t rows_, width_;
  float *query_, *scores_, *panels_, *padded_;
};

}  // namespace poptransformer
