// Compiled programs that have been loaded into a GPU, found by what they are compiled for.

#ifndef QWEN_ASR_JAX_KERNELS_GPU_PROGRAMS_H_
#define QWEN_ASR_JAX_KERNELS_GPU_PROGRAMS_H_

#include <string>
#include <vector>

#include "driver.h"
#include "launch.h"

namespace qwen_asr_gpu {

struct LoadedProgram {
  std::vector<Function> functions;
  std::vector<int> blocks_at_once;
};

// Loads a compiled program, a cubin or PTX that ends with a zero, into the GPU of that number; again is no error. Returns why
// it cannot be, in one line, or nothing. To be called before anything runs: loading in the middle of a capture is not
// allowed.
std::string LoadProgram(const ProgramKey& key, const void* image, int device);

// The program in the context that is current; null if it has not been loaded there.
const LoadedProgram* FindProgram(const Driver& driver, const ProgramKey& key);

// Launches a program's kernels on a stream.
class LoadedDevice final : public Device {
 public:
  LoadedDevice(const Driver& driver, const LoadedProgram& program, Stream stream)
      : driver_(driver), program_(program), stream_(stream) {}
  int BlocksAtOnce(int kernel) const override { return program_.blocks_at_once[kernel]; }
  bool Launch(int kernel, int blocks, int shared_bytes, const void* arguments, bool overlap) override;
  // What the driver said to the launch that did not work.
  const std::string& why() const { return why_; }

 private:
  const Driver& driver_;
  const LoadedProgram& program_;
  Stream stream_;
  std::string why_;
};

}  // namespace qwen_asr_gpu

#endif
