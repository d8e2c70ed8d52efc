// SPDX-License-Identifier: Apache-2.0
// Work memory of kernels: per thread, kept between calls, so the hot path allocates nothing once it has grown.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

namespace poptransformer {

/// Uninitialised memory, aligned to 64 bytes, that grows as it is asked for.
class ScratchBuffer {
 public:
  ScratchBuffer() = default;
  ScratchBuffer(ScratchBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  ScratchBuffer& operator=(ScratchBuffer&&) = delete;
  ~ScratchBuffer() { release(); }

  /// At least so many bytes; what was there before may be lost.
  /// @throws std::bad_alloc
  void* reserve(size_t bytes) {
    const size_t wanted = (bytes + 63) / 64 * 64;
    if (wanted > bytes_) {
      release();
      data_ = std::aligned_alloc(64, wanted);
      if (data_ == nullptr) throw std::bad_alloc();
      bytes_ = wanted;
    }
    return data_;
  }

  void release() {
    std::free(data_);
    data_ = nullptr;
    bytes_ = 0;
  }

  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Independent buffers per thread. The thread that calls `ThreadPool::run` also does parts of the job, so what it
/// shares with the workers (kShared) must not be what each part uses for itself (kOwn, kOwnResult).
enum class Scratch { kShared, kOwn, kOwnResult };

/// An uninitialised buffer of at least `count` values, aligned to 64 bytes, valid until this thread's next call for
/// the same kind. It is freed when the thread ends.
/// @throws std::bad_alloc
template <class T>
T* scratch(Scratch kind, size_t count) {
  thread_local ScratchBuffer buffers[3];
  return static_cast<T*>(buffers[static_cast<int>(kind)].reserve(count * sizeof(T)));
}

}  // namespace poptransformer
