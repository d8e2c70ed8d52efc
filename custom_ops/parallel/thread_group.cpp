// SPDX-License-Identifier: Apache-2.0
#include "thread_group.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "../common/error.h"
#include "../common/simd.h"
#include "../common/thread_pool.h"

namespace poptransformer {
namespace {

/// How long a rank spins for the others before it sleeps. Ranks do equal work, so they come at about the same time.
constexpr std::chrono::microseconds kSpin{100};

void pause() {
#if POPTRANSFORMER_X86
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t nanoseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

/// One rank of a ThreadGroup.
class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadGroup> group, int rank)
      : Communicator(rank, group->size_), group_(std::move(group)) {}

  // Each rank sums its share of the columns and writes it to all outputs: every input is read once, and the order of
  // the sum does not depend on who computes it.
  void all_reduce(const char* node, const float* x, float* y, int64_t count) override {
    open(node, x, y, count);
    const Range mine = share(count, rank(), size());
    constexpr int64_t kPiece = 1024;
    float sum[kPiece];
    for (int64_t begin = mine.begin; begin < mine.end; begin += kPiece) {
      const int64_t length = std::min(kPiece, mine.end - begin);
      std::copy_n(input<float>(0) + begin, length, sum);
      for (int other = 1; other < size(); ++other) {
        const float* part = input<float>(other) + begin;
        for (int64_t i = 0; i < length; ++i) sum[i] += part[i];
      }
      for (int other = 0; other < size(); ++other) {
        std::copy_n(sum, length, static_cast<float*>(group_->places_[other].output) + begin);
      }
    }
    close(node);
  }

  void all_gather(const char* node, const void* x, void* y, int64_t bytes) override {
    open(node, x, y, bytes);
    for (int other = 0; other < size(); ++other) {
      std::copy_n(input<char>(other), bytes, static_cast<char*>(y) + other * bytes);
    }
    close(node);
  }

  void broadcast(const char* node, void* data, int64_t bytes, int root) override {
    open(node, data, nullptr, bytes);
    if (rank() != root) std::copy_n(input<char>(root), bytes, static_cast<char*>(data));
    close(node);
  }

  void send(const char* node, int to, int tag, Message message) override {
    note_sending();
    group_->put(rank(), to, tag, node, std::move(message));
  }

  Message receive(const char* node, int from, int tag) override {
    int64_t waited = 0;
    Message message = group_->take(from, rank(), tag, node, &waited);
    count_wait(waited);
    note_receiving();
    return message;
  }

 private:
  template <class T>
  const T* input(int other) const {
    return static_cast<const T*>(group_->places_[other].input);
  }

  void open(const char* node, const void* x, void* y, int64_t size) {
    ThreadGroup::Place& place = group_->places_[rank()];
    place.input = x;
    place.output = y;
    place.size = size;
    count_wait(group_->meet(rank(), node));
    group_->check_alike(rank());
  }

  void close(const char* node) { count_wait(group_->meet(rank(), node)); }

  const std::shared_ptr<ThreadGroup> group_;
};

ThreadGroup::ThreadGroup(int size, std::chrono::milliseconds timeout, int first, int stride)
    : size_(size),
      first_(first),
      stride_(stride),
      timeout_(timeout),
      may_spin_(size <= static_cast<int>(std::thread::hardware_concurrency())),
      places_(new Place[static_cast<size_t>(size)]) {}

CommunicatorPtr ThreadGroup::join(int rank) { return std::make_shared<ThreadCommunicator>(shared_from_this(), rank); }

int64_t ThreadGroup::meet(int rank, const char* node) {
  throw_if_aborted();
  Place& place = places_[rank];
  place.node.store(node, std::memory_order_relaxed);
  place.meetings.fetch_add(1, std::memory_order_relaxed);
  const uint64_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    // Sequentially consistent, as is the sleeper's side: either it sees the new generation or we see the sleeper.
    generation_.store(generation + 1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      changed_.notify_all();
    }
    return 0;
  }
  const Clock::time_point start = Clock::now();
  const auto met = [&] { return generation_.load(std::memory_order_acquire) != generation; };
  while (may_spin_ && !met() && Clock::now() - start < kSpin) {
    for (int look = 0; look < 64 && !met(); ++look) pause();
  }
  if (!met()) sleep_until_met(generation, rank, node);
  return nanoseconds_since(start);
}

void ThreadGroup::sleep_until_met(uint64_t generation, int rank, const char* node) {
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  const auto over = [&] {
    return aborted_.load() || generation_.load(std::memory_order_seq_cst) != generation;
  };
  const bool in_time = changed_.wait_for(lock, timeout_, over);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
  if (generation_.load() != generation) return;
  if (in_time) {
    lock.unlock();
    throw_if_aborted();
  }
  std::vector<int> missing;
  for (int other = 0; other < size_; ++other) {
    if (places_[other].meetings.load() < places_[rank].meetings.load()) missing.push_back(other);
  }
  time_out(lock, rank, node, missing);
}

void ThreadGroup::time_out(std::unique_lock<std::mutex>& lock, int rank, const char* node,
                           const std::vector<int>& missing) {
  std::string who;
  for (int other : missing) {
    const std::string last = places_[other].node.load();
    who += (who.empty() ? "" : " and ") + name(other);
    who += last.empty() ? ", which has not begun" : ", which was last in " + last;
  }
  const double seconds = static_cast<double>(timeout_.count()) / 1000;
  std::ostringstream text;
  text << name(rank) << " waited " << seconds << " s in " << node << " for " << who;
  abort_locked(text.str());
  lock.unlock();
  throw Error(text.str());
}

void ThreadGroup::check_alike(int rank) const {
  const Place& mine = places_[rank];
  for (int other = 0; other < size_; ++other) {
    const Place& place = places_[other];
    const bool same_node = place.node.load(std::memory_order_relaxed) == mine.node.load(std::memory_order_relaxed);
    if (same_node && place.size == mine.size) continue;
    fail(name(rank), " is in ", mine.node.load(), " with ", mine.size, " values, but ", name(other), " in ",
         place.node.load(), " with ", place.size, ": the ranks do not run the same graph on the same inputs");
  }
}

void ThreadGroup::put(int from, int to, int tag, const char* node, Message message) {
  throw_if_aborted();
  places_[from].node.store(node, std::memory_order_relaxed);
  std::lock_guard<std::mutex> lock(mutex_);
  mail_[{from, to, tag}].push_back(std::move(message));
  changed_.notify_all();
}

Message ThreadGroup::take(int from, int to, int tag, const char* node, int64_t* waited) {
  const Clock::time_point start = Clock::now();
  places_[to].node.store(node, std::memory_order_relaxed);
  std::unique_lock<std::mutex> lock(mutex_);
  std::deque<Message>& box = mail_[{from, to, tag}];
  const bool in_time = changed_.wait_for(lock, timeout_, [&] { return aborted_.load() || !box.empty(); });
  if (aborted_.load()) {
    lock.unlock();
    throw_if_aborted();
  }
  if (!in_time) time_out(lock, to, node, {from});
  Message message = std::move(box.front());
  box.pop_front();
  *waited = nanoseconds_since(start);
  return message;
}

void ThreadGroup::abort(const std::string& reason) {
  std::lock_guard<std::mutex> lock(mutex_);
  abort_locked(reason);
}

void ThreadGroup::abort_locked(const std::string& reason) {
  if (aborted_.load()) return;
  reason_ = reason;
  aborted_.store(true);
  changed_.notify_all();
}

void ThreadGroup::throw_if_aborted() const {
  if (!aborted_.load(std::memory_order_acquire)) return;
  std::lock_guard<std::mutex> lock(mutex_);
  throw Error(reason_);
}

}  // namespace poptransformer
