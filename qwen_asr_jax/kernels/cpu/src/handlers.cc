// What XLA calls: checks shapes and types, and turns buffers into the structs of decoder_layer.h.

#include <cstdint>
#include <optional>
#include <string>

#include "decoder_layer.h"
#include "xla/ffi/api/ffi.h"

namespace qwen_asr {

namespace {

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

std::optional<Type> TypeOf(ffi::DataType type) {
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

ffi::Error Wrong(const std::string& what) { return ffi::Error::InvalidArgument("qwen_asr_jax CPU kernel: " + what); }

using F32 = ffi::Buffer<ffi::F32>;
using S32 = ffi::Buffer<ffi::S32>;

// A weight matrix [rows, cols], with the scales that int8 rows need.
ffi::Error ToMatrix(const ffi::AnyBuffer& buffer, const F32& scales, Type type, Matrix& out) {
  const auto shape = buffer.dimensions();
  if (shape.size() != 2) return Wrong("a weight is not a matrix");
  if (TypeOf(buffer.element_type()) != type) return Wrong("weights of different types");
  out = {buffer.untyped_data(), nullptr, shape[0], shape[1]};
  if (type == Type::kI8) {
    if (static_cast<int64_t>(scales.element_count()) != shape[0]) return Wrong("int8 weights need a scale per row");
    out.scales = scales.typed_data();
  }
  return ffi::Error::Success();
}

ffi::Error Linear_(ffi::ThreadPool threads, F32 x, ffi::AnyBuffer weight, F32 scales, ffi::ResultBuffer<ffi::F32> out) {
  const auto type = TypeOf(weight.element_type());
  if (!type) return Wrong("no such weight type");
  Linear linear{};
  linear.weights = *type;
  if (auto error = ToMatrix(weight, scales, *type, linear.matrix); error.failure()) return error;
  const auto shape = x.dimensions();
  if (shape.size() != 2 || shape[1] != linear.matrix.cols) return Wrong("operand and weights do not fit");
  linear.batch = shape[0];
  linear.x = x.typed_data();
  linear.out = out->typed_data();
  XlaPool pool(threads);
  RunLinear(linear, pool);
  return ffi::Error::Success();
}

ffi::Error Head_(ffi::ThreadPool threads, F32 x, ffi::AnyBuffer weight, F32 scales, ffi::ResultBuffer<ffi::S32> token,
                 ffi::ResultBuffer<ffi::F32> top, ffi::ResultBuffer<ffi::F32> log_sum) {
  const auto type = TypeOf(weight.element_type());
  if (!type) return Wrong("no such weight type");
  Head head{};
  head.weights = *type;
  if (auto error = ToMatrix(weight, scales, *type, head.matrix); error.failure()) return error;
  const auto shape = x.dimensions();
  if (shape.size() != 2 || shape[1] != head.matrix.cols) return Wrong("operand and weights do not fit");
  head.batch = shape[0];
  head.x = x.typed_data();
  head.token = token->typed_data();
  head.top = top->typed_data();
  head.log_sum = log_sum->typed_data();
  XlaPool pool(threads);
  RunHead(head, pool);
  return ffi::Error::Success();
}

ffi::Error DecoderLayer_(ffi::ThreadPool threads, F32 x, F32 cos, F32 sin, S32 start, ffi::AnyBuffer k_cache,
                         ffi::AnyBuffer v_cache, F32 input_norm, F32 post_norm, F32 q_norm, F32 k_norm, ffi::AnyBuffer q,
                         ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer o, ffi::AnyBuffer gate, ffi::AnyBuffer up,
                         ffi::AnyBuffer down, F32 q_scales, F32 k_scales, F32 v_scales, F32 o_scales, F32 gate_scales,
                         F32 up_scales, F32 down_scales, ffi::ResultBuffer<ffi::F32> out, ffi::Result<ffi::AnyBuffer> new_k,
                         ffi::Result<ffi::AnyBuffer> new_v, float eps) {
  const auto weights = TypeOf(q.element_type()), cache = TypeOf(k_cache.element_type());
  if (!weights || !cache || *cache == Type::kI8) return Wrong("no such type of weights or cache");
  if (new_k->untyped_data() != k_cache.untyped_data() || new_v->untyped_data() != v_cache.untyped_data()) {
    return Wrong("the caches are not updated in place");
  }
  DecoderLayer layer{};
  layer.weights = *weights;
  layer.cache = *cache;
  layer.eps = eps;
  struct Given {
    const ffi::AnyBuffer& weight;
    const F32& scales;
    Matrix& matrix;
  };
  const Given given[] = {{q, q_scales, layer.q},          {k, k_scales, layer.k},    {v, v_scales, layer.v},
                         {o, o_scales, layer.o},          {gate, gate_scales, layer.gate},
                         {up, up_scales, layer.up},       {down, down_scales, layer.down}};
  for (const Given& each : given) {
    if (auto error = ToMatrix(each.weight, each.scales, *weights, each.matrix); error.failure()) return error;
  }
  const auto shape = x.dimensions(), cached = k_cache.dimensions();
  if (shape.size() != 2 || cached.size() != 3 || cached[0] % shape[0] != 0) return Wrong("x is [B, D], caches are [B * K, S, H]");
  layer.batch = shape[0];
  layer.key_heads = cached[0] / shape[0];
  layer.slots = cached[1];
  layer.head_dim = cached[2];
  layer.groups = layer.q.rows / (layer.key_heads * layer.head_dim);
  const int64_t kv = layer.key_heads * layer.head_dim, width = shape[1];
  const bool fits = layer.q.cols == width && layer.k.cols == width && layer.v.cols == width && layer.k.rows == kv &&
                    layer.v.rows == kv && layer.q.rows == layer.groups * kv && layer.o.cols == layer.q.rows &&
                    layer.o.rows == width && layer.gate.cols == width && layer.up.cols == width &&
                    layer.up.rows == layer.gate.rows && layer.down.cols == layer.gate.rows && layer.down.rows == width;
  if (!fits) return Wrong("the layer's matrices do not fit each other");
  if (static_cast<int64_t>(start.element_count()) != layer.batch ||
      static_cast<int64_t>(cos.element_count()) != layer.batch * layer.head_dim / 2) {
    return Wrong("a start and a rotation are needed per row");
  }
  for (int64_t b = 0; b < layer.batch; ++b) {
    if (start.typed_data()[b] < 0 || start.typed_data()[b] >= layer.slots) return Wrong("a row starts outside of its cache");
  }
  layer.x = x.typed_data();
  layer.cos = cos.typed_data();
  layer.sin = sin.typed_data();
  layer.start = start.typed_data();
  layer.input_norm = input_norm.typed_data();
  layer.post_norm = post_norm.typed_data();
  layer.q_norm = q_norm.typed_data();
  layer.k_norm = k_norm.typed_data();
  layer.k_cache = new_k->untyped_data();
  layer.v_cache = new_v->untyped_data();
  layer.out = out->typed_data();
  XlaPool pool(threads);
  RunDecoderLayer(layer, pool);
  return ffi::Error::Success();
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
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(qwen_asr_head, qwen_asr::Head_,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<qwen_asr::F32>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(qwen_asr_decoder_layer, qwen_asr::DecoderLayer_,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::S32>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
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
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("eps"));

#pragma GCC visibility pop
