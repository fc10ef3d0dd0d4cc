#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace qwen_asr {

namespace {

// Below this many queries, packing the keys costs more than it saves.
constexpr int64_t kFewQueries = 8;

// Scores to weights, in place: the first `limit` values sum to one, the others are zero.
void Softmax(const Kernels& kernels, float* p, int64_t limit, int64_t end, float scale) {
  if (limit == 0) return std::fill(p, p + end, 0.0f);
  const float total = kernels.exponentials(p, limit, scale, kernels.largest(p, limit) * scale);
  const float inverse = 1.0f / total;
  for (int64_t i = 0; i < limit; ++i) p[i] *= inverse;
  std::fill(p + limit, p + end, 0.0f);
}

void PackTiles(const Kernels& kernels, PackedRows& to, const float* const* rows) {
  for (int64_t tile = 0; tile < to.tiles(); ++tile) to.Pack(kernels, tile, rows + to.Begin(tile));
}

}  // namespace

void Attend(const Kernels& kernels, const Attention& a, int64_t rows, const float* const* q, const int64_t* limits,
            float* const* out, AttentionScratch& scratch) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(a.width));
  const int64_t slots = *std::max_element(limits, limits + rows);
  const int64_t size = static_cast<int64_t>(SizeOf(a.type));
  const auto* keys = static_cast<const uint8_t*>(a.keys);
  const auto* values = static_cast<const uint8_t*>(a.values);
  if (rows < kFewQueries && a.stride == a.width) {
    scratch.scores.Reset(slots);
    scratch.sums.Reset(a.width);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(scratch.sums.data(), q[i], a.width * sizeof(float));
      kernels.round(a.type, scratch.sums.data(), a.width);
      float* p = scratch.scores.data();
      kernels.scores(a.type, keys, limits[i], a.width, scratch.sums.data(), 1, p, slots);
      Softmax(kernels, p, limits[i], limits[i], scale);
      std::fill(out[i], out[i] + a.width, 0.0f);
      kernels.weighted_sum(a.type, values, limits[i], a.width, p, 1, slots, out[i]);
    }
    return;
  }
  if (slots == 0) {
    for (int64_t i = 0; i < rows; ++i) std::fill(out[i], out[i] + a.width, 0.0f);
    return;
  }
  const Type packed = kernels.packed_type(a.type);
  const int64_t panel = kernels.panel, padded = (slots + panel - 1) / panel * panel;
  scratch.panel.Reset(panel * (std::max(slots, a.width) + 1) * static_cast<int64_t>(SizeOf(packed)));
  scratch.scores.Reset(rows * padded);
  scratch.queries.Init(kernels, a.type, rows, a.width, a.width);
  PackTiles(kernels, scratch.queries, q);
  for (int64_t at = 0; at < slots; at += panel) {
    kernels.pack_rows(a.type, keys + at * a.stride * size, a.stride, std::min(panel, slots - at), a.width, scratch.panel.data());
    for (int64_t tile = 0; tile < scratch.queries.tiles(); ++tile) {
      kernels.multiply(packed, scratch.queries.Tile(tile, 0), scratch.queries.Rows(tile), a.width, scratch.panel.data(),
                       scratch.scores.data() + scratch.queries.Begin(tile) * padded + at, padded, false);
    }
  }
  const float* weights[16];
  scratch.weights.Init(kernels, a.type, rows, slots, slots);
  for (int64_t tile = 0; tile < scratch.weights.tiles(); ++tile) {
    const int64_t begin = scratch.weights.Begin(tile), count = scratch.weights.Rows(tile);
    for (int64_t i = 0; i < count; ++i) {
      float* p = scratch.scores.data() + (begin + i) * padded;
      Softmax(kernels, p, limits[begin + i], slots, scale);
      weights[i] = p;
    }
    scratch.weights.Pack(kernels, tile, weights);
  }
  scratch.sums.Reset(rows * panel);
  for (int64_t at = 0; at < a.width; at += panel) {
    const int64_t cols = std::min(panel, a.width - at);
    kernels.pack_depth(a.type, values + at * size, a.stride, cols, slots, scratch.panel.data());
    for (int64_t tile = 0; tile < scratch.weights.tiles(); ++tile) {
      kernels.multiply(packed, scratch.weights.Tile(tile, 0), scratch.weights.Rows(tile), slots, scratch.panel.data(),
                       scratch.sums.data() + scratch.weights.Begin(tile) * panel, panel, false);
    }
    for (int64_t i = 0; i < rows; ++i) std::memcpy(out[i] + at, scratch.sums.data() + i * panel, cols * sizeof(float));
  }
}

}  // namespace qwen_asr
