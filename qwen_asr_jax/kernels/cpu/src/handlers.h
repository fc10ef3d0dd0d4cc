// What the handlers share: XLA's buffers and threads as the kernels know them.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_HANDLERS_H_
#define QWEN_ASR_JAX_KERNELS_CPU_HANDLERS_H_

#include <cstdint>
#include <new>
#include <optional>
#include <string>

#include "kernels.h"
#include "product.h"
#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace qwen_asr {

namespace ffi = xla::ffi;

class XlaPool final : public Pool {
 public:
  explicit XlaPool(ffi::ThreadPool& pool) : pool_(pool) {}
  int Threads() const override { return static_cast<int>(pool_.num_threads()); }
  void Start(void (*task)(void*), void* data) override {
    pool_.Schedule([task, data] { task(data); });
  }

 private:
  ffi::ThreadPool& pool_;
};

inline std::optional<Type> TypeOf(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F32:
      return Type::kF32;
    case ffi::DataType::BF16:
      return Type::kBF16;
    case ffi::DataType::F16:
      return Type::kF16;
    case ffi::DataType::S8:
      return Type::kI8;
    default:
      return std::nullopt;
  }
}

inline ffi::Error Wrong(const std::string& what) { return ffi::Error::InvalidArgument("qwen_asr_jax CPU kernel: " + what); }

// Runs `work(pool)`. XLA is compiled without exceptions.
template <typename Work>
ffi::Error Run(ffi::ThreadPool& threads, const Work& work) {
  XlaPool pool(threads);
  try {
    work(pool);
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "qwen_asr_jax CPU kernel: no memory for intermediate results");
  }
  return ffi::Error::Success();
}

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;

template <typename Buffer>
bool Holds(const Buffer& buffer, int64_t values) {
  return static_cast<int64_t>(buffer.element_count()) == values;
}

// A weight matrix [rows, cols].
inline ffi::Error ToMatrix(const ffi::AnyBuffer& buffer, Type type, Matrix& out) {
  const auto shape = buffer.dimensions();
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1) return Wrong("a weight is not a matrix");
  if (TypeOf(buffer.element_type()) != type) return Wrong("weights of different types");
  out = {buffer.untyped_data(), nullptr, shape[0], shape[1]};
  return ffi::Error::Success();
}

// The same with the scales that int8 rows need.
inline ffi::Error ToMatrix(const ffi::AnyBuffer& buffer, const F32& scales, Type type, Matrix& out) {
  if (auto error = ToMatrix(buffer, type, out); error.failure()) return error;
  const auto shape = buffer.dimensions();
  if (type == Type::kI8) {
    if (!Holds(scales, shape[0])) return Wrong("int8 weights need a scale per row");
    out.scales = scales.typed_data();
  }
  return ffi::Error::Success();
}

// A vector of `size` values; an empty one stands for none.
inline ffi::Error ToVector(const F32& buffer, int64_t size, const float*& out) {
  if (buffer.element_count() != 0 && !Holds(buffer, size)) return Wrong("a vector does not fit");
  out = buffer.element_count() == 0 ? nullptr : buffer.typed_data();
  return ffi::Error::Success();
}

}  // namespace qwen_asr

#endif
