// A stack of its own, and changing from one to another.

#ifndef QWEN_ASR_JAX_TESTS_NATIVE_GPU_FIBER_H_
#define QWEN_ASR_JAX_TESTS_NATIVE_GPU_FIBER_H_

#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
 public:
  // The next change to this fiber calls `main`, which must end with Leave.
  void Start(void (*main)(void*), void* data);

  // From the fiber that runs, which is what `from` will continue, to another.
  static void Switch(Fiber& from, Fiber& to);
  // The same for good.
  static void Leave(Fiber& from, Fiber& to);

 private:
  static void Enter();

  std::unique_ptr<unsigned char[]> stack_;
  void (*main_)(void*) = nullptr;
  void* data_ = nullptr;
  void* shadow_ = nullptr;  // the address sanitizer's
#if defined(__x86_64__)
  void* top_ = nullptr;  // of the stack, while others run
#else
  ucontext_t context_;
#endif
};

}  // namespace emulator

#endif
