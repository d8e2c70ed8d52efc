// SPDX-License-Identifier: Apache-2.0
// The one thread pool of the process; ranks that are threads have one each. onnxruntime's own pool must not spin beside
// it: sessions that use our kernels run with intra_op_num_threads=1.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>

#include "thread_crew.h"
#include "upcoming.h"

namespace poptransformer {

/// Fork-join pool; the calling thread works too.
///
/// A job is cut into parts, and each thread takes the next part when it is ready: where other programs keep a thread
/// from running, the caller does its part too.
///
/// Only one job runs on the pool at a time. One that arrives meanwhile (from a session in another thread, or from
/// inside a job) is done by its caller alone. So a job must be correct for any number of parts, in any order, and no
/// part may wait for another.
///
/// Fork: threads do not survive it. The child starts with a fresh pool of the same size at its first job.
class ThreadPool {
 public:
  /// The pool of the calling thread: the process's, or its own one.
  static ThreadPool& instance() {
    return own() ? *own() : shared();
  }

  /// Gives the calling thread a pool that no other thread shares, for as long as it lives.
  static void use_own() {
    if (!own()) own().reset(new ThreadPool());
  }

  /// Calls `job(part, parts)` for each part, one part for each thread, and returns when all are done.
  /// @throws what a job threw (the first one, if several did).
  template <class Job>
  void run(Job&& job) {
    run_parts(1, job);
  }

  /// The same, with as many parts as `work`, the number of multiplications or the like, is worth: one for little work,
  /// some for each thread for a lot, so that a thread that comes late does fewer.
  template <class Job>
  static void run_for(int64_t work, Job&& job) {
    constexpr int64_t kWorthWaking = 1 << 15, kWorthBalancing = 1 << 26;
    constexpr int kManyParts = 4;
    if (work < kWorthWaking) return job(0, 1);
    instance().run_parts(work < kWorthBalancing ? 1 : kManyParts, job);
  }

  /// What the job after the next ones of the calling thread will read, or null: threads that are done with their part
  /// ask for their share of it meanwhile. It must stay until it is replaced.
  static void set_upcoming(const Upcoming* upcoming) { upcoming_of_this_thread() = upcoming; }

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
  ThreadPool() : wanted_(default_threads()) {}

  static ThreadPool& shared() {
    // Never destroyed: sleeping workers must not meet a dead pool while the process exits.
    static ThreadPool* pool = [] {
      pthread_atfork(nullptr, nullptr, [] {
        shared().forget_crew();
        if (own()) own()->forget_crew();
      });
      return new ThreadPool();
    }();
    return *pool;
  }

  static std::unique_ptr<ThreadPool>& own() {
    thread_local std::unique_ptr<ThreadPool> pool;
    return pool;
  }

  static const Upcoming*& upcoming_of_this_thread() {
    thread_local const Upcoming* upcoming = nullptr;
    return upcoming;
  }

  static int default_threads() {
    const unsigned cores = std::thread::hardware_concurrency();
    return cores == 0 ? 1 : static_cast<int>(cores);
  }

  template <class Job>
  void run_parts(int parts_per_thread, Job&& job) {
    if (get_threads() == 1 || busy_.exchange(true, std::memory_order_acquire)) return job(0, 1);
    struct Release {
      std::atomic<bool>& busy;
      ~Release() { busy.store(false, std::memory_order_release); }
    } release{busy_};
    if (!crew_) crew_ = std::make_unique<ThreadCrew>(get_threads());
    using Plain = const std::remove_reference_t<Job>;
    const auto call = [](const void* context, int part, int parts) { (*static_cast<Plain*>(context))(part, parts); };
    crew_->run(call, &job, crew_->threads() * parts_per_thread, upcoming_of_this_thread());
  }

  /// In the child of a fork: the crew's threads are gone and its locks may be held by them, so it is leaked.
  void forget_crew() {
    (void)crew_.release();
    busy_.store(false, std::memory_order_relaxed);
  }

  std::atomic<bool> busy_{false};
  std::atomic<int> wanted_;
  std::unique_ptr<ThreadCrew> crew_;
};

}  // namespace poptransformer
