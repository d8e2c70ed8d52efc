// SPDX-License-Identifier: Apache-2.0
// Work memory of kernels: per thread, kept between calls, so the hot path allocates nothing once it has grown.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace poptransformer {

/// Independent buffers per thread. The thread that calls `ThreadPool::run` also does parts of the job, so what it
/// shares with the workers (kShared) must not be what each part uses for itself (kOwn, kOwnResult).
enum class Scratch { kShared, kOwn, kOwnResult };

/// An uninitialised buffer of at least `count` values, aligned to 64 bytes, valid until this thread's next call for
/// the same kind. It is freed when the thread ends.
/// @throws std::bad_alloc
template <class T>
T* scratch(Scratch kind, size_t count) {
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffers[3];
  Buffer& buffer = buffers[static_cast<int>(kind)];
  const size_t wanted = (count * sizeof(T) + 63) / 64 * 64;
  if (wanted > buffer.bytes) {
    std::free(buffer.data);
    buffer.bytes = 0;
    buffer.data = std::aligned_alloc(64, wanted);
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.bytes = wanted;
  }
  return static_cast<T*>(buffer.data);
}

}  // namespace poptransformer
