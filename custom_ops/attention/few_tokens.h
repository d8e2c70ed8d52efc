// SPDX-License-Identifier: Apache-2.0
// A step of few tokens, as in decode: there are too few queries to share out among threads, so slots are shared out.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>

#include "../common/thread_pool.h"
#include "piece.h"

namespace poptransformer {
namespace attention {

/// From this many query rows per kv head on, widening and transposing the keys pays.
constexpr int64_t kManyRows = 12;

/// A piece is a run of kSplitSlots slots of one kv head: whoever does it brings that part of the cache up to date, then
/// attends to it. Whoever does the last piece of a kv head merges the sums of all. The runs are the same for any number
/// of threads, so a result is too.
template <class Cache>
class FewTokens {
 public:
  explicit FewTokens(const Problem<Cache>& p)
      : p_(p), rows_(p.tokens * p.group()), sums_size_(Sums::size(rows_, p.width())) {
    int64_t slots = 0;
    for (int64_t row = 0; row < p.batch; ++row) {
      pieces_ += p.kv_heads * splits(row);
      slots += p.length(row);
    }
    work_ = 2 * slots * p.heads * p.head_dim;
    const int64_t heads = p.batch * p.kv_heads;
    query_ = scratch<float>(Scratch::kShared, heads * rows_ * p.width() + pieces_ * sums_size_ + 2 * heads);
    sums_ = query_ + heads * rows_ * p.width();
    static_assert(sizeof(std::atomic<int>) <= 2 * sizeof(float));
    done_ = reinterpret_cast<std::atomic<int>*>(sums_ + pieces_ * sums_size_);
    for (int64_t index = 0; index < heads; ++index) new (done_ + index) std::atomic<int>(0);
  }

  void run() const {
    for (int64_t row = 0; row < p_.batch; ++row) {
      for (int64_t head = 0; head < p_.kv_heads; ++head) gather_query(piece(row, head, 0, 0), query(row, head));
    }
    ThreadPool::run_for(work_, [this](int part, int parts) { do_pieces(share(pieces_, part, parts)); });
  }

 private:
  int64_t splits(int64_t row) const { return std::max<int64_t>((p_.length(row) + kSplitSlots - 1) / kSplitSlots, 1); }
  float* query(int64_t row, int64_t head) const { return query_ + (row * p_.kv_heads + head) * rows_ * p_.width(); }
  Sums sums(int64_t index) const { return Sums::at(sums_ + index * sums_size_, rows_, p_.width()); }
  Piece<Cache> piece(int64_t row, int64_t head, int64_t begin, int64_t end) const {
    return {p_, row, head, 0, p_.tokens, begin, end, query(row, head)};
  }

  void do_pieces(Range mine) const {
    int64_t first = 0;  // The row's first piece.
    for (int64_t row = 0; row < p_.batch && first < mine.end; ++row) {
      const int64_t count = splits(row), next = first + p_.kv_heads * count;
      for (int64_t index = std::max(first, mine.begin); index < std::min(next, mine.end); ++index) {
        do_piece(row, (index - first) / count, (index - first) % count, index, index + 1 == mine.end);
      }
      first = next;
    }
  }

  void do_piece(int64_t row, int64_t head, int64_t split, int64_t index, bool is_last) const {
    const int64_t count = splits(row), begin = split * kSplitSlots;
    const int64_t end = std::min(begin + kSplitSlots, p_.length(row));
    update_cache(row, head, begin, end, split + 1 == count ? p_.slots : end);
    if (rows_ == 0 || p_.head_dim == 0) return;
    const Piece<Cache> work = piece(row, head, begin, end);
    if (rows_ < kManyRows) {
      // This head's next keys lie behind these, the next head's behind the last slot.
      const Cache* ahead = is_last ? nullptr : work.keys(split + 1 == count ? p_.slots : end);
      attend_few_rows(work, sums(index), ahead);
    } else {
      ManyRows<Cache>(work, sums(index)).run();
    }
    std::atomic<int>& done = done_[row * p_.kv_heads + head];
    if (count == 1 || done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) merge(work, index - split, count);
  }

  /// Copies the past to slots [begin, copy_end) where it lies elsewhere, and puts tokens into slots [begin, end).
  void update_cache(int64_t row, int64_t head, int64_t begin, int64_t end, int64_t copy_end) const {
    copy_past(p_, row, head, begin, copy_end);
    const int64_t past = p_.past_lengths[row];
    const int64_t first = std::max(begin - past, int64_t{0}), last = std::min(end - past, p_.tokens);
    if (first < last) write_tokens(p_, row, head, first, last, scratch<float>(Scratch::kOwn, p_.head_dim));
  }

  /// Brings the sums of one kv head's pieces to their common peak, in the order of the slots, and divides by the total.
  void merge(const Piece<Cache>& last, int64_t index, int64_t count) const {
    const auto& kernels = Kernels<Cache>::pick();
    const int64_t width = p_.width();
    float* merged = scratch<float>(Scratch::kOwn, width + count);
    float* weights = merged + width;
    for (int64_t r = 0; r < rows_; ++r) {
      int64_t seen = count;  // A row sees nothing of the last pieces if they hold later tokens of the step.
      while (sums(index + seen - 1).states[r].total == 0.0f) --seen;
      const float* first = sums(index).sums + r * width;
      float peak = sums(index).states[r].peak, total = 0.0f;
      for (int64_t split = 1; split < seen; ++split) peak = std::max(peak, sums(index + split).states[r].peak);
      for (int64_t split = 0; split < seen; ++split) {
        const RowState& state = sums(index + split).states[r];
        weights[split] = exp2_nonpositive(state.peak - peak);
        total += weights[split] * state.total;
      }
      if (seen > 1) {
        kernels.multiply_tile({1, width, seen, weights, seen, first, sums_size_, merged, width, false});
        first = merged;
      }
      kernels.scale(first, kUnit<Cache> / total, p_.head_dim, p_.output + last.offset(r));
    }
  }

  const Problem<Cache>& p_;
  const int64_t rows_, sums_size_;
  int64_t pieces_ = 0, work_ = 0;
  float *query_, *sums_;
  std::atomic<int>* done_;
};

}  // namespace attention
}  // namespace poptransformer
