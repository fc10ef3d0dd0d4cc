#include "programs.h"

#include <map>
#include <mutex>
#include <utility>

namespace qwen_asr_gpu {

namespace {

// What a block gets without asking for more.
constexpr int kUsualShared = 48 * 1024;

struct Loaded {
  std::mutex mutex;
  std::map<std::pair<Context, ProgramKey>, LoadedProgram> programs;  // whose addresses stay
};

// Never destroyed: XLA's threads may outlive static objects.
Loaded& All() {
  static auto* all = new Loaded;
  return *all;
}

// Makes a context current for as long as it lives.
class Current {
 public:
  Current(const Driver& driver, Context context) : driver_(driver), error_(driver.push_context(context)) {}
  ~Current() {
    Context own;
    if (error_ == 0) driver_.pop_context(&own);
  }
  int error() const { return error_; }

 private:
  const Driver& driver_;
  int error_;
};

// The program's kernels, each with as much shared memory as it will ask for. Returns the first error, and what was done.
int Prepare(const Driver& driver, const ProgramKey& key, Module module, int multiprocessors, LoadedProgram& program,
            std::string& what) {
  for (const KernelSpec& kernel : KernelsOf(key)) {
    Function function = nullptr;
    what = kernel.name;
    if (const int error = driver.get_function(&function, module, kernel.name); error != 0) return error;
    if (kernel.shared_bytes > kUsualShared) {
      what = std::to_string(kernel.shared_bytes) + " bytes of shared memory for " + kernel.name;
      if (const int error = driver.set_attribute(function, kMaxDynamicSharedBytes, kernel.shared_bytes); error != 0) return error;
    }
    int blocks = 0;
    what = std::string("the blocks of ") + kernel.name;
    const auto shared_bytes = static_cast<size_t>(kernel.shared_bytes);
    if (const int error = driver.blocks_at_once(&blocks, function, kThreads, shared_bytes); error != 0) return error;
    program.functions.push_back(function);
    program.blocks_at_once.push_back(AtLeast(blocks, 1) * multiprocessors);
  }
  return 0;
}

}  // namespace

std::string LoadProgram(const ProgramKey& key, const void* image, int device) {
  std::string why;
  const Driver* driver = OpenDriver(why);
  if (driver == nullptr) return why;
  if (why = WhyNot(key); !why.empty()) return why;
  const auto failed = [&](const std::string& what, int error) { return what + " failed (" + driver->NameOf(error) + ")"; };
  int handle = 0, multiprocessors = 0;
  Context context = nullptr;
  if (const int error = driver->device_get(&handle, device); error != 0) {
    return failed("finding GPU " + std::to_string(device), error);
  }
  if (const int error = driver->device_attribute(&multiprocessors, kMultiprocessorCount, handle); error != 0) {
    return failed("asking the GPU for its multiprocessors", error);
  }
  // JAX's own context: kept until the process ends, as the programs are.
  if (const int error = driver->retain_context(&context, handle); error != 0) return failed("using the GPU's context", error);
  const Current current(*driver, context);
  if (current.error() != 0) return failed("using the GPU's context", current.error());

  Loaded& all = All();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.programs.count({context, key}) != 0) return "";
  Module module = nullptr;
  if (const int error = driver->load_module(&module, image); error != 0) return failed("loading the compiled kernels", error);
  LoadedProgram program;
  std::string what;
  if (const int error = Prepare(*driver, key, module, multiprocessors, program, what); error != 0) {
    driver->unload_module(module);
    return failed("preparing the compiled kernels: " + what, error);
  }
  all.programs.emplace(std::make_pair(context, key), std::move(program));
  return "";
}

const LoadedProgram* FindProgram(const Driver& driver, const ProgramKey& key) {
  Context context = nullptr;
  if (driver.current_context(&context) != 0) return nullptr;
  Loaded& all = All();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.programs.find({context, key});
  return found == all.programs.end() ? nullptr : &found->second;
}

bool LoadedDevice::Launch(int kernel, int blocks, int shared_bytes, const void* arguments, bool overlap) {
  void* parameters[] = {const_cast<void*>(arguments)};  // which are only read
  const Function function = program_.functions[kernel];
  const auto grid = static_cast<unsigned>(blocks), block = static_cast<unsigned>(kThreads);
  const auto shared = static_cast<unsigned>(shared_bytes);
  int error;
  if (overlap) {
    LaunchAttribute attribute{};
    attribute.id = kOverlapsKernelBefore;
    attribute.value.number = 1;
    const LaunchConfig config{{grid, 1, 1}, {block, 1, 1}, shared, stream_, &attribute, 1};
    error = driver_.launch_with(&config, function, parameters, nullptr);
  } else {
    error = driver_.launch(function, grid, 1, 1, block, 1, 1, shared, stream_, parameters, nullptr);
  }
  if (error != 0) why_ = driver_.NameOf(error);
  return error == 0;
}

}  // namespace qwen_asr_gpu
