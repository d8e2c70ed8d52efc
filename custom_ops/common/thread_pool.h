// SPDX-License-Identifier: Apache-2.0
// The one thread pool of the process: fork and join in well under a microsecond while its threads still spin.
//
// onnxruntime's own pool must not spin beside it: sessions run with intra_op_num_threads=1.
#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace poptransformer {

/// Fork-join pool; the calling thread works too.
///
/// A job is cut into as many parts as there are threads, and each thread takes the next part when it is ready: where
/// other programs keep a thread from running, the caller does its part too.
///
/// Only one job runs on the pool at a time. One that arrives meanwhile (from a session in another thread, or from inside
/// a job) is done by its caller alone. So a job must be correct for any number of parts, in any order, and no part may
/// wait for another.
///
/// Fork: threads do not survive it. The child starts with a fresh pool of the same size at its first job.
class ThreadPool {
 public:
  static ThreadPool& instance() {
    // Never destroyed: sleeping workers must not meet a dead pool while the process exits.
    static ThreadPool* pool = new ThreadPool();
    return *pool;
  }

  /// Calls `job(part, parts)` for each part, and returns when all are done.
  /// @throws what a job threw (the first one, if several did).
  template <class Job>
  void run(Job&& job) {
    using Plain = std::remove_reference_t<Job>;
    run_erased([](const void* erased, int part, int parts) {
      (*static_cast<const Plain*>(erased))(part, parts);
    }, &job);
  }

  /// Runs the job on all threads if it is `worth` waking them, else on this thread alone.
  template <class Job>
  static void run_if(bool worth, Job&& job) {
    if (!worth) return job(0, 1);
    instance().run(job);
  }

  /// Sets the number of threads, the caller's included; 0 or less: one per core this process may use.
  /// Waits for a running job. @returns the number in effect.
  int set_threads(int threads) {
    while (busy_.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
    crew_.reset();
    wanted_.store(threads > 0 ? threads : default_threads(), std::memory_order_relaxed);
    busy_.store(false, std::memory_order_release);
    return get_threads();
  }

  int get_threads() const { return wanted_.load(std::memory_order_relaxed); }

 private:
  using Erased = void (*)(const void* job, int part, int parts);
  using Clock = std::chrono::steady_clock;

  /// How long a thread without work spins before it sleeps. It bridges the small nodes between two kernels of a decode
  /// step; waking a sleeper costs some ten microseconds.
  static constexpr std::chrono::microseconds kSpin{100};

  /// The worker threads and what they share. Thrown away and made anew when the size changes or after a fork.
  class Crew {
   public:
    explicit Crew(int threads) {
      try {
        for (int index = 1; index < threads; ++index) workers_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {
        // The system gives no more threads: go on with those we have.
      }
      threads_ = static_cast<int>(workers_.size()) + 1;
    }

    ~Crew() {
      quit_ = true;
      announce(threads_);
      for (std::thread& worker : workers_) worker.join();
    }

    void run(Erased call, const void* job) {
      call_ = call;
      job_ = job;
      pending_.store(threads_, std::memory_order_relaxed);
      announce(0);
      do_parts(generation());
      wait_for_workers();
      if (error_) {
        std::exception_ptr error = std::move(error_);
        error_ = nullptr;
        std::rethrow_exception(error);
      }
    }

   private:
    uint32_t generation() const { return static_cast<uint32_t>(state_.load(std::memory_order_seq_cst) >> 32); }

    // Store of the state before the load of the sleepers here, the other way round in `sleep`, both sequentially
    // consistent: either the sleeper sees the new generation or we see the sleeper.
    void announce(int first_part) {
      state_.store(((uint64_t{generation()} + 1) << 32) | static_cast<uint32_t>(first_part), std::memory_order_seq_cst);
      if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }

    // Takes parts of the job of this generation as long as there are any. A part that is taken keeps the job alive; a
    // thread that comes too late finds none and touches nothing.
    void do_parts(uint32_t job_generation) {
      uint64_t state = state_.load(std::memory_order_acquire);
      while (state >> 32 == job_generation && static_cast<uint32_t>(state) < static_cast<uint32_t>(threads_)) {
        if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
        do_part(static_cast<int>(static_cast<uint32_t>(state)));
        state = state_.load(std::memory_order_acquire);
      }
    }

    void do_part(int index) {
      try {
        call_(job_, index, threads_);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
      if (pending_.fetch_sub(1, std::memory_order_seq_cst) != 1) return;
      if (!caller_sleeps_.load(std::memory_order_seq_cst)) return;
      std::lock_guard<std::mutex> lock(mutex_);
      finished_.notify_one();
    }

    void work() {
      uint32_t seen = 0;
      for (;;) {
        if (!spin([&] { return generation() != seen; })) sleep(seen);
        seen = generation();
        if (quit_) return;
        do_parts(seen);
      }
    }

    void sleep(uint32_t seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return generation() != seen; });
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }

    void wait_for_workers() {
      if (spin([&] { return pending_.load(std::memory_order_acquire) == 0; })) return;
      std::unique_lock<std::mutex> lock(mutex_);
      caller_sleeps_.store(true, std::memory_order_seq_cst);
      finished_.wait(lock, [&] { return pending_.load(std::memory_order_seq_cst) == 0; });
      caller_sleeps_.store(false, std::memory_order_relaxed);
    }

    /// Spins until `ready()` or until the time is up. @returns whether it is ready.
    template <class Ready>
    static bool spin(Ready ready) {
      constexpr int kLooksPerClock = 64;
      const Clock::time_point end = Clock::now() + kSpin;
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

    // Upper half: number of the job; lower half: its next part that nobody has taken. Each on its own cache line: the
    // workers poll the first while they count down the second.
    alignas(64) std::atomic<uint64_t> state_{0};
    alignas(64) std::atomic<int> pending_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable finished_;
    std::exception_ptr error_;
    Erased call_ = nullptr;
    const void* job_ = nullptr;
    int threads_ = 1;
    bool quit_ = false;
    std::vector<std::thread> workers_;
  };

  ThreadPool() : wanted_(default_threads()) {
    pthread_atfork(nullptr, nullptr, [] { instance().forget_crew(); });
  }

  static int default_threads() {
    const unsigned cores = std::thread::hardware_concurrency();
    return cores == 0 ? 1 : static_cast<int>(cores);
  }

  void run_erased(Erased call, const void* job) {
    if (get_threads() == 1 || busy_.exchange(true, std::memory_order_acquire)) {
      call(job, 0, 1);
      return;
    }
    struct Release {
      std::atomic<bool>& busy;
      ~Release() { busy.store(false, std::memory_order_release); }
    } release{busy_};
    if (!crew_) crew_ = std::make_unique<Crew>(get_threads());
    crew_->run(call, job);
  }

  /// In the child of a fork: the crew's threads are gone and its locks may be held by them, so it is leaked.
  void forget_crew() {
    (void)crew_.release();
    busy_.store(false, std::memory_order_relaxed);
  }

  std::atomic<bool> busy_{false};
  std::atomic<int> wanted_;
  std::unique_ptr<Crew> crew_;
};

/// Items [begin, end).
struct Range {
  int64_t begin, end;
};

/// The contiguous share of `total` items that belongs to one part of a job.
inline Range share(int64_t total, int part, int parts) {
  return {total * part / parts, total * (part + 1) / parts};
}

}  // namespace poptransformer
