// CUDA's driver as far as the kernels' host half knows it, in front of the emulator: linked with the emulated programs. One
// GPU, number 0, with two multiprocessors; an image is the numbers of a ProgramKey as text. It refuses what a driver refuses:
// other GPUs, unknown images and functions, more shared memory than was asked for, calls without a context.

#include <sstream>
#include <string>

#include "driver.h"
#include "emulated_programs.h"

namespace {

using qwen_asr_gpu::LaunchConfig;

enum { kSuccess = 0, kInvalidValue = 1, kInvalidDevice = 101, kInvalidImage = 200, kInvalidContext = 201, kNotFound = 500 };

struct FakeFunction {
  const native::Program* program;
  size_t index;
  int most_shared;
};

int context_of_gpu = 0, retained = 0, pushed = 0;
uint64_t seed = 1;

int RunKernel(FakeFunction* f, unsigned blocks, unsigned threads, unsigned shared_bytes, void** parameters) {
  if (f == nullptr || threads != qwen_asr_gpu::kThreads || blocks == 0 || static_cast<int>(shared_bytes) > f->most_shared) {
    return kInvalidValue;
  }
  const native::EmulatedKernel& kernel = f->program->kernels[f->index];
  emulator::Grid grid(kernel.run, static_cast<int>(blocks), static_cast<int>(shared_bytes), parameters[0], kernel.argument_bytes,
                      ++seed);
  grid.Finish();
  return kSuccess;
}

}  // namespace

namespace native {

// What cases would report to; there are none here.
void Fail(const std::string&) {}

}  // namespace native

#pragma GCC visibility push(default)

extern "C" {

int cuInit(unsigned) { return kSuccess; }

int cuGetErrorName(int error, const char** name) {
  *name = error == kInvalidImage    ? "CUDA_ERROR_INVALID_IMAGE"
          : error == kInvalidDevice ? "CUDA_ERROR_INVALID_DEVICE"
          : error == kInvalidValue  ? "CUDA_ERROR_INVALID_VALUE"
                                    : "CUDA_ERROR_OF_SOME_KIND";
  return kSuccess;
}

int cuDeviceGet(int* device, int number) {
  *device = number;
  return number == 0 ? kSuccess : kInvalidDevice;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  if (attribute != qwen_asr_gpu::kMultiprocessorCount) return kInvalidValue;
  *value = 2;
  return kSuccess;
}

int cuDevicePrimaryCtxRetain(void** context, int) {
  ++retained;
  *context = &context_of_gpu;
  return kSuccess;
}

int cuCtxPushCurrent_v2(void* context) {
  ++pushed;
  return context == &context_of_gpu ? kSuccess : kInvalidContext;
}

int cuCtxPopCurrent_v2(void** context) {
  *context = &context_of_gpu;
  return --pushed < 0 ? kInvalidContext : kSuccess;
}

// JAX has one, whenever it calls.
int cuCtxGetCurrent(void** context) {
  *context = &context_of_gpu;
  return kSuccess;
}

int cuModuleLoadData(const void** module, const void* image) {
  if (pushed != 1) return kInvalidContext;
  std::istringstream numbers(static_cast<const char*>(image));
  qwen_asr_gpu::ProgramKey key{};
  for (int& each : key) numbers >> each;
  for (const native::Program& program : native::Programs()) {
    if (program.key != key) continue;
    *module = &program;
    return kSuccess;
  }
  return kInvalidImage;
}

int cuModuleUnload(const void*) { return kSuccess; }

int cuModuleGetFunction(FakeFunction** function, const void* module, const char* name) {
  const auto* program = static_cast<const native::Program*>(module);
  const auto kernels = qwen_asr_gpu::KernelsOf(program->key);
  for (size_t i = 0; i < kernels.size(); ++i) {
    if (std::string(name) != kernels[i].name) continue;
    *function = new FakeFunction{program, i, 48 * 1024};  // for as long as the process
    return kSuccess;
  }
  return kNotFound;
}

int cuFuncSetAttribute(FakeFunction* function, int attribute, int value) {
  if (attribute != qwen_asr_gpu::kMaxDynamicSharedBytes || value > 99 * 1024) return kInvalidValue;
  function->most_shared = value;
  return kSuccess;
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, FakeFunction* function, int threads, size_t shared_bytes) {
  if (threads != qwen_asr_gpu::kThreads || static_cast<int>(shared_bytes) > function->most_shared) return kInvalidValue;
  *blocks = 3;
  return kSuccess;
}

int cuLaunchKernel(FakeFunction* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared_bytes, void*, void** parameters, void** extra) {
  if (y != 1 || z != 1 || threads_y != 1 || threads_z != 1 || extra != nullptr) return kInvalidValue;
  return RunKernel(function, x, threads, shared_bytes, parameters);
}

int cuLaunchKernelEx(const LaunchConfig* config, FakeFunction* function, void** parameters, void** extra) {
  const LaunchConfig& c = *config;
  if (c.grid[1] != 1 || c.grid[2] != 1 || c.block[1] != 1 || c.block[2] != 1 || extra != nullptr) return kInvalidValue;
  if (c.attribute_count != 1 || c.attributes[0].id != qwen_asr_gpu::kOverlapsKernelBefore) return kInvalidValue;
  if (c.attributes[0].value.number != 1) return kInvalidValue;
  return RunKernel(function, c.grid[0], c.block[0], c.shared_bytes, parameters);
}
}

#pragma GCC visibility pop
