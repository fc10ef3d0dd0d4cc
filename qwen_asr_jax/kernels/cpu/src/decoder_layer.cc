#include "decoder_layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "half.h"
#include "team.h"

namespace qwen_asr {

namespace {

// Bytes of weights per piece of work: small enough that a late or interrupted thread holds up little, and long enough that the
// counters cost nothing.
constexpr int64_t kPieceBytes = 64 << 10;

// Cache slots per piece of attention.
constexpr int64_t kBlockSlots = 256;

int64_t RowsPerPiece(Type weights, const Matrix& m) {
  return std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, m.cols * SizeOf(weights)));
}

int64_t Pieces(Type weights, const Matrix& m) {
  const int64_t rows = RowsPerPiece(weights, m);
  return (m.rows + rows - 1) / rows;
}

// Memory for `count` vectors prepared for one weight type.
class Operands {
 public:
  bool ready() const { return !operands_.empty(); }

  template <typename Fill>
  void Make(const Kernels& kernels, Type weights, int64_t batch, int64_t n, const Fill& fill) {
    const size_t size = (kernels.prepared_size(weights, n) + 63) / 64 * 64;
    bytes_.resize(size * batch + 64);
    auto* begin = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(bytes_.data()) + 63) / 64 * 64);
    std::vector<float> x(n);
    operands_.resize(batch);
    for (int64_t b = 0; b < batch; ++b) {
      fill(b, x.data());
      operands_[b] = kernels.prepare(weights, x.data(), n, begin + b * size);
    }
  }

  const Operand* data() const { return operands_.data(); }

 private:
  std::vector<uint8_t> bytes_;
  std::vector<Operand> operands_;
};

void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void Rotate(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    x[i] = first * cos[i] - second * sin[i];
    x[i + half] = second * cos[i] + first * sin[i];
  }
}

void DotPiece(const Kernels& kernels, Type weights, const Matrix& m, int64_t piece, const Operand* x, int64_t batch, float* y,
              int64_t stride) {
  const int64_t per_piece = RowsPerPiece(weights, m);
  const int64_t begin = piece * per_piece, rows = std::min(per_piece, m.rows - begin);
  const auto* values = static_cast<const uint8_t*>(m.values) + begin * m.cols * SizeOf(weights);
  kernels.dot(weights, values, m.scales == nullptr ? nullptr : m.scales + begin, rows, m.cols, x, batch, y + begin, stride);
}

// Runs `job->Work(thread)` on the calling thread and on those that the pool lends. The job lives until the last of them is
// done with it; one that comes after the work is finished finds nothing to do.
template <typename Job>
void RunOnTeam(std::shared_ptr<Job> job, Pool& pool, int threads) {
  struct Late {
    std::shared_ptr<Job> job;
    int thread;
  };
  for (int t = 1; t < threads; ++t) {
    pool.Start(
        [](void* data) {
          std::unique_ptr<Late> late(static_cast<Late*>(data));
          late->job->Work(late->thread);
        },
        new Late{job, t});
  }
  job->Work(0);
}

// ---- Decoder layer ------------------------------------------------------------------------------------------------------------

class LayerJob {
 public:
  LayerJob(const DecoderLayer& layer, int threads) : l_(layer), kernels_(BestKernels()) {
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
                    [&](int64_t b, float* x) { RmsNorm(l_.x + b * width, l_.input_norm, width, l_.eps, x); });
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
                   [&](int64_t b, float* x) { RmsNorm(hidden_.data() + b * width, l_.post_norm, width, l_.eps, x); });
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
    const size_t size = SizeOf(l_.cache);
    const int64_t row = (b * l_.key_heads + head) * l_.slots;
    auto* keys = static_cast<uint8_t*>(l_.k_cache) + (row + begin) * h * size;
    auto* values = static_cast<uint8_t*>(l_.v_cache) + (row + begin) * h * size;
    scratch.resize(groups * (h + slots) + h);
    float *q = scratch.data(), *scores = q + groups * h, *key = scores + groups * slots;
    const float *cos = l_.cos + b * h / 2, *sin = l_.sin + b * h / 2;
    const bool newest = begin + slots == l_.start[b] + 1;
    if (newest) {
      RmsNorm(k_.data() + (b * l_.key_heads + head) * h, l_.k_norm, h, l_.eps, key);
      Rotate(key, cos, sin, h / 2);
      kernels_.store(l_.cache, key, h, keys + (slots - 1) * h * size);
      kernels_.store(l_.cache, v_.data() + (b * l_.key_heads + head) * h, h, values + (slots - 1) * h * size);
    }
    const float scale = 1.0f / std::sqrt(static_cast<float>(h));
    for (int64_t g = 0; g < groups; ++g) {
      float* each = q + g * h;
      RmsNorm(q_.data() + ((b * l_.key_heads + head) * groups + g) * h, l_.q_norm, h, l_.eps, each);
      Rotate(each, cos, sin, h / 2);
      if (l_.cache != Type::kF32) {  // queries are rounded like the keys that they meet
        for (int64_t i = 0; i < h; ++i) {
          each[i] = l_.cache == Type::kBF16 ? FromBF16(ToBF16(each[i])) : FromF16(ToF16(each[i]));
        }
      }
    }
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
      for (int64_t r = b * rows + begin; r < b * rows + end; ++r) {
        gated_[r] = gated_[r] / (1.0f + std::exp(-gated_[r])) * scratch[r];
      }
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

// ---- Head and plain products ---------------------------------------------------------------------------------------------------

class HeadJob {
 public:
  HeadJob(const Head& head, int threads) : h_(head), kernels_(BestKernels()) {
    const int64_t pieces = Pieces(h_.weights, h_.matrix);
    best_.resize(pieces * h_.batch);
    phase_.Init(pieces, threads);
  }

  void Work(int thread) {
    Operands x;
    std::vector<float> logits;
    const int64_t width = h_.matrix.cols, per_piece = RowsPerPiece(h_.weights, h_.matrix);
    phase_.Run(thread, [&](int64_t piece) {
      if (!x.ready()) {
        x.Make(kernels_, h_.weights, h_.batch, width,
               [&](int64_t b, float* to) { std::memcpy(to, h_.x + b * width, width * sizeof(float)); });
        logits.resize(h_.batch * per_piece);
      }
      const int64_t begin = piece * per_piece, rows = std::min(per_piece, h_.matrix.rows - begin);
      const auto* values = static_cast<const uint8_t*>(h_.matrix.values) + begin * width * SizeOf(h_.weights);
      kernels_.dot(h_.weights, values, h_.matrix.scales == nullptr ? nullptr : h_.matrix.scales + begin, rows, width, x.data(),
                   h_.batch, logits.data(), per_piece);
      for (int64_t b = 0; b < h_.batch; ++b) best_[piece * h_.batch + b] = BestOf(logits.data() + b * per_piece, rows, begin);
    });
    phase_.Wait();
  }

  void Finish() {
    for (int64_t b = 0; b < h_.batch; ++b) {
      Best best = best_[b];
      for (size_t i = h_.batch + b; i < best_.size(); i += h_.batch) {
        const Best& next = best_[i];
        const float larger = std::max(best.top, next.top);
        if (std::isinf(larger)) {
          best.sum = best.top == next.top ? best.sum + next.sum : best.top > next.top ? best.sum : next.sum;
        } else {
          best.sum = best.sum * std::exp(best.top - larger) + next.sum * std::exp(next.top - larger);
        }
        if (!std::isnan(best.top) && (next.top > best.top || std::isnan(next.top))) {
          best.top = next.top;
          best.token = next.token;
        }
      }
      h_.token[b] = best.token;
      h_.top[b] = best.top;
      h_.log_sum[b] = best.top + std::log(best.sum);
    }
  }

 private:
  struct Best {
    float top;
    float sum;  // of exp(logit - top)
    int32_t token;
  };

  Best BestOf(float* logits, int64_t rows, int64_t begin) const {
    const float top = kernels_.largest(logits, rows);
    int64_t at = 0;
    while (std::isnan(top) ? !std::isnan(logits[at]) : logits[at] != top) ++at;
    if (std::isinf(top)) return {top, static_cast<float>(std::count(logits, logits + rows, top)), static_cast<int32_t>(begin + at)};
    return {top, kernels_.exponentials(logits, rows, 1.0f, top), static_cast<int32_t>(begin + at)};
  }

  const Head h_;
  const Kernels& kernels_;
  Phase phase_;
  std::vector<Best> best_;
};

class LinearJob {
 public:
  LinearJob(const Linear& linear, int threads) : l_(linear), kernels_(BestKernels()) {
    phase_.Init(Pieces(l_.weights, l_.matrix), threads);
  }

  void Work(int thread) {
    Operands x;
    const int64_t width = l_.matrix.cols;
    phase_.Run(thread, [&](int64_t piece) {
      if (!x.ready()) {
        x.Make(kernels_, l_.weights, l_.batch, width,
               [&](int64_t b, float* to) { std::memcpy(to, l_.x + b * width, width * sizeof(float)); });
      }
      DotPiece(kernels_, l_.weights, l_.matrix, piece, x.data(), l_.batch, l_.out, l_.matrix.rows);
    });
    phase_.Wait();
  }

 private:
  const Linear l_;
  const Kernels& kernels_;
  Phase phase_;
};

int ThreadsOf(const Pool& pool) { return std::clamp(pool.Threads(), 1, kMaxThreads); }

}  // namespace

void RunDecoderLayer(const DecoderLayer& layer, Pool& pool) {
  const int threads = ThreadsOf(pool);
  RunOnTeam(std::make_shared<LayerJob>(layer, threads), pool, threads);
}

void RunHead(const Head& head, Pool& pool) {
  const int threads = ThreadsOf(pool);
  auto job = std::make_shared<HeadJob>(head, threads);
  RunOnTeam(job, pool, threads);
  job->Finish();
}

void RunLinear(const Linear& linear, Pool& pool) {
  const int threads = ThreadsOf(pool);
  RunOnTeam(std::make_shared<LinearJob>(linear, threads), pool, threads);
}

}  // namespace qwen_asr
