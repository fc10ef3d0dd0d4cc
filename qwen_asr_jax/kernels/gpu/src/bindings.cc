// XLA's handlers, as symbols of the library.

#include "handlers.h"

namespace {

using Stream = xla::ffi::PlatformStream<qwen_asr_gpu::Stream>;

}  // namespace

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(qwen_asr_cuda_decoder_layers, qwen_asr_gpu::DecoderLayers,
                              qwen_asr_gpu::BindDecoderLayers(xla::ffi::Ffi::Bind().Ctx<Stream>()),
                              {xla::ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(qwen_asr_cuda_head, qwen_asr_gpu::Head,
                              qwen_asr_gpu::BindHead(xla::ffi::Ffi::Bind().Ctx<Stream>()),
                              {xla::ffi::Traits::kCmdBufferCompatible});

#pragma GCC visibility pop
