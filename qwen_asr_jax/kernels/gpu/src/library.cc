// What the loader asks and gives.

#include <algorithm>
#include <string>

#include "programs.h"

namespace {

// The reason of the last call of this thread, for as long as the caller needs to copy it.
const char* Kept(const std::string& why) {
  thread_local std::string kept;
  kept = why;
  return kept.empty() ? nullptr : kept.c_str();
}

qwen_asr_gpu::ProgramKey ToKey(const int* numbers, int count) {
  qwen_asr_gpu::ProgramKey key{};
  std::copy_n(numbers, std::min(count, static_cast<int>(key.size())), key.begin());
  return key;
}

}  // namespace

#pragma GCC visibility push(default)

extern "C" {

// Raised with every change of a handler's arguments or results, here and in kernels/gpu/__init__.py: it is part of the names
// under which handlers are registered, so that a compiled program kept from before never calls a handler of after.
int qwen_asr_cuda_abi() { return 1; }

// Why there is no driver; null if there is one.
const char* qwen_asr_cuda_driver() {
  std::string why;
  qwen_asr_gpu::OpenDriver(why);
  return Kept(why);
}

// `numbers` are a ProgramKey's, zeros at its end left out. Null, or why no kernels can be compiled for it.
const char* qwen_asr_cuda_why_not(const int* numbers, int count) { return Kept(qwen_asr_gpu::WhyNot(ToKey(numbers, count))); }

// Bytes of scratch memory that a decoder's call needs.
long long qwen_asr_cuda_scratch_bytes(const int* numbers, int count) {
  return qwen_asr_gpu::LayoutOf(qwen_asr_gpu::DecoderOf(ToKey(numbers, count))).bytes;
}

// Null, or why the program cannot be loaded.
const char* qwen_asr_cuda_load(const int* numbers, int count, const void* image, int device) {
  return Kept(qwen_asr_gpu::LoadProgram(ToKey(numbers, count), image, device));
}
}

#pragma GCC visibility pop
