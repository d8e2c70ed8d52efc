// SPDX-License-Identifier: Apache-2.0
// Attention of the query heads of one kv head over a run of cache slots, with an online softmax (Milakov and Gimelshein
// 2018, Dao et al. 2022): memory grows with the block, not with the context.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../common/scratch.h"
#include "problem.h"

namespace poptransformer {
namespace attention {

/// The query rows of tokens [token, token + tokens) of one row of the batch, of the heads that share kv head `head`,
/// against slots [begin, end). Query row r belongs to token r / group and to the group's head r % group.
template <class Cache>
struct Piece {
  const Problem<Cache>& p;
  int64_t row, head;
  int64_t token, tokens;
  int64_t begin, end;
  const float* query;  ///< From `gather_query`.

  int64_t rows() const { return tokens * p.group(); }
  const Cache* keys(int64_t slot) const { return p.present_key + p.cache_offset(row, head) + slot * p.head_dim; }
  const Cache* values(int64_t slot) const { return p.present_value + p.cache_offset(row, head) + slot * p.head_dim; }
  /// Where query row `r` lies in the op's query and output.
  int64_t offset(int64_t r) const {
    const int64_t query_head = head * p.group() + r % p.group();
    return ((row * p.tokens + token + r / p.group()) * p.heads + query_head) * p.head_dim;
  }
};

/// query[r] = the piece's query row, rotated and scaled, in rows of `width` values that end in zeros.
template <class Cache>
void gather_query(const Piece<Cache>& piece, float* query) {
  const Problem<Cache>& p = piece.p;
  const auto rotate = Kernels<Cache>::pick().rotate;
  const float scale = p.scale * kLog2E * kUnit<Cache>;
  const int64_t rows = piece.rows(), ahead = kTokensAhead * p.group();
  for (int64_t r = 0; r < rows; ++r, query += p.width()) {
    if (r + ahead < rows) prefetch(p.query + piece.offset(r + ahead), static_cast<size_t>(p.head_dim) * sizeof(float));
    rotate({p.query + piece.offset(r), p.head_dim, p.rotary_of(piece.row, piece.token + r / p.group()), scale, query});
    std::fill(query + p.head_dim, query + p.width(), 0.0f);
  }
}

/// Attention before the division by the total: sums[r] = sum of 2^(score - peak) * value.
struct Sums {
  float* sums;  // [rows, width]
  RowState* states;

  static constexpr int64_t kStateSize = sizeof(RowState) / sizeof(float);
  /// Values that it takes.
  static int64_t size(int64_t rows, int64_t width) { return rows * (width + kStateSize); }
  static Sums at(float* memory, int64_t rows, int64_t width) {
    return {memory, reinterpret_cast<RowState*>(memory + rows * width)};
  }
};

/// States of rows that have met no slots yet.
template <class Cache>
void start_states(const Piece<Cache>& piece, RowState* states) {
  const int64_t group = piece.p.group();
  for (int64_t token = 0; token < piece.tokens; ++token) {
    const int64_t sees = piece.p.seen_by(piece.row, piece.token + token);
    std::fill_n(states + token * group, group, RowState{sees, kMinusInfinity, 0.0f});
  }
}

/// Slots that few query rows meet at most in one piece.
constexpr int64_t kSplitSlots = 128;

/// For few query rows and up to kSplitSlots slots: keys and values are read once, as they lie.
/// @param ahead keys that will be wanted next, or null.
template <class Cache>
void attend_few_rows(const Piece<Cache>& piece, const Sums& out, const Cache* ahead) {
  const Problem<Cache>& p = piece.p;
  const auto& kernels = Kernels<Cache>::pick();
  const int64_t rows = piece.rows(), width = p.width(), count = piece.end - piece.begin;
  const Cache* values = piece.values(piece.begin);
  float* scores = scratch<float>(Scratch::kOwn, rows * kSplitSlots);
  float rescale[kMaxSoftenRows];
  kernels.score({rows, piece.query, width, piece.keys(piece.begin), p.head_dim, count, scores, kSplitSlots, values});
  start_states(piece, out.states);
  kernels.soften({rows, piece.begin, count, scores, kSplitSlots, out.states, rescale});
  kernels.weigh({rows, scores, kSplitSlots, values, p.head_dim, count, out.sums, width, ahead});
}

/// For many query rows: keys and values of a block of slots are widened once for all of them.
template <class Cache>
class ManyRows {
 public:
  ManyRows(const Piece<Cache>& piece, const Sums& out)
      : piece_(piece), p_(piece.p), out_(out), rows_(piece.rows()), width_(piece.p.width()) {
    keys_ = scratch<float>(Scratch::kOwn, kBlockSlots * (2 * width_ + kTileRows));
    values_ = keys_ + kBlockSlots * width_;
    scores_ = values_ + kBlockSlots * width_;
  }

  void run() {
    std::fill_n(out_.sums, rows_ * width_, 0.0f);
    start_states(piece_, out_.states);
    for (int64_t first = piece_.begin; first < piece_.end; first += kBlockSlots) {
      const int64_t count = std::min(kBlockSlots, piece_.end - first);
      kernels_.pack_keys(piece_.keys(first), p_.head_dim, count, keys_);
      const float* values = wide_values(first, count);
      for (int64_t r = 0; r < rows_; r += kernels_.tile_rows) {
        attend_tile(r, std::min(kernels_.tile_rows, rows_ - r), first, count, values);
      }
    }
  }

 private:
  /// `count` value rows of fp32, `width_` apart.
  const float* wide_values(int64_t first, int64_t count) {
    const Cache* values = piece_.values(first);
    if constexpr (std::is_same_v<Cache, float>) {
      if (width_ == p_.head_dim) return values;
    }
    kernels_.widen_rows(values, p_.head_dim, width_, count, values_);
    return values_;
  }

  /// Query rows [r, r + rows) against the block at `first`, as far as one of them sees it.
  void attend_tile(int64_t r, int64_t rows, int64_t first, int64_t count, const float* values) {
    RowState* states = out_.states + r;
    const int64_t seen = std::min(states[rows - 1].sees - first, count);
    if (seen <= 0) return;
    float *sums = out_.sums + r * width_, rescale[kTileRows];
    kernels_.multiply_tile({rows, round_up(seen, kWidth), p_.head_dim, piece_.query + r * width_, width_, keys_,
                            kBlockSlots, scores_, kBlockSlots, false});
    kernels_.soften({rows, first, seen, scores_, kBlockSlots, states, rescale});
    for (int64_t i = 0; i < rows; ++i) {
      if (rescale[i] != 1.0f) kernels_.scale(sums + i * width_, rescale[i], width_, sums + i * width_);
    }
    kernels_.multiply_tile({rows, width_, seen, scores_, kBlockSlots, values, width_, sums, width_, true});
  }

  const Piece<Cache>& piece_;
  const Problem<Cache>& p_;
  const Sums& out_;
  const Kernels<Cache>& kernels_ = Kernels<Cache>::pick();
  const int64_t rows_, width_;
  float *keys_, *values_, *scores_;
};

}  // namespace attention
}  // namespace poptransformer
