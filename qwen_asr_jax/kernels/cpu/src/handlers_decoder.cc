// The decoder's handler: checks every layer's shapes and types, and turns buffers into structs.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "decoder_layer.h"
#include "handlers.h"

namespace qwen_asr {

namespace {

ffi::Error ToLayer(const ffi::RemainingArgs& given, size_t at, size_t per_layer, const ffi::RemainingRets& caches, size_t index,
                   const F32& x, const S32& start, const F32& cos, const F32& sin, DecoderLayer& layer) {
  const auto k_cache = given.get<ffi::AnyBuffer>(at), v_cache = given.get<ffi::AnyBuffer>(at + 1);
  auto new_k = caches.get<ffi::AnyBuffer>(2 * index), new_v = caches.get<ffi::AnyBuffer>(2 * index + 1);
  if (!k_cache || !v_cache || !new_k || !new_v) return Wrong("a cache is missing");
  if ((*new_k)->untyped_data() != k_cache->untyped_data() || (*new_v)->untyped_data() != v_cache->untyped_data()) {
    return Wrong("the caches are not updated in place");
  }
  const float** norms[] = {&layer.input_norm, &layer.post_norm, &layer.q_norm, &layer.k_norm};
  int64_t norm_sizes[4];
  for (size_t i = 0; i < 4; ++i) {
    const auto norm = given.get<F32>(at + 2 + i);
    if (!norm) return Wrong("a norm is missing or not float32");
    *norms[i] = norm->typed_data();
    norm_sizes[i] = static_cast<int64_t>(norm->element_count());
  }
  const bool scaled = per_layer > 13;
  Matrix* matrices[] = {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down};
  const auto q = given.get<ffi::AnyBuffer>(at + 6);
  const auto weights = q ? TypeOf(q->element_type()) : std::nullopt;
  const auto cache = TypeOf(k_cache->element_type());
  if (!weights || !cache || *cache == Type::kI8) {
    return Wrong("no such type of weights or cache");
  }
  if (scaled != (*weights == Type::kI8)) return Wrong("int8 weights, and no others, have scales");
  layer.weights = *weights;
  layer.cache = *cache;
  for (size_t i = 0; i < 7; ++i) {
    const auto matrix = given.get<ffi::AnyBuffer>(at + 6 + i);
    if (!matrix) return Wrong("a matrix is missing");
    if (auto error = ToMatrix(*matrix, *weights, *matrices[i]); error.failure()) return error;
    if (!scaled) continue;
    const auto scales = given.get<F32>(at + 13 + i);
    if (!scales || !Holds(*scales, matrices[i]->rows)) {
      return Wrong("int8 weights need a scale per row");
    }
    matrices[i]->scales = scales->typed_data();
  }
  const auto shape = x.dimensions(), cached = k_cache->dimensions(), values = v_cache->dimensions();
  if (shape.size() != 3 || cached.size() != 3 || shape[0] < 1 || shape[1] < 1 || cached[0] < 1 || cached[0] % shape[0] != 0 ||
      cached[2] < 1) {
    return Wrong("x is [B, T, D], caches are [B * K, S, H]");
  }
  if (TypeOf(v_cache->element_type()) != cache || !std::equal(cached.begin(), cached.end(), values.begin(), values.end())) {
    return Wrong("the caches are not alike");
  }
  layer.batch = shape[0];
  layer.time = shape[1];
  layer.key_heads = cached[0] / shape[0];
  layer.slots = cached[1];
  layer.head_dim = cached[2];
  layer.k_cache = (*new_k)->untyped_data();
  layer.v_cache = (*new_v)->untyped_data();
  const int64_t kv = layer.key_heads * layer.head_dim, width = shape[2], h = layer.head_dim;
  if (h < 2 || h % 2 != 0) return Wrong("heads have an even width");
  layer.groups = layer.q.rows / kv;
  const bool fits = layer.groups > 0 && layer.q.rows == layer.groups * kv && layer.q.cols == width && layer.k.cols == width &&
                    layer.v.cols == width && layer.k.rows == kv && layer.v.rows == kv && layer.o.cols == layer.q.rows &&
                    layer.o.rows == width && layer.gate.cols == width && layer.up.cols == width &&
                    layer.up.rows == layer.gate.rows && layer.down.cols == layer.gate.rows && layer.down.rows == width;
  if (!fits) return Wrong("the layer's matrices do not fit each other");
  const int64_t norms_wanted[] = {width, width, h, h};
  if (!std::equal(norm_sizes, norm_sizes + 4, norms_wanted)) return Wrong("the layer's norms do not fit");
  const int64_t angles = layer.rows() * (h / 2);
  if (!Holds(start, layer.batch) || !Holds(cos, angles) || !Holds(sin, angles)) {
    return Wrong("a start and a rotation are needed per row");
  }
  for (int64_t b = 0; b < layer.batch; ++b) {
    if (layer.start[b] < 0 || layer.start[b] + layer.time > layer.slots) return Wrong("a row starts outside of its cache");
  }
  return ffi::Error::Success();
}

// What every layer brings, in this order: k_cache, v_cache, input_norm, post_norm, q_norm, k_norm, then the matrices q, k, v, o,
// gate, up, down, and behind int8 matrices their scales.
constexpr size_t kLayerArguments = 13, kLayerScales = 7;

ffi::Error DecoderLayers_(ffi::ThreadPool threads, F32 x, F32 cos, F32 sin, S32 start, ffi::RemainingArgs given,
                          ffi::ResultBuffer<ffi::F32> out, ffi::RemainingRets caches, float eps) {
  const size_t count = caches.size() / 2;
  if (count == 0 || caches.size() % 2 != 0) return Wrong("every layer has two caches");
  const size_t per_layer = given.size() / count;
  if (given.size() % count != 0 || (per_layer != kLayerArguments && per_layer != kLayerArguments + kLayerScales)) {
    return Wrong("every layer brings 13 arguments, or 20 with scales");
  }
  std::vector<DecoderLayer> layers(count);
  for (size_t i = 0; i < count; ++i) {
    DecoderLayer& layer = layers[i];
    layer.eps = eps;
    layer.x = x.typed_data();
    layer.cos = cos.typed_data();
    layer.sin = sin.typed_data();
    layer.start = start.typed_data();
    layer.out = out->typed_data();
    if (auto error = ToLayer(given, i * per_layer, per_layer, caches, i, x, start, cos, sin, layer); error.failure()) return error;
    const DecoderLayer& first = layers[0];
    const bool same = layer.weights == first.weights && layer.cache == first.cache && layer.key_heads == first.key_heads &&
                      layer.groups == first.groups && layer.head_dim == first.head_dim && layer.slots == first.slots &&
                      layer.gate.rows == first.gate.rows;
    if (!same) return Wrong("layers of different shapes");
  }
  return Run(threads, [&](Pool& pool) { RunDecoderLayers(layers.data(), static_cast<int64_t>(count), pool); });
}

}  // namespace

}  // namespace qwen_asr

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(qwen_asr_decoder_layers, qwen_asr::DecoderLayers_,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::F32>()
                                  .Arg<qwen_asr::S32>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .RemainingRets()
                                  .Attr<float>("eps"));

#pragma GCC visibility pop
