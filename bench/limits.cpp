// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most: bytes read from memory, fp32 multiply-adds and int8 multiply-adds per second.
//
//   limits [MiB=512] [repeats=5] [threads=2]      prints one JSON object; each figure is the best of the repeats
//
// Memory is read by 1, 2, 4 and 8 concurrent streams per thread: a thread's part of the buffer is cut into that many
// ranges, walked in lockstep. The instruction set is the kernels' (POPTRANSFORMER_SIMD).
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "common/error.h"
#include "common/simd.h"

namespace poptransformer {
namespace {

constexpr size_t kStepWords = 32;  // 256 bytes of each stream at a time
constexpr int kLanes = 12;         // independent sums: more than latency times throughput of any fused multiply-add
constexpr int kDotLanes = 8;        // leaves registers for the products
constexpr long kIterations = 20'000'000;

std::atomic<uint64_t> g_sink{0};  // results go here, so that the compiler keeps the work

// ---- reading -------------------------------------------------------------------------------------------------------

/// Inlined into a function per instruction set, where the compiler makes vectors of it.
__attribute__((always_inline)) inline uint64_t read(const uint64_t* data, size_t words, int streams) {
  const size_t range = words / streams / kStepWords * kStepWords;
  uint64_t sums[kStepWords] = {};
  for (size_t i = 0; i < range; i += kStepWords) {
    for (int s = 0; s < streams; ++s) {
      const uint64_t* from = data + s * range + i;
      for (size_t w = 0; w < kStepWords; ++w) sums[w] ^= from[w];
    }
  }
  uint64_t all = 0;
  for (uint64_t sum : sums) all ^= sum;
  return all;
}

uint64_t read_portable(const uint64_t* data, size_t words, int streams) { return read(data, words, streams); }
#if POPTRANSFORMER_X86
POPTRANSFORMER_AVX2 uint64_t read_avx2(const uint64_t* data, size_t words, int streams) {
  return read(data, words, streams);
}
POPTRANSFORMER_AVX512 uint64_t read_avx512(const uint64_t* data, size_t words, int streams) {
  return read(data, words, streams);
}
#endif

// ---- multiply-adds: each returns the multiply-adds it has done ----------------------------------------------------------

long fma_portable() {
  float sums[kLanes * 4], factor = 0.9999f, term = 1e-4f;
  for (int i = 0; i < kLanes * 4; ++i) sums[i] = 0.1f * i;
  for (long n = 0; n < kIterations; ++n) {
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kLanes * 4; ++i) sums[i] = sums[i] * factor + term;
    asm volatile("" : "+m"(factor), "+m"(term));
  }
  g_sink += static_cast<uint64_t>(sums[0] + sums[kLanes * 4 - 1]);
  return kIterations * kLanes * 4;
}

long dot_portable() {
  alignas(64) int8_t codes[64];
  std::memset(codes, 3, sizeof codes);
  int32_t sums[16] = {};
  for (long n = 0; n < kIterations / 4; ++n) {
    asm volatile("" ::"r"(codes) : "memory");
    for (int i = 0; i < 64; ++i) sums[i % 16] += static_cast<int32_t>(codes[i]) * codes[63 - i];
  }
  for (int32_t sum : sums) g_sink += static_cast<uint64_t>(sum);
  return kIterations / 4 * 64;
}

#if POPTRANSFORMER_X86
POPTRANSFORMER_AVX2 long fma_avx2() {
  __m256 sums[kLanes], factor = _mm256_set1_ps(0.9999f), term = _mm256_set1_ps(1e-4f);
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kLanes; ++i) sums[i] = _mm256_set1_ps(0.1f * i);
  for (long n = 0; n < kIterations; ++n) {
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kLanes; ++i) sums[i] = _mm256_fmadd_ps(sums[i], factor, term);
    asm volatile("" : "+x"(factor), "+x"(term));
  }
  POPTRANSFORMER_UNROLL
  for (const __m256& sum : sums) g_sink += static_cast<uint64_t>(_mm256_cvtss_f32(sum));
  return kIterations * kLanes * 8;
}

POPTRANSFORMER_AVX512 long fma_avx512() {
  __m512 sums[kLanes], factor = _mm512_set1_ps(0.9999f), term = _mm512_set1_ps(1e-4f);
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kLanes; ++i) sums[i] = _mm512_set1_ps(0.1f * i);
  for (long n = 0; n < kIterations; ++n) {
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kLanes; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, term);
    asm volatile("" : "+v"(factor), "+v"(term));
  }
  POPTRANSFORMER_UNROLL
  for (const __m512& sum : sums) g_sink += static_cast<uint64_t>(_mm512_cvtss_f32(sum));
  return kIterations * kLanes * 16;
}

/// Unsigned by signed bytes, pairs to 16 bits, pairs to 32 bits, added: three instructions for 32 multiply-adds.
POPTRANSFORMER_AVX2 long dot_avx2() {
  alignas(32) int8_t codes[kDotLanes][32];
  std::memset(codes, 3, sizeof codes);
  __m256i sums[kDotLanes];
  const __m256i other = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kDotLanes; ++i) sums[i] = _mm256_set1_epi32(i);
  for (long n = 0; n < kIterations; ++n) {
    asm volatile("" ::"r"(codes) : "memory");  // read anew each time, as a kernel does
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kDotLanes; ++i) {
      const __m256i code = _mm256_load_si256(reinterpret_cast<const __m256i*>(codes[i]));
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(other, code), ones));
    }
  }
  POPTRANSFORMER_UNROLL
  for (const __m256i& sum : sums) g_sink += static_cast<uint64_t>(_mm256_extract_epi32(sum, 0));
  return kIterations * kDotLanes * 32;
}

/// VNNI: one instruction for 64 multiply-adds.
POPTRANSFORMER_AVX512 long dot_avx512() {
  __m512i sums[kLanes], codes = _mm512_set1_epi8(3), other = _mm512_set1_epi8(5);
  POPTRANSFORMER_UNROLL
  for (int i = 0; i < kLanes; ++i) sums[i] = _mm512_set1_epi32(i);  // equal sums would become one
  for (long n = 0; n < kIterations; ++n) {
    POPTRANSFORMER_UNROLL
    for (int i = 0; i < kLanes; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], codes, other);
    asm volatile("" : "+v"(codes), "+v"(other));
  }
  __m512i total = sums[0];
  POPTRANSFORMER_UNROLL
  for (int i = 1; i < kLanes; ++i) total = _mm512_add_epi32(total, sums[i]);
  uint64_t first = 0;
  std::memcpy(&first, &total, sizeof first);
  g_sink += first;
  return kIterations * kLanes * 64;
}
#endif

// ---- measuring -----------------------------------------------------------------------------------------------------

using Clock = std::chrono::steady_clock;

/// Keeps the calling thread on the `index`-th of the processor's cores that this process may use: for a tenth of a second
/// a scheduler may leave two threads on one core.
void stay_on_core(int index) {
#if defined(__linux__)
  cpu_set_t allowed, one;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || seen++ != index) continue;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);  // 0 is the calling thread
    return;
  }
#else
  (void)index;
#endif
}

/// Seconds from the common start of all threads to the end of the last.
double timed(int threads, const std::function<void(int)>& work) {
  std::atomic<int> waiting{threads};
  Clock::time_point start;
  std::vector<std::thread> crew;
  std::atomic<bool> go{false};
  for (int t = 0; t < threads; ++t) {
    crew.emplace_back([&, t] {
      stay_on_core(t);
      --waiting;
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      work(t);
    });
  }
  while (waiting > 0) std::this_thread::yield();
  start = Clock::now();
  go.store(true, std::memory_order_release);
  for (std::thread& thread : crew) thread.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Gigabytes per second.
double read_rate(const uint64_t* data, size_t words, int threads, int streams) {
  const auto kernel = POPTRANSFORMER_PICK3(read);
  const size_t part = words / threads;
  const double seconds = timed(threads, [&](int t) { g_sink ^= kernel(data + t * part, part, streams); });
  return 8e-9 * (part / streams / kStepWords * kStepWords) * streams * threads / seconds;
}

/// Billions of operations per second; a multiply-add counts as two.
double operation_rate(long (*kernel)(), int threads) {
  std::atomic<long> done{0};
  const double seconds = timed(threads, [&](int) { done += kernel(); });
  return 2e-9 * done / seconds;
}

double best(int repeats, const std::function<double()>& measure) {
  double found = 0;
  for (int r = 0; r < repeats; ++r) found = std::max(found, measure());
  return found;
}

long argument(char** argv, int argc, int index, long otherwise) {
  if (argc <= index) return otherwise;
  char* end = nullptr;
  const long value = std::strtol(argv[index], &end, 10);
  if (end == argv[index] || *end != '\0' || value < 1) {
    fail("limits [MiB] [repeats] [threads] takes positive numbers, found '", argv[index], "'");
  }
  return value;
}

void report(size_t bytes, int repeats, int threads) {
  const size_t words = bytes / sizeof(uint64_t);
  const std::unique_ptr<uint64_t[]> data(new uint64_t[words]);
  // Written by the threads that will read, so that the memory lies near them.
  timed(threads, [&](int t) { std::memset(data.get() + t * (words / threads), t + 1, words / threads * 8); });
  const char* names[] = {"portable", "avx2", "avx512"};
  std::printf("{\"simd\": \"%s\", \"mebibytes\": %zu, \"threads\": {", names[static_cast<int>(simd())], bytes >> 20);
  for (int t = 1; t <= threads; ++t) {
    std::printf("%s\"%d\": {\"read_gb_s\": {", t == 1 ? "" : ", ", t);
    for (int streams = 1; streams <= 8; streams *= 2) {
      const double rate = best(repeats, [&] { return read_rate(data.get(), words, t, streams); });
      std::printf("%s\"%d\": %.2f", streams == 1 ? "" : ", ", streams, rate);
    }
    std::printf("}, \"fma_gflop_s\": %.1f",
                best(repeats, [&] { return operation_rate(POPTRANSFORMER_PICK3(fma), t); }));
    std::printf(", \"int8_gop_s\": %.1f}", best(repeats, [&] { return operation_rate(POPTRANSFORMER_PICK3(dot), t); }));
  }
  std::printf("}}\n");
}

}  // namespace
}  // namespace poptransformer

int main(int argc, char** argv) {
  using poptransformer::argument;
  try {
    poptransformer::report(static_cast<size_t>(argument(argv, argc, 1, 512)) << 20,
                           static_cast<int>(argument(argv, argc, 2, 5)),
                           static_cast<int>(argument(argv, argc, 3, 2)));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "limits: %s\n", error.what());
    return 1;
  }
  return 0;
}
