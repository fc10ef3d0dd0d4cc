// The few functions of CUDA's driver that launching needs, from the library that JAX has loaded already: nothing of CUDA is
// needed to compile this, and without a driver there is a reason instead of a crash.

#ifndef QWEN_ASR_JAX_KERNELS_GPU_DRIVER_H_
#define QWEN_ASR_JAX_KERNELS_GPU_DRIVER_H_

#include <cstddef>
#include <string>

namespace qwen_asr_gpu {

// Handles, which only the driver looks into.
using Context = struct ContextOfDriver*;
using Module = struct ModuleOfDriver*;
using Function = struct FunctionOfDriver*;
using Stream = struct StreamOfDriver*;

// CUlaunchAttribute and CUlaunchConfig.
struct LaunchAttribute {
  int id;
  char padding[4];
  union {
    char bytes[64];
    int number;
  } value;
};
static_assert(sizeof(LaunchAttribute) == 72, "as the driver lays it out");

struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};
static_assert(sizeof(LaunchConfig) == 56 && offsetof(LaunchConfig, stream) == 32, "as the driver lays it out");

// Numbers of cuda.h.
constexpr int kMultiprocessorCount = 16;     // of a device
constexpr int kMaxDynamicSharedBytes = 8;    // of a function
constexpr int kOverlapsKernelBefore = 6;     // programmatic stream serialization, of a launch

// Every function returns 0, or the number of an error.
struct Driver {
  int (*init)(unsigned);
  int (*error_name)(int, const char**);
  int (*device_get)(int*, int);
  int (*device_attribute)(int*, int, int);
  int (*retain_context)(Context*, int);
  int (*push_context)(Context);
  int (*pop_context)(Context*);
  int (*current_context)(Context*);
  int (*load_module)(Module*, const void*);
  int (*unload_module)(Module);
  int (*get_function)(Function*, Module, const char*);
  int (*set_attribute)(Function, int, int);
  int (*blocks_at_once)(int*, Function, int, size_t);
  int (*launch)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**, void**);
  int (*launch_with)(const LaunchConfig*, Function, void**, void**);

  std::string NameOf(int error) const;
};

// The driver; or null, and why not, where there is none. The first call loads it.
const Driver* OpenDriver(std::string& why);

}  // namespace qwen_asr_gpu

#endif
