#include "driver.h"

#include <dlfcn.h>

#include <type_traits>

#if !defined(QWEN_CUDA_DRIVER)  // tests have one of their own
#define QWEN_CUDA_DRIVER "libcuda.so.1"
#endif

namespace qwen_asr_gpu {

namespace {

constexpr char kLibrary[] = QWEN_CUDA_DRIVER;

struct Opened {
  Driver driver{};
  std::string why;

  Opened() {
    void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      const char* said = dlerror();
      why = std::string(kLibrary) + " cannot be loaded (" + (said == nullptr ? "no reason given" : said) + ")";
      return;
    }
    const auto find = [&](auto& function, const char* name) {
      void* found = dlsym(library, name);
      if (found == nullptr && why.empty()) why = std::string(kLibrary) + " has no " + name + ": the NVIDIA driver is too old";
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(found);
    };
    find(driver.init, "cuInit");
    find(driver.error_name, "cuGetErrorName");
    find(driver.device_get, "cuDeviceGet");
    find(driver.device_attribute, "cuDeviceGetAttribute");
    find(driver.retain_context, "cuDevicePrimaryCtxRetain");
    find(driver.push_context, "cuCtxPushCurrent_v2");
    find(driver.pop_context, "cuCtxPopCurrent_v2");
    find(driver.current_context, "cuCtxGetCurrent");
    find(driver.load_module, "cuModuleLoadData");
    find(driver.unload_module, "cuModuleUnload");
    find(driver.get_function, "cuModuleGetFunction");
    find(driver.set_attribute, "cuFuncSetAttribute");
    find(driver.blocks_at_once, "cuOccupancyMaxActiveBlocksPerMultiprocessor");
    find(driver.launch, "cuLaunchKernel");
    find(driver.launch_with, "cuLaunchKernelEx");
    if (!why.empty()) return;
    if (const int error = driver.init(0); error != 0) why = "the NVIDIA driver does not start (" + driver.NameOf(error) + ")";
  }
};

}  // namespace

std::string Driver::NameOf(int error) const {
  const char* name = nullptr;
  if (error_name(error, &name) != 0 || name == nullptr) return "CUDA error " + std::to_string(error);
  return name;
}

const Driver* OpenDriver(std::string& why) {
  static const Opened opened;
  why = opened.why;
  return why.empty() ? &opened.driver : nullptr;
}

}  // namespace qwen_asr_gpu
