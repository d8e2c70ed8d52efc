// SPDX-License-Identifier: Apache-2.0
// A communicator that hands everything on to functions of its owner, such as Python's with mpi4py behind them.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "../common/error.h"
#include "communicator.h"

namespace poptransformer {

/// Functions as of C; each returns 0, or something else after it has noted what went wrong on its side.
struct Callbacks {
  int (*all_reduce)(const char* node, const float* x, float* y, int64_t count);
  int (*all_gather)(const char* node, const void* x, void* y, int64_t bytes);
  int (*broadcast)(const char* node, void* data, int64_t bytes, int root);
  int (*send)(const char* node, int to, int tag, const void* data, int64_t bytes);
  /// Sets `data` to the message, which stays valid until the next call.
  int (*receive)(const char* node, int from, int tag, const void** data, int64_t* bytes);
};

class CallbackCommunicator : public Communicator {
 public:
  CallbackCommunicator(int rank, int size, const Callbacks& callbacks)
      : Communicator(rank, size), callbacks_(callbacks) {}

  void all_reduce(const char* node, const float* x, float* y, int64_t count) override {
    call(node, [&] { return callbacks_.all_reduce(node, x, y, count); });
  }

  void all_gather(const char* node, const void* x, void* y, int64_t bytes) override {
    call(node, [&] { return callbacks_.all_gather(node, x, y, bytes); });
  }

  void broadcast(const char* node, void* data, int64_t bytes, int root) override {
    call(node, [&] { return callbacks_.broadcast(node, data, bytes, root); });
  }

  void send(const char* node, int to, int tag, Message message) override {
    note_sending();
    call(node, [&] { return callbacks_.send(node, to, tag, message.data(), static_cast<int64_t>(message.size())); });
  }

  Message receive(const char* node, int from, int tag) override {
    const void* data = nullptr;
    int64_t bytes = 0;
    call(node, [&] { return callbacks_.receive(node, from, tag, &data, &bytes); });
    note_receiving();
    const char* first = static_cast<const char*>(data);
    return Message(first, first + bytes);
  }

 private:
  template <class Function>
  void call(const char* node, Function function) {
    const auto start = std::chrono::steady_clock::now();
    const int status = function();
    count_wait(std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count());
    if (status != 0) fail("rank ", rank(), " failed in ", node);
  }

  const Callbacks callbacks_;
};

}  // namespace poptransformer
