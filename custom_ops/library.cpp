// SPDX-License-Identifier: Apache-2.0
// Entry points of the library: registration with onnxruntime, thread count, version. Ops register themselves.
#include <onnxruntime_c_api.h>

#include "common/ort_op.h"
#include "common/simd.h"
#include "common/thread_pool.h"

#define POPTRANSFORMER_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

/// Must equal OPS_VERSION in poptransformer/native.py. Raise both when an op changes its name, inputs or meaning.
constexpr char kVersion[] = "2";
constexpr char kDomain[] = "poptransformer";

/// The op domain, filled once; it lives as long as the process because sessions refer to it.
OrtCustomOpDomain* domain() {
  static OrtCustomOpDomain* const made = [] {
    OrtCustomOpDomain* fresh = nullptr;
    poptransformer::check(poptransformer::g_ort->CreateCustomOpDomain(kDomain, &fresh));
    for (const OrtCustomOp* op : poptransformer::registered_ops()) {
      poptransformer::check(poptransformer::g_ort->CustomOpDomain_Add(fresh, op));
    }
    return fresh;
  }();
  return made;
}

}  // namespace

/// Called by onnxruntime's `SessionOptions.register_custom_ops_library`.
POPTRANSFORMER_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    // Every onnxruntime has version 1 of the API, which is enough to say what is wrong.
    return base->GetApi(1)->CreateStatus(
        ORT_FAIL, "poptransformer: the ops were built for a newer onnxruntime than this one: run `make` again");
  }
  poptransformer::g_ort = api;
  return poptransformer::guarded([&] {
    poptransformer::simd();  // A bad POPTRANSFORMER_SIMD is reported here, not in the first kernel.
    poptransformer::check(api->AddCustomOpDomain(options, domain()));
  });
}

/// Sets the threads that all kernels of this process share; 0 or less: one per core. Returns the number in effect.
POPTRANSFORMER_EXPORT int poptransformer_set_threads(int threads) {
  return poptransformer::ThreadPool::instance().set_threads(threads);
}

POPTRANSFORMER_EXPORT int poptransformer_get_threads() {
  return poptransformer::ThreadPool::instance().get_threads();
}

POPTRANSFORMER_EXPORT const char* poptransformer_ops_version() { return kVersion; }

/// "avx512", "avx2" or "portable", as the kernels run; "unknown" if POPTRANSFORMER_SIMD has no valid value.
POPTRANSFORMER_EXPORT const char* poptransformer_simd() {
  try {
    switch (poptransformer::simd()) {
      case poptransformer::Simd::kAvx512: return "avx512";
      case poptransformer::Simd::kAvx2: return "avx2";
      default: return "portable";
    }
  } catch (const poptransformer::Error&) {
    return "unknown";
  }
}
