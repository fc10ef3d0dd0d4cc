#include "emulated_programs.h"

namespace native {

std::vector<Program>& Programs() {
  static std::vector<Program> all;
  return all;
}

bool EmulatedDevice::Launch(int kernel, int blocks, int shared_bytes, const void* arguments, bool overlap) {
  const EmulatedKernel& k = program_.kernels[kernel];
  auto next = std::make_unique<emulator::Grid>(k.run, blocks, shared_bytes, arguments, k.argument_bytes, ++seed_);
  if (overlap) next->StartEarly();
  Finish();
  last_ = std::move(next);
  return true;
}

void EmulatedDevice::Finish() {
  if (last_ != nullptr) last_->Finish();
  last_.reset();
}

}  // namespace native
