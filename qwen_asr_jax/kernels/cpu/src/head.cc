#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "linear.h"
#include "rows.h"
#include "team.h"

namespace qwen_asr {

namespace {

// The best of some logits, and what the logarithm of the sum of all exponentials is made of.
struct Best {
  float top;
  float sum;  // of exp(logit - top)
  int32_t token;
};

Best BestOf(const Kernels& kernels, float* logits, int64_t rows, int64_t begin) {
  const float top = kernels.largest(logits, rows);
  int64_t at = 0;
  while (std::isnan(top) ? !std::isnan(logits[at]) : logits[at] != top) ++at;
  const auto token = static_cast<int32_t>(begin + at);
  if (std::isinf(top)) return {top, static_cast<float>(std::count(logits, logits + rows, top)), token};
  return {top, kernels.exponentials(logits, rows, 1.0f, top), token};
}

// Takes in the best of later logits: of equal ones the first stays, and the first NaN wins.
void Merge(Best& best, const Best& next) {
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

// Merges one row's results of all pieces, which lie `batch` apart.
Best MergeAll(const std::vector<Best>& all, int64_t batch, int64_t b) {
  Best best = all[b];
  for (size_t i = batch + b; i < all.size(); i += batch) Merge(best, all[i]);
  return best;
}

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
      for (int64_t b = 0; b < h_.batch; ++b) best_[piece * h_.batch + b] = BestOf(kernels_, logits.data() + b * per_piece, rows, begin);
    });
    phase_.Wait();
  }

  void Finish() {
    for (int64_t b = 0; b < h_.batch; ++b) {
      const Best best = MergeAll(best_, h_.batch, b);
      h_.token[b] = best.token;
      h_.top[b] = best.top;
      h_.log_sum[b] = best.top + std::log(best.sum);
    }
  }

 private:
  const Head h_;
  const Kernels& kernels_;
  Phase phase_;
  std::vector<Best> best_;
};

// All rows of the head in int8 first; then, exactly, those that can still be the best. A logit in int8 is wrong by at most
//   |w - q s| |x| + what rounding x and summing in float add,
// so a row whose logit plus that is below another row's logit minus its own is not the best one.
class ScreenedHeadJob {
 public:
  ScreenedHeadJob(const Head& head, int threads) : h_(head), kernels_(BestKernels()) {
    const int64_t pieces = Pieces(Type::kI8, h_.screen);
    best_.resize(pieces * h_.batch);
    exact_.resize(pieces * h_.batch);
    lower_.resize(pieces * h_.batch);
    upper_.Reset(h_.batch * h_.matrix.rows);
    screen_phase_.Init(pieces, threads);
    exact_phase_.Init(pieces, threads);
  }

  void Work(int thread) {
    Operands screened, exact;
    std::vector<float> logits, factor, slack, threshold;
    const int64_t width = h_.matrix.cols, per_piece = RowsPerPiece(Type::kI8, h_.screen), rows = h_.matrix.rows;
    const auto fill = [&](int64_t b, float* to) {
      std::memcpy(to, h_.x + b * width, width * sizeof(float));
      kernels_.round(h_.weights, to, width);
    };
    screen_phase_.Run(thread, [&](int64_t piece) {
      if (!screened.ready()) {
        screened.Make(kernels_, Type::kI8, h_.batch, width, fill);
        logits.resize(per_piece);
        std::vector<float> x(width);
        for (int64_t b = 0; b < h_.batch; ++b) {
          fill(b, x.data());
          double squares = 0.0;
          for (const float each : x) squares += static_cast<double>(each) * each;
          const double norm = std::sqrt(squares), root = std::sqrt(static_cast<double>(width));
          factor.push_back(static_cast<float>(norm * 1.0001));
          // A row's values are at most 127 scales. Where operands are integers, x is off by half of its own scale and what rounds
          // in finding them; and each of the two sums is off by at most `width` roundings.
          const bool integers = kernels_.prepared_size(Type::kI8, width) < width * sizeof(float);
          const double step = integers ? 0.51 * screened.data()[b].scale : 0.0;
          const double rounding = step * root + norm * 2.0 * width * 6e-8;
          slack.push_back(static_cast<float>(127.0 * root * rounding * 1.0001));
        }
      }
      const int64_t begin = piece * per_piece, count = std::min(per_piece, rows - begin);
      for (int64_t b = 0; b < h_.batch; ++b) {
        kernels_.dot(Type::kI8, h_.screen.Row(Type::kI8, begin), h_.screen.scales + begin, count, width, screened.data() + b, 1,
                     logits.data(), per_piece);
        float* upper = upper_.data() + b * rows + begin;
        float lower = -std::numeric_limits<float>::infinity();
        for (int64_t i = 0; i < count; ++i) {
          const float wrong = h_.screen_errors[begin + i] * factor[b] + h_.screen.scales[begin + i] * slack[b];
          upper[i] = logits[i] + wrong;
          lower = std::max(lower, logits[i] - wrong);
        }
        lower_[piece * h_.batch + b] = lower;
        best_[piece * h_.batch + b] = BestOf(kernels_, logits.data(), count, begin);
      }
    });
    screen_phase_.Wait();
    exact_phase_.Run(thread, [&](int64_t piece) {
      if (threshold.empty()) {
        threshold.assign(h_.batch, -std::numeric_limits<float>::infinity());
        for (size_t i = 0; i < lower_.size(); ++i) threshold[i % h_.batch] = std::max(threshold[i % h_.batch], lower_[i]);
      }
      const int64_t begin = piece * per_piece, count = std::min(per_piece, rows - begin);
      Best* best = exact_.data() + piece * h_.batch;
      std::fill(best, best + h_.batch, Best{-std::numeric_limits<float>::infinity(), 0.0f, -1});
      for (int64_t i = begin; i < begin + count; ++i) {
        bool computed = false;
        for (int64_t b = 0; b < h_.batch; ++b) {
          if (upper_[b * rows + i] < threshold[b]) continue;  // a NaN is never less
          if (!exact.ready()) {
            exact.Make(kernels_, h_.weights, h_.batch, width, fill);
            logits.resize(std::max<size_t>(logits.size(), h_.batch));
          }
          // For all vectors together: the order of a sum depends on how many share the row, and it shall be the plain head's.
          if (!computed) {
            kernels_.dot(h_.weights, h_.matrix.Row(h_.weights, i), nullptr, 1, width, exact.data(), h_.batch, logits.data(), 1);
            computed = true;
          }
          const Best next = {logits[b], 0.0f, static_cast<int32_t>(i)};
          if (best[b].token < 0) {
            best[b] = next;
          } else {
            Merge(best[b], next);
          }
        }
      }
    });
    exact_phase_.Wait();
  }

  void Finish() {
    for (int64_t b = 0; b < h_.batch; ++b) {
      Best best = {0.0f, 0.0f, -1};
      for (size_t i = b; i < exact_.size(); i += h_.batch) {
        if (exact_[i].token < 0) continue;
        if (best.token < 0) {
          best = exact_[i];
        } else {
          Merge(best, exact_[i]);
        }
      }
      const Best all = MergeAll(best_, h_.batch, b);
      h_.token[b] = best.token;
      h_.top[b] = best.top;
      h_.log_sum[b] = all.top + std::log(all.sum);
    }
  }

 private:
  const Head h_;
  const Kernels& kernels_;
  Phase screen_phase_, exact_phase_;
  std::vector<Best> best_, exact_;
  std::vector<float> lower_;
  Buffer<float> upper_;
};

}  // namespace

void RunHead(const Head& head, Pool& pool) {
  const int threads = ThreadsOf(pool);
  if (head.screen.values != nullptr) {
    auto job = std::make_shared<ScreenedHeadJob>(head, threads);
    RunOnTeam(job, pool, threads);
    return job->Finish();
  }
  auto job = std::make_shared<HeadJob>(head, threads);
  RunOnTeam(job, pool, threads);
  job->Finish();
}

}  // namespace qwen_asr
