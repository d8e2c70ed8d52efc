// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of one process. They read each other's tensors where these lie; nothing is copied on the way.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "communicator.h"

namespace poptransformer {

/// What the ranks of one group share. A rank that waits longer than `timeout` for another one ends the group: it and
/// all others throw an error that names the rank that is missing, and where it was last.
class ThreadGroup : public std::enable_shared_from_this<ThreadGroup> {
 public:
  /// @param first number of rank 0 in the whole job, for errors; @param stride from one rank's number to the next.
  ThreadGroup(int size, std::chrono::milliseconds timeout, int first, int stride);

  /// The end of one rank; each rank joins once.
  CommunicatorPtr join(int rank);

  /// Makes whoever waits, or comes later, throw `reason`. The first reason stays.
  void abort(const std::string& reason);

 private:
  friend class ThreadCommunicator;
  using Clock = std::chrono::steady_clock;
  using Address = std::tuple<int, int, int>;  // from, to, tag

  /// What a rank lays open to the others between two meetings.
  struct alignas(64) Place {
    const void* input = nullptr;
    void* output = nullptr;
    int64_t size = 0;
    std::atomic<const char*> node{""};
    std::atomic<uint64_t> meetings{0};
  };

  /// Returns when all ranks have come. @returns nanoseconds waited.
  int64_t meet(int rank, const char* node);
  /// Throws unless all ranks are in the same node with tensors of the same size. Call it between two meetings.
  void check_alike(int rank) const;
  void put(int from, int to, int tag, const char* node, Message message);
  Message take(int from, int to, int tag, const char* node, int64_t* waited);

  void sleep_until_met(uint64_t generation, int rank, const char* node);
  void throw_if_aborted() const;
  [[noreturn]] void time_out(std::unique_lock<std::mutex>& lock, int rank, const char* node,
                             const std::vector<int>& missing);
  void abort_locked(const std::string& reason);
  std::string name(int rank) const { return "rank " + std::to_string(first_ + stride_ * rank); }

  const int size_, first_, stride_;
  const std::chrono::milliseconds timeout_;
  const bool may_spin_;
  std::unique_ptr<Place[]> places_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint64_t> generation_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> aborted_{false};
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::string reason_;
  std::map<Address, std::deque<Message>> mail_;
};

}  // namespace poptransformer
