// SPDX-License-Identifier: Apache-2.0
// How the ranks of one model talk to each other. Ops know this interface alone; what is behind it is threads of this
// process (thread_group.h) or functions that somebody else provides, such as MPI's (callbacks.h).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace poptransformer {

using Message = std::vector<char>;

/// One rank's end of a group. All ranks of a group call the same functions in the same order; `node` says in errors
/// which layer and op a rank is in, and stays valid for ever (`intern`).
class Communicator {
 public:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// y = the sum of all ranks' x, added in the order of the ranks: the same bits on each of them.
  virtual void all_reduce(const char* node, const float* x, float* y, int64_t count) = 0;

  /// y = all ranks' x, one after the other.
  virtual void all_gather(const char* node, const void* x, void* y, int64_t bytes) = 0;

  /// Gives all ranks what lies in `data` of rank `root`.
  virtual void broadcast(const char* node, void* data, int64_t bytes, int root) = 0;

  /// Sends without waiting for the receiver. Messages of one tag arrive in the order they were sent in.
  virtual void send(const char* node, int to, int tag, Message message) = 0;

  /// Waits for the next message of that tag.
  virtual Message receive(const char* node, int from, int tag) = 0;

  /// When this rank last sent a message, and last got one, on the steady clock in nanoseconds; 0 if it never has.
  int64_t last_sent() const { return last_sent_.load(std::memory_order_relaxed); }
  int64_t last_received() const { return last_received_.load(std::memory_order_relaxed); }

  /// Nanoseconds that this rank has waited for others so far.
  int64_t waited() const { return waited_.load(std::memory_order_relaxed); }

 protected:
  void count_wait(int64_t nanoseconds) { waited_.fetch_add(nanoseconds, std::memory_order_relaxed); }

  void note_sending() { last_sent_.store(now(), std::memory_order_relaxed); }
  void note_receiving() { last_received_.store(now(), std::memory_order_relaxed); }

 private:
  static int64_t now() { return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count(); }

  const int rank_, size_;
  std::atomic<int64_t> waited_{0}, last_sent_{0}, last_received_{0};
};

using CommunicatorPtr = std::shared_ptr<Communicator>;

/// A copy of `text` that lives as long as the process; equal texts have one copy.
const char* intern(const std::string& text);

/// The groups that a rank belongs to: the replicas of its stage, and the stages of its replica.
struct Groups {
  CommunicatorPtr replicas, stages;
};

/// The groups of the sessions that this thread creates. Kernels look once, when they are made.
Groups& current_groups();

}  // namespace poptransformer
