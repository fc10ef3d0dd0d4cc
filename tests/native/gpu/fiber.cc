#include "fiber.h"

#include <cstdint>

#include "tight.h"

#if defined(QWEN_OWN_BOUNDS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves what a function must preserve, changes the stack, and goes on where that one was left. System calls, which ucontext
// makes for the sake of signals, would take most of the tests' time.
extern "C" void qwen_test_switch(void** save_top, void* top);
asm(R"(
.text
.globl qwen_test_switch
.type qwen_test_switch, @function
qwen_test_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qwen_test_switch, .-qwen_test_switch
)");
#endif

namespace emulator {

namespace {

#if defined(QWEN_OWN_BOUNDS)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

Fiber* entering = nullptr;
Fiber* left = nullptr;

#if defined(QWEN_OWN_BOUNDS)
// The stack that is no fiber's.
const void* scheduler_bottom = nullptr;
size_t scheduler_size = 0;
#endif

}  // namespace

void Fiber::Start(void (*main)(void*), void* data) {
  main_ = main;
  data_ = data;
  if (stack_ == nullptr) stack_.reset(new unsigned char[kStackBytes]);
  if (left == this) left = nullptr;
#if defined(QWEN_OWN_BOUNDS)
  __asan_unpoison_memory_region(stack_.get(), kStackBytes);  // functions that never returned have left their marks
#endif
#if defined(__x86_64__)
  auto** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack_.get()) + kStackBytes) / 16 * 16);
  *--top = nullptr;  // as if somebody had called Enter
  *--top = reinterpret_cast<void*>(&Fiber::Enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  top_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fiber::Enter, 0);
#endif
}

void Fiber::Enter() {
  Fiber* own = entering;
#if defined(QWEN_OWN_BOUNDS)
  // Whoever came here first tells where the scheduler's stack is; Switch knows how to return to it.
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  scheduler_bottom = bottom;
  scheduler_size = size;
#endif
  own->main_(own->data_);
}

void Fiber::Switch(Fiber& from, Fiber& to) {
  entering = &to;
#if defined(QWEN_OWN_BOUNDS)
  const bool back = to.stack_ == nullptr;
  __sanitizer_start_switch_fiber(left == &from ? nullptr : &from.shadow_, back ? scheduler_bottom : to.stack_.get(),
                                 back ? scheduler_size : kStackBytes);
#endif
#if defined(__x86_64__)
  qwen_test_switch(&from.top_, to.top_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
#if defined(QWEN_OWN_BOUNDS)
  __sanitizer_finish_switch_fiber(from.shadow_, nullptr, nullptr);
#endif
}

void Fiber::Leave(Fiber& from, Fiber& to) {
  left = &from;
  Switch(from, to);
}

}  // namespace emulator
