// What XLA calls: checks shapes and types, and turns buffers into the kernels' structs. The decoder's is in handlers_decoder.cc.

#include "handlers.h"

#include <cstdint>

#include "conv.h"
#include "encoder_layer.h"
#include "linear.h"

namespace qwen_asr {

namespace {

ffi::Error Linear_(ffi::ThreadPool threads, F32 x, ffi::AnyBuffer weight, F32 scales, F32 bias,
                   ffi::ResultBuffer<ffi::F32> out) {
  const auto type = TypeOf(weight.element_type());
  if (!type) return Wrong("no such weight type");
  Linear linear{};
  linear.weights = *type;
  if (auto error = ToMatrix(weight, scales, *type, linear.matrix); error.failure()) return error;
  const auto shape = x.dimensions();
  if (shape.size() != 2 || shape[1] != linear.matrix.cols) return Wrong("operand and weights do not fit");
  if (auto error = ToVector(bias, linear.matrix.rows, linear.bias); error.failure()) return error;
  if (!Holds(*out, shape[0] * linear.matrix.rows)) return Wrong("the result does not fit");
  linear.rows = shape[0];
  linear.x = x.typed_data();
  linear.out = out->typed_data();
  return Run(threads, [&](Pool& pool) { RunLinear(linear, pool); });
}

ffi::Error Head_(ffi::ThreadPool threads, F32 x, ffi::AnyBuffer weight, F32 scales, ffi::AnyBuffer screen, F32 screen_scales,
                 F32 screen_errors, ffi::ResultBuffer<ffi::S32> token,
                 ffi::ResultBuffer<ffi::F32> top, ffi::ResultBuffer<ffi::F32> log_sum) {
  const auto type = TypeOf(weight.element_type());
  if (!type) return Wrong("no such weight type");
  Head head{};
  head.weights = *type;
  if (auto error = ToMatrix(weight, scales, *type, head.matrix); error.failure()) return error;
  const auto shape = x.dimensions();
  if (shape.size() != 2 || shape[1] != head.matrix.cols) return Wrong("operand and weights do not fit");
  if (screen.element_count() != 0) {
    if (*type == Type::kI8) return Wrong("int8 weights need no screen");
    if (auto error = ToMatrix(screen, screen_scales, Type::kI8, head.screen); error.failure()) return error;
    if (head.screen.rows != head.matrix.rows || head.screen.cols != head.matrix.cols) return Wrong("the screen does not fit");
    if (!Holds(screen_errors, head.matrix.rows)) return Wrong("a screen needs an error per row");
    head.screen_errors = screen_errors.typed_data();
  }
  if (!Holds(*token, shape[0]) || !Holds(*top, shape[0]) || !Holds(*log_sum, shape[0])) return Wrong("a result does not fit");
  head.batch = shape[0];
  head.x = x.typed_data();
  head.token = token->typed_data();
  head.top = top->typed_data();
  head.log_sum = log_sum->typed_data();
  return Run(threads, [&](Pool& pool) { RunHead(head, pool); });
}

ffi::Error EncoderLayer_(ffi::ThreadPool threads, F32 x, S32 valid, F32 attention_norm, F32 attention_norm_bias, F32 mlp_norm,
                         F32 mlp_norm_bias, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer out_proj,
                         ffi::AnyBuffer fc1, ffi::AnyBuffer fc2, F32 q_scales, F32 k_scales, F32 v_scales, F32 out_scales,
                         F32 fc1_scales, F32 fc2_scales, F32 q_bias, F32 k_bias, F32 v_bias, F32 out_bias, F32 fc1_bias,
                         F32 fc2_bias, ffi::ResultBuffer<ffi::F32> out, int32_t heads, int32_t window, float eps, float limit) {
  const auto weights = TypeOf(q.element_type());
  if (!weights) return Wrong("no such weight type");
  EncoderLayer layer{};
  layer.weights = *weights;
  layer.operands = *weights == Type::kI8 ? Type::kBF16 : *weights;
  layer.eps = eps;
  layer.limit = limit;
  struct Given {
    const ffi::AnyBuffer& weight;
    const F32& scales;
    const F32& bias;
    Matrix& matrix;
    const float*& vector;
  };
  const Given given[] = {
      {q, q_scales, q_bias, layer.q, layer.q_bias},
      {k, k_scales, k_bias, layer.k, layer.k_bias},
      {v, v_scales, v_bias, layer.v, layer.v_bias},
      {out_proj, out_scales, out_bias, layer.out_proj, layer.out_bias},
      {fc1, fc1_scales, fc1_bias, layer.fc1, layer.fc1_bias},
      {fc2, fc2_scales, fc2_bias, layer.fc2, layer.fc2_bias},
  };
  for (const Given& each : given) {
    if (auto error = ToMatrix(each.weight, each.scales, *weights, each.matrix); error.failure()) return error;
    if (auto error = ToVector(each.bias, each.matrix.rows, each.vector); error.failure()) return error;
  }
  const auto shape = x.dimensions(), windows = valid.dimensions();
  if (shape.size() != 3 || windows.size() != 2 || windows[0] != shape[0]) return Wrong("x is [B, T, D], valid is [B, W]");
  const int64_t width = shape[2];
  const bool fits = layer.q.cols == width && layer.q.rows == width && layer.k.cols == width && layer.k.rows == width &&
                    layer.v.cols == width && layer.v.rows == width && layer.out_proj.cols == width &&
                    layer.out_proj.rows == width && layer.fc1.cols == width && layer.fc2.cols == layer.fc1.rows &&
                    layer.fc2.rows == width && heads > 0 && width % heads == 0 && windows[1] * window >= shape[1];
  if (!fits) return Wrong("the layer's matrices do not fit each other");
  if (!Holds(attention_norm, width) || !Holds(attention_norm_bias, width) || !Holds(mlp_norm, width) ||
      !Holds(mlp_norm_bias, width) || !Holds(*out, shape[0] * shape[1] * width)) {
    return Wrong("the layer's norms or its result do not fit");
  }
  layer.batch = shape[0];
  layer.time = shape[1];
  layer.windows = windows[1];
  layer.window = window;
  layer.heads = heads;
  layer.x = x.typed_data();
  layer.valid = valid.typed_data();
  layer.attention_norm = attention_norm.typed_data();
  layer.attention_norm_bias = attention_norm_bias.typed_data();
  layer.mlp_norm = mlp_norm.typed_data();
  layer.mlp_norm_bias = mlp_norm_bias.typed_data();
  layer.out = out->typed_data();
  return Run(threads, [&](Pool& pool) { RunEncoderLayer(layer, pool); });
}

ffi::Error Conv_(ffi::ThreadPool threads, ffi::AnyBuffer x, ffi::AnyBuffer weight, F32 bias, ffi::Result<ffi::AnyBuffer> out) {
  const auto weights = TypeOf(weight.element_type()), input = TypeOf(x.element_type());
  const auto shape = x.dimensions(), filter = weight.dimensions();
  if (!weights || *weights == Type::kI8 || !input || (*input != Type::kF32 && *input != *weights) ||
      TypeOf(out->element_type()) != weights) {
    return Wrong("no such types of a convolution");
  }
  if (shape.size() != 4 || filter.size() != 4 || filter[0] != 3 || filter[1] != 3 || filter[2] != shape[3]) {
    return Wrong("x is [n, time, freq, c_in], the filter is [3, 3, c_in, c_out]");
  }
  Conv conv{};
  conv.weights = *weights;
  conv.input = *input;
  conv.images = shape[0];
  conv.time = shape[1];
  conv.freq = shape[2];
  conv.c_in = shape[3];
  conv.c_out = filter[3];
  if (!Holds(bias, conv.c_out) || !Holds(*out, conv.rows() * conv.c_out)) {
    return Wrong("bias or result do not fit the convolution");
  }
  conv.x = x.untyped_data();
  conv.weight = weight.untyped_data();
  conv.bias = bias.typed_data();
  conv.out = out->untyped_data();
  return Run(threads, [&](Pool& pool) { RunConv(conv, pool); });
}

}  // namespace

}  // namespace qwen_asr

#pragma GCC visibility push(default)

extern "C" const char* qwen_asr_isa() { return qwen_asr::BestKernels().name; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(qwen_asr_linear, qwen_asr::Linear_,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(qwen_asr_head, qwen_asr::Head_,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(qwen_asr_encoder_layer, qwen_asr::EncoderLayer_,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::S32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int32_t>("heads")
                                  .Attr<int32_t>("window")
                                  .Attr<float>("eps")
                                  .Attr<float>("limit"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(qwen_asr_conv_gelu, qwen_asr::Conv_,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<qwen_asr::F32>()
                                  .Ret<xla::ffi::AnyBuffer>());

#pragma GCC visibility pop
