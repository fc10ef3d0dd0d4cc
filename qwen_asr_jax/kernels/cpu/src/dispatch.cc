#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace qwen_asr {

namespace scalar {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512bf16 {
extern const Kernels kKernels;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels kKernels;
}
#endif

namespace {

struct Candidate {
  const Kernels* kernels;
  bool runs_here;
};

const Kernels& Choose() {
  // From the best to the one that runs everywhere.
  const Candidate candidates[] = {
#if defined(__x86_64__)
      {&avx512bf16::kKernels, __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
                                  __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")},
      {&avx512::kKernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")},
      {&avx2::kKernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#elif defined(__aarch64__)
      {&neon::kKernels, true},
#endif
      {&scalar::kKernels, true},
  };
  const char* wanted = std::getenv("QWEN_ASR_CPU_ISA");
  for (const Candidate& each : candidates) {
    const bool named = wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, each.kernels->name) == 0;
    if (each.runs_here && named) return *each.kernels;
  }
  return scalar::kKernels;
}

}  // namespace

const Kernels& BestKernels() {
  static const Kernels& best = Choose();
  return best;
}

}  // namespace qwen_asr
