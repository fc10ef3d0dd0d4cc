// The emulated programs: decoder.cu and head.cu, compiled once per shape (build.py lists them), each by instance.cc.

#ifndef QWEN_ASR_JAX_TESTS_NATIVE_GPU_EMULATED_PROGRAMS_H_
#define QWEN_ASR_JAX_TESTS_NATIVE_GPU_EMULATED_PROGRAMS_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "emulator.h"
#include "launch.h"
#include "testing.h"

namespace native {

struct EmulatedKernel {
  emulator::Kernel run;
  size_t argument_bytes;
};

struct Program {
  qwen_asr_gpu::ProgramKey key;
  std::vector<EmulatedKernel> kernels;
};

// Those of all instances.
std::vector<Program>& Programs();

// Runs what is launched: a kernel when the next one is there, of which a few blocks start before it where they may.
class EmulatedDevice final : public qwen_asr_gpu::Device {
 public:
  EmulatedDevice(const Program& program, int at_once, uint64_t seed) : program_(program), at_once_(at_once), seed_(seed) {}
  int BlocksAtOnce(int) const override { return at_once_; }
  bool Launch(int kernel, int blocks, int shared_bytes, const void* arguments, bool overlap) override;
  void Finish();

 private:
  const Program& program_;
  int at_once_;
  uint64_t seed_;
  std::unique_ptr<emulator::Grid> last_;
};

// Cases for every program there is.
void AddEmulatedDecoderCases(Cases& cases, bool quick);
void AddEmulatedHeadCases(Cases& cases, bool quick);
void AddLaunchCases(Cases& cases, bool quick);

inline Type TypeOf(qwen_asr_gpu::Type type) { return static_cast<Type>(static_cast<int>(type)); }

}  // namespace native

#endif
