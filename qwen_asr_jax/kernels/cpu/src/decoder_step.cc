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
  StepJob(const DecoderLayer& layer, int threads) : l_(layer), kernels_(BestKernels()) {
    const int64_t heads = l_.key_heads * l_.groups;
    q_.resize(l_.batch * heads * l_.head_dim);
    k_.resize(l_.batch * l_.key_heads * l_.head_dim);
    v_.resize(k_.size());
    hidden_.resize(l_.batch * l_.o.rows);
    gated_.resize(l_.batch * l_.gate.rows);
    first_block_.resize(l_.batch + 1);
    for (int64_t b = 0; b < l_.batch; ++b) first_block_[b + 1] = first_block_[b] + (l_.start[b] + kBlockSlots) / kBlockSlots;
    const int64_t blocks = first_block_[l_.batch] * l_.key_heads;
    sums_.resize(blocks * l_.groups * l_.head_dim);
    largest_.resize(blocks * l_.groups);
    weight_.resize(blocks * l_.groups);
    pieces_[0] = Pieces(l_.weights, l_.q);
    pieces_[1] = Pieces(l_.weights, l_.k);
    pieces_[2] = Pieces(l_.weights, l_.v);
    phases_[0].Init(pieces_[0] + pieces_[1] + pieces_[2], threads);
    phases_[1].Init(blocks, threads);
    phases_[2].Init(Pieces(l_.weights, l_.o), threads);
    phases_[3].Init(Pieces(l_.weights, l_.gate), threads);
    phases_[4].Init(Pieces(l_.weights, l_.down), threads);
  }

  void Work(int thread) {
    Operands normed, attended, inner, gated;
    std::vector<float> scratch;
    const int64_t width = l_.q.cols;
    phases_[0].Run(thread, [&](int64_t piece) {
      if (!normed.ready()) {
        normed.Make(kernels_, l_.weights, l_.batch, width,
                    [&](int64_t b, float* x) { kernels_.rms_norm(l_.x + b * width, l_.input_norm, width, l_.eps, x); });
      }
      ProjectPiece(piece, normed.data());
    });
    phases_[0].Wait();
    phases_[1].Run(thread, [&](int64_t piece) { AttendBlock(piece, scratch); });
    phases_[1].Wait();
    phases_[2].Run(thread, [&](int64_t piece) {
      if (!attended.ready()) {
        attended.Make(kernels_, l_.weights, l_.batch, l_.o.cols, [&](int64_t b, float* x) { Merge(b, x); });
      }
      AddPiece(l_.o, piece, attended.data(), l_.x, hidden_.data());
    });
    phases_[2].Wait();
    phases_[3].Run(thread, [&](int64_t piece) {
      if (!inner.ready()) {
        inner.Make(kernels_, l_.weights, l_.batch, width,
                   [&](int64_t b, float* x) { kernels_.rms_norm(hidden_.data() + b * width, l_.post_norm, width, l_.eps, x); });
      }
      GatePiece(piece, inner.data(), scratch);
    });
    phases_[3].Wait();
    phases_[4].Run(thread, [&](int64_t piece) {
      const int64_t n = l_.down.cols;
      if (!gated.ready()) {
        gated.Make(kernels_, l_.weights, l_.batch, n,
                   [&](int64_t b, float* x) { std::memcpy(x, gated_.data() + b * n, n * sizeof(float)); });
      }
      AddPiece(l_.down, piece, gated.data(), hidden_.data(), l_.out);
    });
    phases_[4].Wait();
  }

 private:
  void ProjectPiece(int64_t piece, const Operand* x) {
    const Matrix* matrices[3] = {&l_.q, &l_.k, &l_.v};
    float* out[3] = {q_.data(), k_.data(), v_.data()};
    int i = 0;
    while (piece >= pieces_[i]) piece -= pieces_[i++];
    DotPiece(kernels_, l_.weights, *matrices[i], piece, x, l_.batch, out[i], matrices[i]->rows);
  }

  // Scores, softmax and weighted sum over one block of one row's slots, for the query heads of one key head. The block that holds
  // the new token's slot writes its key and value first.
  void AttendBlock(int64_t piece, std::vector<float>& scratch) {
    const int64_t block = piece / l_.key_heads, head = piece % l_.key_heads;
    const int64_t b = std::upper_bound(first_block_.begin(), first_block_.end(), block) - first_block_.begin() - 1;
    const int64_t h = l_.head_dim, groups = l_.groups;
    const int64_t begin = (block - first_block_[b]) * kBlockSlots;
    const int64_t slots = std::min(kBlockSlots, l_.start[b] + 1 - begin);
    uint8_t* keys = l_.Slot(l_.k_cache, b, head, begin);
    uint8_t* values = l_.Slot(l_.v_cache, b, head, begin);
    scratch.resize(groups * (h + slots) + h);
    float *q = scratch.data(), *scores = q + groups * h, *key = scores + groups * slots;
    if (begin + slots == l_.start[b] + 1) {
      const int64_t newest = (slots - 1) * h * static_cast<int64_t>(SizeOf(l_.cache));
      NormAndRotate(kernels_, l_, k_.data() + (b * l_.key_heads + head) * h, l_.k_norm, b, key);
      kernels_.store(l_.cache, key, h, keys + newest);
      kernels_.store(l_.cache, v_.data() + (b * l_.key_heads + head) * h, h, values + newest);
    }
    const float scale = 1.0f / std::sqrt(static_cast<float>(h));
    for (int64_t g = 0; g < groups; ++g) {
      NormAndRotate(kernels_, l_, q_.data() + ((b * l_.key_heads + head) * groups + g) * h, l_.q_norm, b, q + g * h);
    }
    kernels_.round(l_.cache, q, groups * h);  // queries are rounded like the keys that they meet
    kernels_.scores(l_.cache, keys, slots, h, q, groups, scores, slots);
    for (int64_t g = 0; g < groups; ++g) {
      float* p = scores + g * slots;
      const float largest = kernels_.largest(p, slots) * scale;
      largest_[piece * groups + g] = largest;
      weight_[piece * groups + g] = kernels_.exponentials(p, slots, scale, largest);
    }
    float* sums = sums_.data() + piece * groups * h;
    kernels_.weighted_sum(l_.cache, values, slots, h, scores, groups, slots, sums);
  }

  // One row's attention output [N * H] from its blocks.
  void Merge(int64_t b, float* out) const {
    const int64_t h = l_.head_dim;
    for (int64_t head = 0; head < l_.key_heads; ++head) {
      for (int64_t g = 0; g < l_.groups; ++g, out += h) {
        float largest = -std::numeric_limits<float>::infinity();
        for (int64_t block = first_block_[b]; block < first_block_[b + 1]; ++block) {
          largest = std::max(largest, largest_[(block * l_.key_heads + head) * l_.groups + g]);
        }
        float total = 0.0f;
        std::fill(out, out + h, 0.0f);
        for (int64_t block = first_block_[b]; block < first_block_[b + 1]; ++block) {
          const int64_t i = (block * l_.key_heads + head) * l_.groups + g;
          const float factor = std::exp(largest_[i] - largest);
          total += factor * weight_[i];
          for (int64_t j = 0; j < h; ++j) out[j] += factor * sums_[i * h + j];
        }
        for (int64_t j = 0; j < h; ++j) out[j] /= total;
      }
    }
  }

  void AddPiece(const Matrix& m, int64_t piece, const Operand* x, const float* residual, float* out) {
    DotPiece(kernels_, l_.weights, m, piece, x, l_.batch, out, m.rows);
    const int64_t per_piece = RowsPerPiece(l_.weights, m);
    const int64_t begin = piece * per_piece, end = std::min(m.rows, begin + per_piece);
    for (int64_t b = 0; b < l_.batch; ++b) {
      for (int64_t r = begin; r < end; ++r) out[b * m.rows + r] += residual[b * m.rows + r];
    }
  }

  void GatePiece(int64_t piece, const Operand* x, std::vector<float>& scratch) {
    const int64_t rows = l_.gate.rows, per_piece = RowsPerPiece(l_.weights, l_.gate);
    const int64_t begin = piece * per_piece, end = std::min(rows, begin + per_piece);
    DotPiece(kernels_, l_.weights, l_.gate, piece, x, l_.batch, gated_.data(), rows);
    scratch.resize(std::max<size_t>(scratch.size(), l_.batch * rows));
    DotPiece(kernels_, l_.weights, l_.up, piece, x, l_.batch, scratch.data(), rows);
    for (int64_t b = 0; b < l_.batch; ++b) {
      float* gate = gated_.data() + b * rows + begin;
      kernels_.swiglu(gate, scratch.data() + b * rows + begin, end - begin, gate);
    }
  }

  const DecoderLayer l_;
  const Kernels& kernels_;
  int64_t pieces_[3];
  Phase phases_[5];
  std::vector<int64_t> first_block_;  // of each row, over all rows' blocks
  std::vector<float> q_, k_, v_, hidden_, gated_;
  std::vector<float> sums_, largest_, weight_;  // per block, key head and group
};

}  // namespace

void RunDecoderStep(const DecoderLayer& layer, Pool& pool) {
  const int threads = ThreadsOf(pool);
  RunOnTeam(std::make_shared<StepJob>(layer, threads), pool, threads);
}

}  // namespace qwen_asr
