// The handlers for JAX's CPU backend, which has no stream: what they launch goes to the fake driver.

#include "handlers.h"

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    qwen_asr_cuda_decoder_layers,
    ([](qwen_asr_gpu::F32 x, qwen_asr_gpu::F32 cos, qwen_asr_gpu::F32 sin, qwen_asr_gpu::S32 start, xla::ffi::RemainingArgs given,
        xla::ffi::ResultBuffer<xla::ffi::F32> out, xla::ffi::ResultBuffer<xla::ffi::U8> scratch, xla::ffi::RemainingRets caches,
        float eps, bool overlap, bool prefetch) {
      return qwen_asr_gpu::DecoderLayers(nullptr, x, cos, sin, start, given, out, scratch, caches, eps, overlap, prefetch);
    }),
    qwen_asr_gpu::BindDecoderLayers(xla::ffi::Ffi::Bind()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    qwen_asr_cuda_head,
    ([](qwen_asr_gpu::F32 x, xla::ffi::AnyBuffer weight, qwen_asr_gpu::F32 scales, xla::ffi::ResultBuffer<xla::ffi::S32> token,
        xla::ffi::ResultBuffer<xla::ffi::F32> top, xla::ffi::ResultBuffer<xla::ffi::S32> tokens,
        xla::ffi::ResultBuffer<xla::ffi::F32> tops, bool overlap) {
      return qwen_asr_gpu::Head(nullptr, x, weight, scales, token, top, tokens, tops, overlap);
    }),
    qwen_asr_gpu::BindHead(xla::ffi::Ffi::Bind()));

#pragma GCC visibility pop
