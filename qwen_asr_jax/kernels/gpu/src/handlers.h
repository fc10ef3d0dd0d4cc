// The handlers as functions of XLA's buffers; bindings.cc says how XLA finds and calls them.

#ifndef QWEN_ASR_JAX_KERNELS_GPU_HANDLERS_H_
#define QWEN_ASR_JAX_KERNELS_GPU_HANDLERS_H_

#include "driver.h"
#include "xla/ffi/api/ffi.h"

namespace qwen_asr_gpu {

namespace ffi = xla::ffi;

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;

// All decoder layers for one new token per row.
ffi::Error DecoderLayers(Stream stream, F32 x, F32 cos, F32 sin, S32 start, ffi::RemainingArgs given,
                         ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::U8> scratch, ffi::RemainingRets caches,
                         float eps, bool overlap, bool prefetch);

// The best token of each row, and its logit. `tokens` and `tops` are scratch memory.
ffi::Error Head(Stream stream, F32 x, ffi::AnyBuffer weight, F32 scales, ffi::ResultBuffer<ffi::S32> token,
                ffi::ResultBuffer<ffi::F32> top, ffi::ResultBuffer<ffi::S32> tokens, ffi::ResultBuffer<ffi::F32> tops,
                bool overlap);

// Their operands, results and attributes, behind the stream.
template <typename Binding>
auto BindDecoderLayers(Binding binding) {
  return std::move(binding)
      .template Arg<F32>()
      .template Arg<F32>()
      .template Arg<F32>()
      .template Arg<S32>()
      .RemainingArgs()
      .template Ret<F32>()
      .template Ret<ffi::Buffer<ffi::U8>>()
      .RemainingRets()
      .template Attr<float>("eps")
      .template Attr<bool>("overlap")
      .template Attr<bool>("prefetch");
}

template <typename Binding>
auto BindHead(Binding binding) {
  return std::move(binding)
      .template Arg<F32>()
      .template Arg<ffi::AnyBuffer>()
      .template Arg<F32>()
      .template Ret<S32>()
      .template Ret<F32>()
      .template Ret<S32>()
      .template Ret<F32>()
      .template Attr<bool>("overlap");
}

}  // namespace qwen_asr_gpu

#endif
