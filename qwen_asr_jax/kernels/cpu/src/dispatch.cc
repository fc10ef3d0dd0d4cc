#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace qwen_asr {

// The build defines QWEN_HAVE_<SET> for each set that it compiled; the scalar one is always there.
namespace scalar {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512bf16 {
extern const Kernels kKernels;
}
namespace neon {
extern const Kernels kKernels;
}

namespace {

std::atomic<const Kernels*> used{nullptr};

#if defined(__x86_64__)

// Not all compilers that have the instructions know this name in __builtin_cpu_supports.
[[maybe_unused]] bool HasF16C() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

[[maybe_unused]] bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16C(); }

[[maybe_unused]] bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

#endif

const Kernels& Choose() {
  const Kernels* const* all = RunnableKernels();
  const char* wanted = std::getenv("QWEN_ASR_CPU_ISA");
  if (wanted != nullptr && *wanted != '\0') {
    for (const Kernels* const* each = all; *each != nullptr; ++each) {
      if (std::strcmp(wanted, (*each)->name) == 0) return **each;
    }
    return scalar::kKernels;  // the loader refuses such a name before it comes to this
  }
  return **all;
}

}  // namespace

const Kernels* const* RunnableKernels() {
  static const Kernels* list[5] = {};
  static const bool ready = [] {
    const Kernels** next = list;
#if defined(QWEN_HAVE_AVX512BF16)
    if (HasAvx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
      *next++ = &avx512bf16::kKernels;
    }
#endif
#if defined(QWEN_HAVE_AVX512)
    if (HasAvx512()) *next++ = &avx512::kKernels;
#endif
#if defined(QWEN_HAVE_AVX2)
    if (HasAvx2()) *next++ = &avx2::kKernels;
#endif
#if defined(QWEN_HAVE_NEON)
    *next++ = &neon::kKernels;
#endif
    *next = &scalar::kKernels;
    return true;
  }();
  (void)ready;
  return list;
}

const Kernels& BestKernels() {
  if (const Kernels* forced = used.load(std::memory_order_relaxed); forced != nullptr) return *forced;
  static const Kernels& best = Choose();
  return best;
}

void UseKernels(const Kernels* kernels) { used.store(kernels, std::memory_order_relaxed); }

}  // namespace qwen_asr
