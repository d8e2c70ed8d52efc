// SPDX-License-Identifier: Apache-2.0
// The threads behind the pool (thread_pool.h) and how they share out one job: fork and join in well under a microsecond
// while the threads still spin.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "simd.h"
#include "upcoming.h"

namespace poptransformer {

/// A fixed number of threads, the caller of `run` included. One job at a time.
class ThreadCrew {
 public:
  using Job = void (*)(const void* context, int part, int parts);

  explicit ThreadCrew(int threads) {
    try {
      for (int index = 1; index < threads; ++index) workers_.emplace_back([this, index] { work(index); });
    } catch (const std::system_error&) {
      // The system gives no more threads: go on with those we have.
    }
  }

  ~ThreadCrew() {
    quit_ = true;
    announce(0);
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls job(context, part, parts) for each part, on any thread, and returns when all are done. A thread takes the
  /// same parts in each job of so many, if it comes in time: what it has read is still in its cache.
  /// @param upcoming may be null: weights that threads without work ask for.
  /// @throws the first exception of the job.
  void run(Job job, const void* context, int parts, const Upcoming* upcoming) {
    const int crowded = crowded_.load(std::memory_order_relaxed);
    if (crowded > 0) crowded_.store(crowded - 1, std::memory_order_relaxed);
    job_ = job;
    context_ = context;
    parts_ = parts;
    claims_ = std::min(parts, kMaxClaims);
    upcoming_ = upcoming;
    pending_.store(claims_, std::memory_order_relaxed);
    announce(static_cast<uint32_t>((uint64_t{1} << claims_) - 1));
    AskAhead ahead;
    do_parts(generation(), 0, &ahead);
    wait_for_workers(&ahead);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  using Clock = std::chrono::steady_clock;

  /// How long a thread without work spins before it sleeps. It bridges what lies between two tokens in Python and, the
  /// more so, the small nodes between two kernels; waking a sleeper costs some ten microseconds, and a core that it has
  /// left may be taken.
  static constexpr std::chrono::microseconds kIdleSpin{300};
  /// The same while other programs want the cores. They pay for a long one, and then we do: who has used up its time
  /// slice spinning loses the core in the middle of a part.
  static constexpr std::chrono::microseconds kCrowdedSpin{20};
  /// How long the caller spins for threads that are still at work. They are as fast as it is, if they have a core.
  static constexpr std::chrono::microseconds kWaitSpin{50};
  /// A thread that keeps the caller waiting for so long has lost its core.
  static constexpr std::chrono::microseconds kLostCore{400};
  /// For so many jobs after that the cores count as crowded; some tokens.
  static constexpr int kCrowdedJobs = 1000;
  /// A job is taken in so many pieces at most: one bit of `state_` each.
  static constexpr int kMaxClaims = 32;
  /// What a thread without work asks for at most: some of its second-level cache.
  static constexpr int64_t kAheadBytes = 256 << 10;

  uint32_t generation() const { return static_cast<uint32_t>(state_.load(std::memory_order_seq_cst) >> 32); }

  // Store of the state before the load of the sleepers here, the other way round in `sleep`, both sequentially
  // consistent: either the sleeper sees the new generation or we see the sleeper.
  void announce(uint32_t claims) {
    const uint64_t next = uint64_t{generation()} + 1;
    state_.store(next << 32 | claims, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }

  // Takes claims of the job of this generation as long as there are any. A claim that is taken keeps the job alive; a
  // thread that comes too late finds none and touches nothing.
  void do_parts(uint32_t job_generation, int thread, AskAhead* ahead) {
    uint64_t state = state_.load(std::memory_order_acquire);
    while (state >> 32 == job_generation && static_cast<uint32_t>(state) > 0) {
      const int claim = choose(static_cast<uint32_t>(state), thread);
      if (!state_.compare_exchange_weak(state, state & ~(uint64_t{1} << claim), std::memory_order_acq_rel)) continue;
      do_claim(claim, thread, ahead);
      state = state_.load(std::memory_order_acquire);
    }
  }

  /// The first of the thread's own claims that is left, else the first of all.
  int choose(uint32_t left, int thread) const {
    for (int claim = thread; claim < kMaxClaims; claim += threads()) {
      if (left >> claim & 1) return claim;
    }
    return __builtin_ctz(left);
  }

  /// The parts that go with one claim: one, where there are no more than kMaxClaims.
  void do_claim(int claim, int thread, AskAhead* ahead) {
    const Range mine = share(parts_, claim, claims_);
    if (upcoming_ != nullptr) prefetch(upcoming_, sizeof *upcoming_);
    try {
      for (int64_t part = mine.begin; part < mine.end; ++part) job_(context_, static_cast<int>(part), parts_);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    // Read before the claim is counted down: then the caller may go on to the next job.
    if (upcoming_ != nullptr) *ahead = AskAhead(*upcoming_, thread, threads(), kAheadBytes);
    if (pending_.fetch_sub(1, std::memory_order_seq_cst) != 1) return;
    if (!caller_sleeps_.load(std::memory_order_seq_cst)) return;
    std::lock_guard<std::mutex> lock(mutex_);
    finished_.notify_one();
  }

  void work(int thread) {
    uint32_t seen = 0;
    AskAhead ahead;
    for (;;) {
      const auto time = crowded_.load(std::memory_order_relaxed) > 0 ? kCrowdedSpin : kIdleSpin;
      if (!spin(time, &ahead, [&] { return generation() != seen; })) sleep(seen);
      seen = generation();
      if (quit_) return;
      ahead = AskAhead();
      do_parts(seen, thread, &ahead);
    }
  }

  void sleep(uint32_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return generation() != seen; });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

  void wait_for_workers(AskAhead* ahead) {
    if (spin(kWaitSpin, ahead, [&] { return pending_.load(std::memory_order_acquire) == 0; })) return;
    const Clock::time_point start = Clock::now();
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    finished_.wait(lock, [&] { return pending_.load(std::memory_order_seq_cst) == 0; });
    caller_sleeps_.store(false, std::memory_order_relaxed);
    if (Clock::now() - start > kLostCore) crowded_.store(kCrowdedJobs, std::memory_order_relaxed);
  }

  /// Spins until `ready()` or until the time is up, and asks for upcoming weights meanwhile.
  /// @returns whether it is ready.
  template <class Ready>
  static bool spin(std::chrono::microseconds time, AskAhead* ahead, Ready ready) {
    constexpr int kLooksPerClock = 64;
    while (ahead->ask()) {
      if (ready()) return true;
    }
    const Clock::time_point end = Clock::now() + time;
    do {
      for (int look = 0; look < kLooksPerClock; ++look) {
        if (ready()) return true;
        relax();
      }
    } while (Clock::now() < end);
    return ready();
  }

  static void relax() {
#if POPTRANSFORMER_X86
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  // Upper half: number of the job; lower half: a bit for each claim that nobody has taken. Each on its own cache line: the
  // workers poll the first while they count down the second.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int> pending_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<int> crowded_{0};  ///< Jobs for which the cores still count as crowded; the caller counts them down.
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable finished_;
  std::exception_ptr error_;
  Job job_ = nullptr;
  const void* context_ = nullptr;
  const Upcoming* upcoming_ = nullptr;
  int parts_ = 0, claims_ = 0;
  std::atomic<bool> quit_{false};
  std::vector<std::thread> workers_;
};

}  // namespace poptransformer
