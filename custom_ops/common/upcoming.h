// SPDX-License-Identifier: Apache-2.0
// Weights that the next job of the thread pool will read, and how a thread that has nothing to do until then asks for its
// share of them. Decode reads each weight once, so the memory is what it waits for: every moment in which nobody reads
// is lost.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace poptransformer {

/// Items [begin, end).
struct Range {
  int64_t begin, end;
};

/// The contiguous share of `total` items that belongs to one part of a job.
inline Range share(int64_t total, int part, int parts) {
  return {total * part / parts, total * (part + 1) / parts};
}

/// Weights of one job. Only addresses are kept and nothing is read through them, so they may be out of date.
struct Upcoming {
  static constexpr int kMaxWeights = 3, kMaxRegions = 3;

  /// Tiles that lie one behind the other: codes, scales, offsets.
  struct Region {
    const char* data;
    int64_t tile_bytes;
  };

  /// Without tiles, or with bytes in the first region.
  struct Weight {
    Region regions[kMaxRegions];
    int64_t regions_count, tiles;
  };

  Weight weights[kMaxWeights] = {};
  int64_t count = 0;              ///< Of weights.
  bool is_gated = false;          ///< Each part takes its share of every weight; otherwise of all tiles together.
  const char* common = nullptr;  ///< What every part reads first, as the weights of a norm; may be null.
  int64_t common_bytes = 0;
};

/// Asks for one part's share of the upcoming weights, a few lines at a time and in about the order of its reading.
class AskAhead {
 public:
  AskAhead() = default;

  /// Asks for at most `bytes`.
  AskAhead(const Upcoming& upcoming, int part, int parts, int64_t bytes)
      : upcoming_(upcoming), part_(part), parts_(parts), lines_left_(bytes / kLine) {
    for (int64_t i = 0; i < upcoming.count; ++i) all_tiles_ += upcoming.weights[i].tiles;
    enter_weight();
  }

  /// A few lines more. @returns false where nothing is left to ask for.
  bool ask() {
    if (common_ < upcoming_.common_bytes) {
      prefetch(upcoming_.common + common_);
      common_ += kLine;
      return true;
    }
    if (weight_ >= upcoming_.count || lines_left_ <= 0) return false;
    const Upcoming::Weight& weight = upcoming_.weights[weight_];
    for (int64_t i = 0; i < weight.regions_count; ++i) ask_region(weight.regions[i]);
    step_ += kLine;
    if (step_ >= stream_ * weight.regions[0].tile_bytes) {
      ++weight_;
      enter_weight();
    }
    return true;
  }

 private:
  static constexpr int64_t kLine = 64;
  /// Products walk their tiles as so many streams side by side (matrix/).
  static constexpr int64_t kStreams = 4;

  /// Finds the next weight of which a tile is ours.
  void enter_weight() {
    for (; weight_ < upcoming_.count; ++weight_) {
      tiles_ = own_tiles(upcoming_.weights[weight_].tiles);
      first_ += upcoming_.weights[weight_].tiles;
      stream_ = (tiles_.end - tiles_.begin + kStreams - 1) / kStreams;
      step_ = 0;
      if (stream_ > 0) return;
    }
  }

  Range own_tiles(int64_t tiles) const {
    if (upcoming_.is_gated) return share(tiles, part_, parts_);
    const Range mine = share(all_tiles_, part_, parts_);
    return {std::clamp<int64_t>(mine.begin - first_, 0, tiles), std::clamp<int64_t>(mine.end - first_, 0, tiles)};
  }

  /// One line of each stream of the first region; of a smaller region whenever one more of its lines is needed.
  void ask_region(const Upcoming::Region& region) {
    const int64_t whole = upcoming_.weights[weight_].regions[0].tile_bytes;
    const int64_t place = step_ * region.tile_bytes / whole, before = (step_ - kLine) * region.tile_bytes / whole;
    if (step_ > 0 && place / kLine == before / kLine) return;
    for (int64_t s = 0; s < kStreams; ++s) {
      const int64_t tile = tiles_.begin + s * stream_;
      if (tile >= tiles_.end) break;
      prefetch(region.data + tile * region.tile_bytes + place);
      --lines_left_;
    }
  }

  Upcoming upcoming_;        // A copy: the job that it came with ends before we do.
  int part_ = 0, parts_ = 1;
  int64_t all_tiles_ = 0;
  Range tiles_{0, 0};        // Ours of this weight.
  int64_t common_ = 0;       // Bytes of what all read that were asked for.
  int64_t first_ = 0;        // Tiles of the weights so far.
  int64_t weight_ = 0;
  int64_t stream_ = 0;       // Tiles of each stream.
  int64_t step_ = 0;         // Bytes of each stream of the first region that were asked for.
  int64_t lines_left_ = 0;
};

}  // namespace poptransformer
