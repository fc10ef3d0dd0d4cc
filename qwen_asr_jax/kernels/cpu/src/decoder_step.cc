// A decode step: one new token per row, for few rows. Weights are read once, in one stream per thread.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "decoder_layer.h"
#include "rows.h"
#include "team.h"

namespace qwen_asr {

namespace {

// Cache slots per piece of attention.
constexpr int64_t kBlockSlots = 256;

class StepJob {
 public:
  StepJob(const DecoderLayer* layers, int64_t count, int threads)
      : layers_(layers, layers + count), kernels_(BestKernels()), phases_(count * kPhases) {
    const DecoderLayer& first = layers_[0];
    batch_ = first.batch;
    q_.Reset(batch_ * first.q.rows);
    k_.Reset(batch_ * first.k.rows);
    v_.Reset(batch_ * first.v.rows);
    for (auto& each : x_) each.Reset(batch_ * first.width());
    hidden_.Reset(batch_ * first.width());
    gated_.Reset(batch_ * first.gate.rows);
    first_block_.resize(batch_ + 1);
    for (int64_t b = 0; b < batch_; ++b) {
      first_block_[b + 1] = first_block_[b] + (first.start[b] + kBlockSlots) / kBlockSlots;
    }
    const int64_t blocks = first_block_[batch_] * first.key_heads;
    sums_.Reset(blocks * first.groups * first.head_dim);
    largest_.Reset(blocks * first.groups);
    weight_.Reset(blocks * first.groups);
    pieces_[0] = Pieces(first.weights, first.q);
    pieces_[1] = Pieces(first.weights, first.k);
    pieces_[2] = Pieces(first.weights, first.v);
    for (int64_t i = 0; i < count; ++i) {
      Phase* phases = phases_.data() + i * kPhases;
      phases[0].Init(pieces_[0] + pieces_[1] + pieces_[2], threads);
      phases[1].Init(blocks, threads);
      phases[2].Init(Pieces(first.weights, first.o), threads);
      phases[3].Init(Pieces(first.weights, first.gate), threads);
      phases[4].Init(Pieces(first.weights, first.down), threads);
      // Between layers the hidden state is ours; the first reads the caller's, and the last writes there.
      if (i > 0) layers_[i].x = x_[i % 2].data();
      if (i + 1 < count) layers_[i].out = x_[(i + 1) % 2].data();
    }
  }

  // Everything that a thread reads or writes of the layers it does inside of pieces, so that none of it can come too late.
  void Work(int thread) {
    Operands operands;
    Buffer<float> scratch;
    for (size_t i = 0; i < layers_.size(); ++i) {
      const DecoderLayer& l = layers_[i];
      Phase* next = phases_.data() + i * kPhases;
      const auto phase = [&](int64_t depth, const auto& fill, const auto& work) {
        bool ready = false;
        next->Run(thread, [&](int64_t piece) {
          if (!ready && depth > 0) operands.Make(kernels_, l.weights, batch_, depth, fill);
          ready = true;
          work(piece);
        });
        (next++)->Wait();
      };
      const int64_t width = l.width(), inner = l.down.cols;
      phase(
          width, [&](int64_t b, float* x) { kernels_.rms_norm(l.x + b * width, l.input_norm, width, l.eps, x); },
          [&](int64_t piece) { ProjectPiece(l, piece, operands.data()); });
      phase(
          0, [](int64_t, float*) {}, [&](int64_t piece) { AttendBlock(l, piece, scratch); });
      phase(
          l.o.cols, [&](int64_t b, float* x) { Merge(l, b, x); },
          [&](int64_t piece) { AddPiece(l.weights, l.o, piece, operands.data(), l.x, hidden_.data()); });
      phase(
          width,
          [&](int64_t b, float* x) { kernels_.rms_norm(hidden_.data() + b * width, l.post_norm, width, l.eps, x); },
          [&](int64_t piece) { GatePiece(l, piece, operands.data(), scratch); });
      phase(
          inner, [&](int64_t b, float* x) { std::memcpy(x, gated_.data() + b * inner, inner * sizeof(float)); },
          [&](int64_t piece) { AddPiece(l.weights, l.down, piece, operands.data(), hidden_.data(), l.out); });
    }
  }

 private:
  static constexpr int kPhases = 5;

  void ProjectPiece(const DecoderLayer& l, int64_t piece, const Operand* x) {
    const Matrix* matrices[3] = {&l.q, &l.k, &l.v};
    float* out[3] = {q_.data(), k_.data(), v_.data()};
    int i = 0;
    while (piece >= pieces_[i]) piece -= pieces_[i++];
    DotPiece(kernels_, l.weights, *matrices[i], piece, x, batch_, out[i], matrices[i]->rows);
  }

  // Scores, softmax and weighted sum over one block of one row's slots, for the query heads of one key head. The block that holds
  // the new token's slot writes its key and value first.
  void AttendBlock(const DecoderLayer& l, int64_t piece, Buffer<float>& scratch) {
    const int64_t block = piece / l.key_heads, head = piece % l.key_heads;
    const int64_t b = std::upper_bound(first_block_.begin(), first_block_.end(), block) - first_block_.begin() - 1;
    const int64_t h = l.head_dim, groups = l.groups;
    const int64_t begin = (block - first_block_[b]) * kBlockSlots;
    const int64_t slots = std::min(kBlockSlots, l.start[b] + 1 - begin);
    uint8_t* keys = l.Slot(l.k_cache, b, head, begin);
    uint8_t* values = l.Slot(l.v_cache, b, head, begin);
    scratch.Reset(groups * (h + slots) + h);
    float *q = scratch.data(), *scores = q + groups * h, *key = scores + groups * slots;
    if (begin + slots == l.start[b] + 1) {
      const int64_t newest = (slots - 1) * h * static_cast<int64_t>(SizeOf(l.cache));
      NormAndRotate(kernels_, l, k_.data() + (b * l.key_heads + head) * h, l.k_norm, b, key);
      kernels_.store(l.cache, key, h, keys + newest);
      kernels_.store(l.cache, v_.data() + (b * l.key_heads + head) * h, h, values + newest);
    }
    const float scale = 1.0f / std::sqrt(static_cast<float>(h));
    for (int64_t g = 0; g < groups; ++g) {
      NormAndRotate(kernels_, l, q_.data() + ((b * l.key_heads + head) * groups + g) * h, l.q_norm, b, q + g * h);
    }
    kernels_.round(l.cache, q, groups * h);  // queries are rounded like the keys that they meet
    kernels_.scores(l.cache, keys, slots, h, q, groups, scores, slots);
    for (int64_t g = 0; g < groups; ++g) {
      float* p = scores + g * slots;
      const float largest = kernels_.largest(p, slots) * scale;
      largest_[piece * groups + g] = largest;
      weight_[piece * groups + g] = kernels_.exponentials(p, slots, scale, largest);
    }
    float* sums = sums_.data() + piece * groups * h;
    std::fill(sums, sums + groups * h, 0.0f);
    kernels_.weighted_sum(l.cache, values, slots, h, scores, groups, slots, sums);
  }

  // One row's attention output [N * H] from its blocks.
  void Merge(const DecoderLayer& l, int64_t b, float* out) const {
    const int64_t h = l.head_dim;
    for (int64_t head = 0; head < l.key_heads; ++head) {
      for (int64_t g = 0; g < l.groups; ++g, out += h) {
        float largest = -std::numeric_limits<float>::infinity();
        for (int64_t block = first_block_[b]; block < first_block_[b + 1]; ++block) {
          largest = std::max(largest, largest_[(block * l.key_heads + head) * l.groups + g]);
        }
        float total = 0.0f;
        std::fill(out, out + h, 0.0f);
        for (int64_t block = first_block_[b]; block < first_block_[b + 1]; ++block) {
          const int64_t i = (block * l.key_heads + head) * l.groups + g;
          const float factor = std::exp(largest_[i] - largest);
          total += factor * weight_[i];
          for (int64_t j = 0; j < h; ++j) out[j] += factor * sums_[i * h + j];
        }
        for (int64_t j = 0; j < h; ++j) out[j] /= total;
      }
    }
  }

  void AddPiece(Type weights, const Matrix& m, int64_t piece, const Operand* x, const float* residual, float* out) {
    DotPiece(kernels_, weights, m, piece, x, batch_, out, m.rows);
    const int64_t per_piece = RowsPerPiece(weights, m);
    const int64_t begin = piece * per_piece, end = std::min(m.rows, begin + per_piece);
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t r = begin; r < end; ++r) out[b * m.rows + r] += residual[b * m.rows + r];
    }
  }

  void GatePiece(const DecoderLayer& l, int64_t piece, const Operand* x, Buffer<float>& scratch) {
    const int64_t rows = l.gate.rows, per_piece = RowsPerPiece(l.weights, l.gate);
    const int64_t begin = piece * per_piece, end = std::min(rows, begin + per_piece);
    DotPiece(kernels_, l.weights, l.gate, piece, x, batch_, gated_.data(), rows);
    scratch.Reset(batch_ * rows);
    DotPiece(kernels_, l.weights, l.up, piece, x, batch_, scratch.data(), rows);
    for (int64_t b = 0; b < batch_; ++b) {
      float* gate = gated_.data() + b * rows + begin;
      kernels_.swiglu(gate, scratch.data() + b * rows + begin, end - begin, gate);
    }
  }

  std::vector<DecoderLayer> layers_;
  const Kernels& kernels_;
  std::vector<Phase> phases_;
  int64_t batch_;
  int64_t pieces_[3];
  std::vector<int64_t> first_block_;  // of each row, over all rows' blocks
  Buffer<float> q_, k_, v_, hidden_, gated_;
  Buffer<float> x_[2];
  Buffer<float> sums_, largest_, weight_;  // per block, key head and group
};

}  // namespace

void RunDecoderStep(const DecoderLayer* layers, int64_t count, Pool& pool) {
  const int threads = ThreadsOf(pool);
  RunOnTeam(std::make_shared<StepJob>(layers, count, threads), pool, threads);
}

}  // namespace qwen_asr
