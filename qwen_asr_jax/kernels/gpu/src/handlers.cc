// What XLA calls: checks shapes and types, turns buffers into the structs of launch.h, and puts kernels on XLA's stream.
// Nothing here allocates memory of the GPU, waits, or asks the stream anything, so that all of it can be captured in a
// command buffer.

#include "handlers.h"

#include <algorithm>
#include <optional>
#include <string>

#include "programs.h"

namespace qwen_asr_gpu {

namespace {

ffi::Error Wrong(const std::string& what) { return ffi::Error::InvalidArgument("qwen_asr_jax CUDA kernel: " + what); }

std::optional<Type> TypeOf(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F32:
      return kF32;
    case ffi::DataType::BF16:
      return kBF16;
    case ffi::DataType::F16:
      return kF16;
    case ffi::DataType::S8:
      return kI8;
    default:
      return std::nullopt;
  }
}

template <typename Buffer>
bool Holds(const Buffer& buffer, int64_t values) {
  return static_cast<int64_t>(buffer.element_count()) == values;
}

// A matrix [rows, cols] of that type, and its scales where they are int8.
ffi::Error ToWeights(const ffi::AnyBuffer& buffer, const std::optional<F32>& scales, Type type, int64_t rows, int64_t cols,
                     Weights& out) {
  const auto shape = buffer.dimensions();
  if (TypeOf(buffer.element_type()) != type) return Wrong("weights of different types");
  if (shape.size() != 2 || shape[0] != rows || shape[1] != cols) {
    return Wrong("a weight is not [" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
  }
  out = {buffer.untyped_data(), nullptr};
  if (type != kI8) return ffi::Error::Success();
  if (!scales || !Holds(*scales, rows)) return Wrong("int8 weights need a scale per row");
  out.scales = scales->typed_data();
  return ffi::Error::Success();
}

// Launches with the program of that shape, which must have been loaded when the call was traced.
template <typename Work>
ffi::Error Run(const ProgramKey& key, Stream stream, const Work& work) {
  std::string why = WhyNot(key);
  if (!why.empty()) return Wrong(why);
  const Driver* driver = OpenDriver(why);
  if (driver == nullptr) return Wrong(why);
  const LoadedProgram* program = FindProgram(*driver, key);
  if (program == nullptr) return Wrong("not compiled for this shape in this process, or on another GPU");
  LoadedDevice device(*driver, *program, stream);
  if (!work(device)) return ffi::Error::Internal("qwen_asr_jax CUDA kernel: a launch failed (" + device.why() + ")");
  return ffi::Error::Success();
}

// What every layer brings, in this order: k_cache, v_cache, input_norm, post_norm, q_norm, k_norm, then the matrices q|k|v,
// output, gate|up, down, and behind int8 matrices their scales.
constexpr size_t kLayerArguments = 10, kLayerScales = 4;

struct Layers {
  const ffi::RemainingArgs& given;
  const ffi::RemainingRets& caches;
  size_t per_layer;

  std::optional<ffi::AnyBuffer> At(size_t layer, size_t i) const {
    const auto found = given.get<ffi::AnyBuffer>(layer * per_layer + i);
    return found ? std::optional(*found) : std::nullopt;
  }
  std::optional<F32> FloatsAt(size_t layer, size_t i) const {
    if (i >= per_layer) return std::nullopt;
    const auto found = given.get<F32>(layer * per_layer + i);
    return found ? std::optional(*found) : std::nullopt;
  }
};

// The shape, from the first layer; other layers and buffers are held against it.
ffi::Error ToShape(const Layers& layers, const F32& x, DecoderShape& s, int& slots) {
  const auto cache = layers.At(0, 0), qkv = layers.At(0, 6), output = layers.At(0, 7), down = layers.At(0, 9);
  if (!cache || !qkv || !output || !down) return Wrong("a layer's buffer is missing");
  const auto type = TypeOf(qkv->element_type()), cached = TypeOf(cache->element_type());
  if (!type || !cached || *cached == kI8) return Wrong("no such type of weights or cache");
  if ((layers.per_layer > kLayerArguments) != (*type == kI8)) return Wrong("int8 weights, and no others, have scales");
  const auto of_x = x.dimensions(), of_cache = cache->dimensions();
  if (of_x.size() != 3 || of_x[0] < 1 || of_x[1] != 1 || of_cache.size() != 3 || of_cache[0] < 1 || of_cache[0] % of_x[0] != 0 ||
      of_cache[1] < 1 || of_cache[2] < 1) {
    return Wrong("x is [B, 1, D], caches are [B * K, S, H]");
  }
  if (output->dimensions().size() != 2 || down->dimensions().size() != 2) return Wrong("a weight is not a matrix");
  const int64_t most = 1 << 24;  // of any size: their products fit
  const int64_t sizes[] = {of_x[0], of_x[2], of_cache[0], of_cache[1], of_cache[2], output->dimensions()[1], down->dimensions()[1]};
  if (*std::max_element(std::begin(sizes), std::end(sizes)) > most) return Wrong("too large");
  const auto number = [](int64_t size) { return static_cast<int>(size); };
  s = {*type,
       *cached,
       number(of_x[0]),
       number(of_x[2]),
       number(down->dimensions()[1]),
       number(output->dimensions()[1] / of_cache[2]),
       number(of_cache[0] / of_x[0]),
       number(of_cache[2])};
  slots = number(of_cache[1]);
  return ffi::Error::Success();
}

ffi::Error ToLayer(const Layers& layers, size_t index, const DecoderShape& s, int slots, LayerWeights& out) {
  const auto k_cache = layers.At(index, 0), v_cache = layers.At(index, 1);
  auto new_k = layers.caches.get<ffi::AnyBuffer>(2 * index), new_v = layers.caches.get<ffi::AnyBuffer>(2 * index + 1);
  if (!k_cache || !v_cache || !new_k || !new_v) return Wrong("a cache is missing");
  for (const auto& cache : {*k_cache, *v_cache}) {
    const auto shape = cache.dimensions();
    const int64_t wanted[] = {int64_t{s.batch} * s.key_heads, slots, s.head_dim};
    if (TypeOf(cache.element_type()) != s.cache || !std::equal(shape.begin(), shape.end(), wanted, wanted + 3)) {
      return Wrong("the caches are not alike");
    }
  }
  if ((*new_k)->untyped_data() != k_cache->untyped_data() || (*new_v)->untyped_data() != v_cache->untyped_data()) {
    return Wrong("the caches are not updated in place");
  }
  out.k_cache = (*new_k)->untyped_data();
  out.v_cache = (*new_v)->untyped_data();
  const float** norms[] = {&out.input_norm, &out.post_norm, &out.q_norm, &out.k_norm};
  const int sizes[] = {s.width, s.width, s.head_dim, s.head_dim};
  for (size_t i = 0; i < 4; ++i) {
    const auto norm = layers.FloatsAt(index, 2 + i);
    if (!norm || !Holds(*norm, sizes[i])) return Wrong("a layer's norm is missing, not float32 or of another size");
    *norms[i] = norm->typed_data();
  }
  Weights* weights[] = {&out.qkv, &out.output, &out.gate_up, &out.down};
  const int rows[] = {s.projected(), s.width, 2 * s.inner, s.width}, cols[] = {s.width, s.attended(), s.width, s.inner};
  for (size_t i = 0; i < 4; ++i) {
    const auto matrix = layers.At(index, 6 + i);
    if (!matrix) return Wrong("a matrix is missing");
    const auto scales = layers.FloatsAt(index, kLayerArguments + i);
    if (auto error = ToWeights(*matrix, scales, s.weights, rows[i], cols[i], *weights[i]); error.failure()) return error;
  }
  return ffi::Error::Success();
}

}  // namespace

ffi::Error DecoderLayers(Stream stream, F32 x, F32 cos, F32 sin, S32 start, ffi::RemainingArgs given,
                         ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::U8> scratch, ffi::RemainingRets caches,
                         float eps, bool overlap, bool prefetch) {
  const size_t count = caches.size() / 2;
  if (count == 0 || caches.size() % 2 != 0) return Wrong("every layer has two caches");
  const size_t per_layer = given.size() / count;
  if (given.size() % count != 0 || (per_layer != kLayerArguments && per_layer != kLayerArguments + kLayerScales)) {
    return Wrong("every layer brings 10 arguments, or 14 with scales");
  }
  const Layers layers{given, caches, per_layer};
  DecoderStep step{};
  DecoderShape& s = step.shape;
  if (auto error = ToShape(layers, x, s, step.slots); error.failure()) return error;
  const ProgramKey key = KeyOf(s);
  if (const std::string why = WhyNot(key); !why.empty()) return Wrong(why);
  step.layers.resize(count);
  for (size_t i = 0; i < count; ++i) {
    if (auto error = ToLayer(layers, i, s, step.slots, step.layers[i]); error.failure()) return error;
  }
  const int64_t angles = int64_t{s.batch} * (s.head_dim / 2);
  if (!Holds(start, s.batch) || !Holds(cos, angles) || !Holds(sin, angles)) {
    return Wrong("a start and a rotation are needed per row");
  }
  if (!Holds(*out, int64_t{s.batch} * s.width)) return Wrong("the result does not fit");
  if (static_cast<int64_t>(scratch->element_count()) < LayoutOf(s).bytes) return Wrong("too little scratch memory");
  step.x = x.typed_data();
  step.cos = cos.typed_data();
  step.sin = sin.typed_data();
  step.start = start.typed_data();
  step.out = out->typed_data();
  step.scratch = scratch->typed_data();
  step.eps = eps;
  step.overlap = overlap;
  step.prefetch = prefetch;
  return Run(key, stream, [&](Device& device) { return EnqueueDecoder(step, device); });
}

ffi::Error Head(Stream stream, F32 x, ffi::AnyBuffer weight, F32 scales, ffi::ResultBuffer<ffi::S32> token,
                ffi::ResultBuffer<ffi::F32> top, ffi::ResultBuffer<ffi::S32> tokens, ffi::ResultBuffer<ffi::F32> tops,
                bool overlap) {
  const auto type = TypeOf(weight.element_type());
  if (!type) return Wrong("no such type of weights");
  const auto of_x = x.dimensions(), of_weight = weight.dimensions();
  if (of_x.size() != 2 || of_weight.size() != 2 || of_x[1] != of_weight[1]) return Wrong("operand and weights do not fit");
  if (std::max({of_x[0], of_x[1], of_weight[0]}) > 1 << 24) return Wrong("too large");
  HeadStep step{};
  step.shape = {*type, static_cast<int>(of_x[0]), static_cast<int>(of_x[1]), static_cast<int>(of_weight[0])};
  if (auto error = ToWeights(weight, scales, *type, of_weight[0], of_weight[1], step.weights); error.failure()) return error;
  const int64_t results = of_x[0] * kMaxHeadBlocks;
  if (!Holds(*token, of_x[0]) || !Holds(*top, of_x[0]) || !Holds(*tokens, results) || !Holds(*tops, results)) {
    return Wrong("a result does not fit");
  }
  step.x = x.typed_data();
  step.token = token->typed_data();
  step.top = top->typed_data();
  step.tokens = tokens->typed_data();
  step.tops = tops->typed_data();
  step.overlap = overlap;
  return Run(KeyOf(step.shape), stream, [&](Device& device) { return EnqueueHead(step, device); });
}

}  // namespace qwen_asr_gpu
