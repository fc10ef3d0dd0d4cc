// Uninitialised memory for intermediate results, kept between calls.
//
// A prefill needs some megabytes per layer. Fresh from the system, every page of them costs a quarter of a microsecond to clear,
// which is a few percent of the layer.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_SCRATCH_H_
#define QWEN_ASR_JAX_KERNELS_CPU_SCRATCH_H_

#include <cstddef>
#include <cstdint>

namespace qwen_asr {

// Blocks of memory on 64-byte boundaries. What is given back is kept for the next caller, up to a limit for all blocks together.
void* TakeScratch(size_t bytes);
void GiveBackScratch(void* block);

// An array of plain values without initial values.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) { Reset(size); }
  ~Buffer() { GiveBackScratch(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Makes room for `size` values; what was there is lost.
  void Reset(int64_t size) {
    if (size <= size_) return;
    GiveBackScratch(data_);
    data_ = nullptr;
    data_ = static_cast<T*>(TakeScratch(static_cast<size_t>(size) * sizeof(T)));
    size_ = size;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  bool empty() const { return size_ == 0; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace qwen_asr

#endif
