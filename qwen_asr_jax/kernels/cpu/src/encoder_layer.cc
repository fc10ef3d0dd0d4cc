#include "encoder_layer.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "attention.h"

namespace qwen_asr {

namespace {

class EncoderJob {
 public:
  EncoderJob(const EncoderLayer& layer, int threads) : l_(layer), kernels_(BestKernels()) {
    const int64_t rows = l_.rows(), width = l_.width();
    q_.Reset(rows * width);
    keys_.Reset(rows * width * static_cast<int64_t>(SizeOf(l_.operands)));
    values_.Reset(rows * width * static_cast<int64_t>(SizeOf(l_.operands)));
    attended_.Reset(rows * width);
    hidden_.Reset(rows * width);
    inner_.Reset(rows * l_.fc1.rows);
    normed_.Init(kernels_, l_.weights, rows, width);
    packed_inner_.Init(kernels_, l_.weights, rows, l_.fc1.rows);
    projection_ = ProductPieces(kernels_, l_.q, normed_);
    const int64_t tiles = normed_.tiles();
    const int64_t pieces[kPhases] = {
        tiles, 3 * projection_, l_.batch * l_.windows * l_.heads,
        tiles, ProductPieces(kernels_, l_.out_proj, normed_),
        tiles, ProductPieces(kernels_, l_.fc1, normed_),
        tiles, ProductPieces(kernels_, l_.fc2, packed_inner_),
    };
    for (int i = 0; i < kPhases; ++i) phases_[i].Init(pieces[i], threads);
  }

  void Work(int thread) {
    ProductScratch scratch;
    AttentionScratch attention;
    PhaseWalk phase(phases_, thread);
    phase([&](int64_t tile) { NormTile(tile, l_.x, l_.attention_norm, l_.attention_norm_bias, scratch); });
    phase([&](int64_t piece) { ProjectPiece(piece, scratch); });
    phase([&](int64_t piece) { AttendPiece(piece, attention); });
    phase([&](int64_t tile) { PackTile(kernels_, normed_, tile, l_.width(), attended_.data()); });
    phase([&](int64_t piece) { AddPiece(l_.out_proj, l_.out_bias, normed_, piece, l_.x, hidden_.data(), 0.0f, scratch); });
    phase([&](int64_t tile) { NormTile(tile, hidden_.data(), l_.mlp_norm, l_.mlp_norm_bias, scratch); });
    phase([&](int64_t piece) { ActivatePiece(piece, scratch); });
    phase([&](int64_t tile) { PackTile(kernels_, packed_inner_, tile, l_.fc1.rows, inner_.data()); });
    phase([&](int64_t piece) { AddPiece(l_.fc2, l_.fc2_bias, packed_inner_, piece, hidden_.data(), l_.out, l_.limit, scratch); });
  }

 private:
  static constexpr int kPhases = 9;

  void NormTile(int64_t tile, const float* x, const float* norm, const float* bias, ProductScratch& scratch) {
    const int64_t width = l_.width();
    PackTile(kernels_, normed_, tile, width, scratch,
             [&](int64_t row, float* to) { kernels_.layer_norm(x + row * width, norm, bias, width, l_.eps, to); });
  }

  void ProjectPiece(int64_t piece, ProductScratch& scratch) {
    const int which = static_cast<int>(piece / projection_);
    const Matrix& m = which == 0 ? l_.q : which == 1 ? l_.k : l_.v;
    const float* bias = which == 0 ? l_.q_bias : which == 1 ? l_.k_bias : l_.v_bias;
    uint8_t* stored = which == 1 ? keys_.data() : values_.data();
    const int64_t size = static_cast<int64_t>(SizeOf(l_.operands));
    Multiply(kernels_, m, normed_, piece % projection_, scratch, [&](int64_t row, float* sums, int64_t column, int64_t columns) {
      const int64_t at = row * m.rows + column;
      float* out = which == 0 ? q_.data() + at : sums;
      kernels_.finish(sums, columns, At(m.scales, column), At(bias, column), nullptr, out);
      if (which > 0) kernels_.store(l_.operands, out, columns, stored + at * size);
    });
  }

  void AttendPiece(int64_t piece, AttentionScratch& scratch) {
    const int64_t head = piece % l_.heads, window = piece / l_.heads % l_.windows, b = piece / l_.heads / l_.windows;
    const int64_t width = l_.width(), h = width / l_.heads, size = static_cast<int64_t>(SizeOf(l_.operands));
    const int64_t begin = window * l_.window, count = std::min(l_.window, l_.time - begin);
    if (count <= 0) return;
    const int64_t first = (b * l_.time + begin) * width + head * h;
    const Attention attention = {l_.operands, h, width, keys_.data() + first * size, values_.data() + first * size};
    Buffer<const float*> q(count);
    Buffer<float*> out(count);
    Buffer<int64_t> limits(count);
    for (int64_t i = 0; i < count; ++i) {
      q[i] = q_.data() + first + i * width;
      out[i] = attended_.data() + first + i * width;
      limits[i] = std::clamp<int64_t>(l_.valid[b * l_.windows + window], 0, count);
    }
    Attend(kernels_, attention, count, q.data(), limits.data(), out.data(), scratch);
  }

  void AddPiece(const Matrix& m, const float* bias, const PackedRows& x, int64_t piece, const float* residual, float* out,
                float limit, ProductScratch& scratch) {
    Multiply(kernels_, m, x, piece, scratch, [&](int64_t row, const float* sums, int64_t column, int64_t columns) {
      const int64_t at = row * m.rows + column;
      kernels_.finish(sums, columns, At(m.scales, column), At(bias, column), residual + at, out + at);
      if (limit > 0.0f) kernels_.clamp(out + at, columns, limit);
    });
  }

  void ActivatePiece(int64_t piece, ProductScratch& scratch) {
    const Matrix& m = l_.fc1;
    const ProductPiece p = PieceOf(kernels_, m, normed_, piece);
    MultiplyPiece(kernels_, m, normed_, p, scratch.panel, scratch.sums);
    const int64_t panel = kernels_.panel;
    float* sums = scratch.sums.data();
    for (int64_t i = 0; i < p.rows; ++i) {
      kernels_.finish(sums + i * panel, p.columns, At(m.scales, p.column), At(l_.fc1_bias, p.column), nullptr, sums + i * panel);
    }
    kernels_.gelu(sums, p.rows * panel);  // columns behind the last are zeros
    for (int64_t i = 0; i < p.rows; ++i) {
      std::memcpy(inner_.data() + (p.row + i) * m.rows + p.column, sums + i * panel, p.columns * sizeof(float));
    }
  }

  const EncoderLayer l_;
  const Kernels& kernels_;
  int64_t projection_;
  Phase phases_[kPhases];
  Buffer<float> q_, attended_, hidden_, inner_;
  Buffer<uint8_t> keys_, values_;
  PackedRows normed_, packed_inner_;
};

}  // namespace

void RunEncoderLayer(const EncoderLayer& layer, Pool& pool) {
  const int threads = ThreadsOf(pool);
  RunOnTeam(std::make_shared<EncoderJob>(layer, threads), pool, threads);
}

}  // namespace qwen_asr
