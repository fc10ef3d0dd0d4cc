// A block of new tokens: the prompt, a draft to verify, or one token for each of many rows. Products of many vectors.

#include <algorithm>
#include <cstring>
#include <memory>

#include "attention.h"
#include "decoder_layer.h"
#include "product.h"
#include "team.h"

namespace qwen_asr {

void RunDecoderLayers(DecoderLayer* layers, int64_t count, Pool& pool) {
  if (layers[0].time == 1 && layers[0].batch <= kFewRows) return RunDecoderStep(layers, count, pool);
  // In place from the first layer on: a layer's input is read for the last time before its output is written.
  float* x = layers[count - 1].out;
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0) layers[i].x = x;
    layers[i].out = x;
    RunDecoderBlock(layers[i], pool);
  }
}

namespace {

// Query positions per piece of attention: the key range of later pieces is longer, so small pieces skip more of what causality
// hides; but every piece packs its keys.
constexpr int64_t kQueriesPerPiece = 64;

class BlockJob {
 public:
  BlockJob(const DecoderLayer& layer, int threads) : l_(layer), kernels_(BestKernels()) {
    const int64_t rows = l_.rows(), q_width = l_.q.rows, kv_width = l_.k.rows;
    q_.Reset(rows * q_width);
    k_.Reset(rows * kv_width);
    v_.Reset(rows * kv_width);
    attended_.Reset(rows * q_width);
    hidden_.Reset(rows * l_.width());
    gated_.Reset(rows * l_.gate.rows);
    normed_.Init(kernels_, l_.weights, rows, l_.width());
    merged_.Init(kernels_, l_.weights, rows, q_width);
    inner_.Init(kernels_, l_.weights, rows, l_.gate.rows);
    projections_[0] = ProductPieces(kernels_, l_.q, normed_);
    projections_[1] = ProductPieces(kernels_, l_.k, normed_);
    projections_[2] = ProductPieces(kernels_, l_.v, normed_);
    blocks_ = (l_.time + kQueriesPerPiece - 1) / kQueriesPerPiece;
    const int64_t tiles = normed_.tiles();
    const int64_t pieces[kPhases] = {
        tiles, projections_[0] + projections_[1] + projections_[2],
        rows,  l_.batch * l_.key_heads * blocks_,
        tiles, ProductPieces(kernels_, l_.o, merged_),
        tiles, ProductPieces(kernels_, l_.gate, normed_),
        tiles, ProductPieces(kernels_, l_.down, inner_),
    };
    for (int i = 0; i < kPhases; ++i) phases_[i].Init(pieces[i], threads);
  }

  void Work(int thread) {
    ProductScratch scratch;
    AttentionScratch attention;
    PhaseWalk phase(phases_, thread);
    phase([&](int64_t tile) { NormTile(tile, l_.x, l_.input_norm, scratch); });
    phase([&](int64_t piece) { ProjectPiece(piece, scratch); });
    phase([&](int64_t row) { RotateRow(row, scratch); });
    phase([&](int64_t piece) { AttendPiece(piece, attention); });
    phase([&](int64_t tile) { PackTile(kernels_, merged_, tile, l_.q.rows, attended_.data()); });
    phase([&](int64_t piece) { AddPiece(l_.o, merged_, piece, l_.x, hidden_.data(), scratch); });
    phase([&](int64_t tile) { NormTile(tile, hidden_.data(), l_.post_norm, scratch); });
    phase([&](int64_t piece) { GatePiece(piece, scratch); });
    phase([&](int64_t tile) { PackTile(kernels_, inner_, tile, l_.gate.rows, gated_.data()); });
    phase([&](int64_t piece) { AddPiece(l_.down, inner_, piece, hidden_.data(), l_.out, scratch); });
  }

 private:
  static constexpr int kPhases = 10;

  void NormTile(int64_t tile, const float* x, const float* norm, ProductScratch& scratch) {
    const int64_t width = l_.width();
    PackTile(kernels_, normed_, tile, width, scratch,
             [&](int64_t row, float* to) { kernels_.rms_norm(x + row * width, norm, width, l_.eps, to); });
  }

  void ProjectPiece(int64_t piece, ProductScratch& scratch) {
    const Matrix* matrices[3] = {&l_.q, &l_.k, &l_.v};
    float* out[3] = {q_.data(), k_.data(), v_.data()};
    int i = 0;
    while (piece >= projections_[i]) piece -= projections_[i++];
    const Matrix& m = *matrices[i];
    Multiply(kernels_, m, normed_, piece, scratch, [&](int64_t row, const float* sums, int64_t column, int64_t columns) {
      kernels_.finish(sums, columns, At(m.scales, column), nullptr, nullptr, out[i] + row * m.rows + column);
    });
  }

  // Queries are normed and rotated where they are; keys and values go into the cache.
  void RotateRow(int64_t row, ProductScratch& scratch) {
    const int64_t h = l_.head_dim, b = row / l_.time, slot = l_.start[b] + row % l_.time;
    scratch.rows.Reset(h);
    float* key = scratch.rows.data();
    for (int64_t head = 0; head < l_.key_heads; ++head) {
      for (int64_t g = 0; g < l_.groups; ++g) {
        float* q = q_.data() + row * l_.q.rows + (head * l_.groups + g) * h;
        NormAndRotate(kernels_, l_, q, l_.q_norm, row, q);
      }
      NormAndRotate(kernels_, l_, k_.data() + row * l_.k.rows + head * h, l_.k_norm, row, key);
      kernels_.store(l_.cache, key, h, l_.Slot(l_.k_cache, b, head, slot));
      kernels_.store(l_.cache, v_.data() + row * l_.v.rows + head * h, h, l_.Slot(l_.v_cache, b, head, slot));
    }
  }

  // All query heads of one key head, for one block of a row's new tokens.
  void AttendPiece(int64_t piece, AttentionScratch& scratch) {
    const int64_t block = blocks_ - 1 - piece % blocks_;  // the longest first
    const int64_t head = piece / blocks_ % l_.key_heads, b = piece / blocks_ / l_.key_heads;
    const int64_t begin = l_.time * block / blocks_, end = l_.time * (block + 1) / blocks_;
    const Attention attention = {l_.cache, l_.head_dim, l_.head_dim, l_.Slot(l_.k_cache, b, head, 0),
                                 l_.Slot(l_.v_cache, b, head, 0)};
    const int64_t count = (end - begin) * l_.groups;
    Buffer<const float*> q(count);
    Buffer<float*> out(count);
    Buffer<int64_t> limits(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = begin + i / l_.groups;
      const int64_t at = (b * l_.time + t) * l_.q.rows + (head * l_.groups + i % l_.groups) * l_.head_dim;
      q[i] = q_.data() + at;
      out[i] = attended_.data() + at;
      limits[i] = l_.start[b] + t + 1;
    }
    Attend(kernels_, attention, count, q.data(), limits.data(), out.data(), scratch);
  }

  void AddPiece(const Matrix& m, const PackedRows& x, int64_t piece, const float* residual, float* out,
                ProductScratch& scratch) {
    Multiply(kernels_, m, x, piece, scratch, [&](int64_t row, const float* sums, int64_t column, int64_t columns) {
      const int64_t at = row * m.rows + column;
      kernels_.finish(sums, columns, At(m.scales, column), nullptr, residual + at, out + at);
    });
  }

  void GatePiece(int64_t piece, ProductScratch& scratch) {
    const ProductPiece p = PieceOf(kernels_, l_.gate, normed_, piece);
    MultiplyPiece(kernels_, l_.gate, normed_, p, scratch.panel, scratch.sums);
    MultiplyPiece(kernels_, l_.up, normed_, p, scratch.panel, scratch.more_sums);
    float *gate = scratch.sums.data(), *up = scratch.more_sums.data();
    const int64_t panel = kernels_.panel;
    if (l_.gate.scales != nullptr) {
      for (int64_t i = 0; i < p.rows; ++i) {
        kernels_.finish(gate + i * panel, p.columns, l_.gate.scales + p.column, nullptr, nullptr, gate + i * panel);
        kernels_.finish(up + i * panel, p.columns, l_.up.scales + p.column, nullptr, nullptr, up + i * panel);
      }
    }
    kernels_.swiglu(gate, up, p.rows * panel, gate);  // columns behind the last are zeros
    for (int64_t i = 0; i < p.rows; ++i) {
      std::memcpy(gated_.data() + (p.row + i) * l_.gate.rows + p.column, gate + i * panel, p.columns * sizeof(float));
    }
  }

  const DecoderLayer l_;
  const Kernels& kernels_;
  int64_t projections_[3];
  int64_t blocks_;
  Phase phases_[kPhases];
  Buffer<float> q_, k_, v_, attended_, hidden_, gated_;
  PackedRows normed_, merged_, inner_;
};

}  // namespace

void RunDecoderBlock(const DecoderLayer& layer, Pool& pool) {
  const int threads = ThreadsOf(pool);
  RunOnTeam(std::make_shared<BlockJob>(layer, threads), pool, threads);
}

}  // namespace qwen_asr
