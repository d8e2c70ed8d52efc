// SPDX-License-Identifier: Apache-2.0
// Run-time choice of the instruction set: one library runs everywhere, no -march is needed.
//
// A kernel has a portable version in plain loops and, where they pay, an AVX2 and an AVX-512 one:
//
//   void scale_portable(float* x, size_t n);
//   #if POPTRANSFORMER_X86
//   POPTRANSFORMER_AVX2 void scale_avx2(float* x, size_t n) { ... intrinsics ... }
//   POPTRANSFORMER_AVX512 void scale_avx512(float* x, size_t n) { ... intrinsics ... }
//   #endif
//   const auto scale = POPTRANSFORMER_PICK3(scale);  // or POPTRANSFORMER_PICK, where there is no AVX-512 version
//
// Lambdas and templates of other headers do not inherit the attribute: keep AVX2 code in plain functions.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "error.h"

#if defined(__x86_64__)
#define POPTRANSFORMER_X86 1
#include <cpuid.h>
#pragma GCC diagnostic push
// GCC 12 takes the undefined operands inside its own AVX-512 intrinsics for mistakes of ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
/// Compiles one function for AVX2, FMA and F16C, whatever the rest of the file is compiled for.
#define POPTRANSFORMER_AVX2 __attribute__((target("avx2,fma,f16c")))
/// The same for AVX-512 with VNNI: Ice Lake, Zen 4 and later.
#define POPTRANSFORMER_AVX512 \
  __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#else
#define POPTRANSFORMER_X86 0
#endif

/// Before a loop of constant length over an array of vectors: unrolled this early, the array becomes registers. Without
/// it on every such loop of a function, GCC 12 keeps storing the array to the stack (half the speed).
#if defined(__clang__)
#define POPTRANSFORMER_UNROLL _Pragma("unroll")
#else
#define POPTRANSFORMER_UNROLL _Pragma("GCC unroll 16")
#endif

namespace poptransformer {

/// In ascending order: a processor that has one level has those before it.
enum class Simd { kPortable, kAvx2, kAvx512 };

/// True if this processor runs functions marked POPTRANSFORMER_AVX2.
inline bool has_avx2() {
#if POPTRANSFORMER_X86
  // Compilers before GCC 11 and clang 16 do not know "f16c" here.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

/// True if this processor runs functions marked POPTRANSFORMER_AVX512.
inline bool has_avx512() {
#if POPTRANSFORMER_X86
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

/// The processor's best, or what POPTRANSFORMER_SIMD ("portable", "avx2", "avx512", "auto") says.
/// @throws Error if the variable names something else, or something this processor cannot run.
inline Simd detect_simd() {
  const char* wanted = std::getenv("POPTRANSFORMER_SIMD");
  if (wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, "auto") == 0) {
    return has_avx512() ? Simd::kAvx512 : has_avx2() ? Simd::kAvx2 : Simd::kPortable;
  }
  if (std::strcmp(wanted, "portable") == 0) return Simd::kPortable;
  if (std::strcmp(wanted, "avx2") == 0) {
    if (!has_avx2()) fail("POPTRANSFORMER_SIMD is 'avx2', but this processor lacks AVX2, FMA or F16C");
    return Simd::kAvx2;
  }
  if (std::strcmp(wanted, "avx512") == 0) {
    if (!has_avx512()) fail("POPTRANSFORMER_SIMD is 'avx512', but this processor lacks AVX-512 F, BW, DQ, VL or VNNI");
    return Simd::kAvx512;
  }
  fail("POPTRANSFORMER_SIMD must be 'auto', 'portable', 'avx2' or 'avx512', found '", wanted, "'");
}

/// The instruction set all kernels use; read once per process.
inline Simd simd() {
  static const Simd level = detect_simd();
  return level;
}

/// Asks for the cache line at an address, which need not be valid. It comes to the second-level cache, which can wait
/// for more lines at a time than the first.
inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

/// The same for all lines of `bytes` from there on.
inline void prefetch(const void* address, size_t bytes) {
  constexpr size_t kLine = 64;
  for (size_t i = 0; i < bytes; i += kLine) prefetch(static_cast<const char*>(address) + i);
}

/// `name_avx2` where it can run, else `name_portable`; PICK3 looks for `name_avx512` first.
#if POPTRANSFORMER_X86
#define POPTRANSFORMER_PICK(name) \
  (::poptransformer::simd() >= ::poptransformer::Simd::kAvx2 ? name##_avx2 : name##_portable)
#define POPTRANSFORMER_PICK3(name) \
  (::poptransformer::simd() >= ::poptransformer::Simd::kAvx512 ? name##_avx512 : POPTRANSFORMER_PICK(name))
#else
#define POPTRANSFORMER_PICK(name) (name##_portable)
#define POPTRANSFORMER_PICK3(name) (name##_portable)
#endif

}  // namespace poptransformer
