// SPDX-License-Identifier: Apache-2.0
// What Python calls, by ctypes: groups of threads, communicators made of callbacks, and which of them sessions get.
// Functions that can fail return null or -1 and leave a text for `poptransformer_last_error`.
#include <algorithm>
#include <chrono>
#include <mutex>
#include <set>
#include <string>

#include "../common/thread_pool.h"
#include "callbacks.h"
#include "communicator.h"
#include "thread_group.h"

#define POPTRANSFORMER_EXPORT extern "C" __attribute__((visibility("default")))

namespace poptransformer {

const char* intern(const std::string& text) {
  // Never destroyed: threads may still wait, with these names at hand, while the process exits.
  static std::mutex* mutex = new std::mutex();
  static std::set<std::string>* texts = new std::set<std::string>();
  std::lock_guard<std::mutex> lock(*mutex);
  return texts->insert(text).first->c_str();
}

Groups& current_groups() {
  thread_local Groups groups;
  return groups;
}

namespace {

using GroupHandle = std::shared_ptr<ThreadGroup>;

std::string& last_error() {
  thread_local std::string text;
  return text;
}

template <class Body>
int reporting(Body body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error() = error.what();
    return -1;
  }
}

Communicator& communicator_of(void* handle) { return **static_cast<CommunicatorPtr*>(handle); }

CommunicatorPtr pointer_of(void* handle) {
  return handle == nullptr ? nullptr : *static_cast<CommunicatorPtr*>(handle);
}

}  // namespace
}  // namespace poptransformer

using namespace poptransformer;  // NOLINT: nothing but C functions follows

POPTRANSFORMER_EXPORT const char* poptransformer_last_error() { return last_error().c_str(); }

POPTRANSFORMER_EXPORT void* poptransformer_thread_group(int size, int64_t timeout_ms, int first, int stride) {
  return new GroupHandle(std::make_shared<ThreadGroup>(size, std::chrono::milliseconds(timeout_ms), first, stride));
}

POPTRANSFORMER_EXPORT void* poptransformer_thread_group_join(void* group, int rank) {
  return new CommunicatorPtr((*static_cast<GroupHandle*>(group))->join(rank));
}

POPTRANSFORMER_EXPORT void poptransformer_thread_group_abort(void* group, const char* reason) {
  (*static_cast<GroupHandle*>(group))->abort(reason);
}

POPTRANSFORMER_EXPORT void poptransformer_thread_group_free(void* group) { delete static_cast<GroupHandle*>(group); }

POPTRANSFORMER_EXPORT void* poptransformer_callback_communicator(int rank, int size, const Callbacks* callbacks) {
  return new CommunicatorPtr(std::make_shared<CallbackCommunicator>(rank, size, *callbacks));
}

/// Kernels that were made with it keep the communicator itself.
POPTRANSFORMER_EXPORT void poptransformer_communicator_free(void* communicator) {
  delete static_cast<CommunicatorPtr*>(communicator);
}

POPTRANSFORMER_EXPORT int64_t poptransformer_communicator_waited(void* communicator) {
  return communicator_of(communicator).waited();
}

POPTRANSFORMER_EXPORT int64_t poptransformer_communicator_last_sent(void* communicator) {
  return communicator_of(communicator).last_sent();
}

POPTRANSFORMER_EXPORT int64_t poptransformer_communicator_last_received(void* communicator) {
  return communicator_of(communicator).last_received();
}

POPTRANSFORMER_EXPORT int poptransformer_broadcast(void* communicator, const char* node, void* data, int64_t bytes,
                                                   int root) {
  return reporting([&] { communicator_of(communicator).broadcast(intern(node), data, bytes, root); });
}

POPTRANSFORMER_EXPORT int poptransformer_all_reduce(void* communicator, const char* node, const float* x, float* y,
                                                    int64_t count) {
  return reporting([&] { communicator_of(communicator).all_reduce(intern(node), x, y, count); });
}

/// Sets the groups of the sessions that the calling thread creates from now on; null for none.
POPTRANSFORMER_EXPORT void poptransformer_use_groups(void* replicas, void* stages) {
  current_groups() = {pointer_of(replicas), pointer_of(stages)};
}

/// Gives the calling thread a pool of its own: ranks that are threads do not wait for each other's kernels.
POPTRANSFORMER_EXPORT void poptransformer_use_own_pool() { ThreadPool::use_own(); }
