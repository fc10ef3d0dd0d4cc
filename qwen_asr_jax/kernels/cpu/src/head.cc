#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "linear.h"
#include "rows.h"
#include "team.h"

namespace qwen_asr {

namespace {

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

}  // namespace

void RunHead(const Head& head, Pool& pool) {
  const int threads = ThreadsOf(pool);
  auto job = std::make_shared<HeadJob>(head, threads);
  RunOnTeam(job, pool, threads);
  job->Finish();
}

}  // namespace qwen_asr
