// Memory that ends where its last value ends: the page behind it cannot be touched, so that whatever instruction reads or writes
// there stops the program. Sanitizers do not see what vector instructions with masks do. Prefetching there is allowed.

#ifndef QWEN_ASR_JAX_TESTS_NATIVE_TIGHT_H_
#define QWEN_ASR_JAX_TESTS_NATIVE_TIGHT_H_

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#if defined(__has_feature)
#define QWEN_HAS(sanitizer) __has_feature(sanitizer)
#else
#define QWEN_HAS(sanitizer) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || QWEN_HAS(address_sanitizer)
#define QWEN_OWN_BOUNDS  // also in front of the first value
#endif
#if defined(QWEN_OWN_BOUNDS) || defined(__SANITIZE_THREAD__) || QWEN_HAS(thread_sanitizer)
#define QWEN_SANITIZED
#endif

#if !defined(QWEN_OWN_BOUNDS)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace native {

#if defined(QWEN_OWN_BOUNDS)

template <typename T>
using Tight = std::vector<T>;

#else

template <typename T>
struct TightAllocator {
  using value_type = T;
  TightAllocator() = default;
  template <typename U>
  TightAllocator(const TightAllocator<U>&) {}

  T* allocate(size_t n) {
    const size_t inside = Inside(n);
    void* all = mmap(nullptr, inside + Page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    char* end = static_cast<char*>(all) + inside;
    if (mprotect(end, Page(), PROT_NONE) != 0) throw std::bad_alloc();
    return reinterpret_cast<T*>(end - n * sizeof(T));
  }

  void deallocate(T* p, size_t n) {
    char* end = reinterpret_cast<char*>(p + n);
    munmap(end - Inside(n), Inside(n) + Page());
  }

  friend bool operator==(const TightAllocator&, const TightAllocator&) { return true; }
  friend bool operator!=(const TightAllocator&, const TightAllocator&) { return false; }

 private:
  static size_t Page() {
    static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return page;
  }
  static size_t Inside(size_t n) { return (n * sizeof(T) + Page() - 1) / Page() * Page(); }
};

template <typename T>
using Tight = std::vector<T, TightAllocator<T>>;

#endif

using Floats = Tight<float>;
using Ints = Tight<int32_t>;
using Bytes = Tight<uint8_t>;

}  // namespace native

#endif
