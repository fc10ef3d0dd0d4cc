// The head with a screen in int8: token and highest logit must have the bits of the head without one.

#include <cmath>
#include <memory>

#include "linear.h"
#include "pools.h"
#include "reference.h"
#include "testing.h"

namespace native {

namespace {

struct Problem {
  Type type;
  int64_t vocab, cols, batch;
  Floats weights, x;
  Packed packed, screen;
  Floats errors;

  // Both forms of the weights, and how far they are from each other.
  void Finish() {
    packed = Pack(type, weights, cols);
    screen = Pack(Type::kI8, weights, cols);
    errors = Floats(vocab);
    for (int64_t r = 0; r < vocab; ++r) {
      double squares = 0.0;
      for (int64_t i = 0; i < cols; ++i) {
        const double off = packed.At(r * cols + i) - screen.At(r * cols + i) * screen.scales[r];
        squares += off * off;
      }
      errors[r] = static_cast<float>(std::sqrt(squares) * 1.00001);
    }
  }
};

enum class Fill { kNormal, kFlat, kTies, kZeros, kZeroX, kTinyX, kNanInX, kInfInX, kNanInWeights, kInfInWeights, kWorst };

Problem Make(Type type, int64_t vocab, int64_t cols, int64_t batch, Fill fill) {
  Random random(static_cast<uint64_t>(vocab * 131 + cols * 7 + batch));
  Problem p{type, vocab, cols, batch, random.Normals(vocab * cols, 0.05), random.Normals(batch * cols), {}, {}, {}};
  const int64_t spoilt = random.Below(vocab) * cols + cols / 2, in_x = random.Below(batch) * cols + cols / 3;
  switch (fill) {
    case Fill::kNormal:
    case Fill::kNanInWeights:
    case Fill::kInfInWeights:
      break;
    case Fill::kFlat:  // all rows nearly the same: no logit is clearly the best
      for (int64_t i = cols; i < vocab * cols; ++i) p.weights[i] = p.weights[i - cols] + 1e-5f * p.weights[i];
      break;
    case Fill::kTies:
      for (int64_t i = 0; i < vocab * cols; ++i) p.weights[i] = p.weights[i % (5 * cols) % p.weights.size()];
      break;
    case Fill::kZeros:
      std::fill(p.weights.begin(), p.weights.end(), 0.0f);
      break;
    case Fill::kZeroX:
      std::fill(p.x.begin(), p.x.end(), 0.0f);
      break;
    case Fill::kTinyX:
      for (float& each : p.x) each *= 1e-36f;
      break;
    case Fill::kNanInX:
      p.x[in_x] = kNan;
      break;
    case Fill::kInfInX:
      p.x[in_x] = -kInf;
      break;
    case Fill::kWorst:  // whole rows of the largest integers, operands between two of theirs
      for (float& each : p.weights) each = std::copysign(0.1f, each);
      for (float& each : p.x) each = 1.0f + 1.5f / 32767.0f * std::round(each);
  }
  p.Finish();
  if (fill == Fill::kNanInWeights || fill == Fill::kInfInWeights) {  // which no scale and no error can be found for
    p.weights[spoilt] = fill == Fill::kNanInWeights ? kNan : kInf;
    p.packed = Pack(type, p.weights, cols);
    p.screen.scales[spoilt / cols] = p.errors[spoilt / cols] = kNan;
  }
  return p;
}

struct Answer {
  Ints token;
  Floats top, log_sum;
};

Answer Run(const Problem& p, bool screened, qwen_asr::Pool& pool) {
  Answer out{Ints(p.batch, -1), Floats(p.batch), Floats(p.batch)};
  qwen_asr::Head head{};
  head.weights = p.type;
  head.batch = p.batch;
  head.x = p.x.data();
  head.matrix = MatrixOf(p.packed, p.cols);
  head.token = out.token.data();
  head.top = out.top.data();
  head.log_sum = out.log_sum.data();
  if (screened) {
    head.screen = MatrixOf(p.screen, p.cols);
    head.screen_errors = p.errors.data();
  }
  RunHead(head, pool);
  return out;
}

Check Prepare(Type type, int64_t vocab, int64_t cols, int64_t batch, Fill fill) {
  const auto p = std::make_shared<Problem>(Make(type, vocab, cols, batch, fill));
  return [=] {
    TestPool pool(2, Manners::kPrompt);
    const Answer got = Run(*p, true, pool), want = Run(*p, false, pool);
    ExpectSame("tokens", got.token, want.token);
    ExpectSame("highest logits", got.top, want.top);
  };
}

// The sum is that of the logits in int8.
Check PrepareSum(Type type, int64_t vocab, int64_t cols, int64_t batch) {
  const auto p = std::make_shared<Problem>(Make(type, vocab, cols, batch, Fill::kNormal));
  const auto want = std::make_shared<Values>();
  for (int64_t b = 0; b < batch; ++b) {
    Values x = Exactly(p->x.data() + b * cols, cols);
    RoundValues(type, x);
    double sum = 0.0, deviation = 0.0;
    for (const Value& logit : Times(p->screen, x, Rows::kFew)) {
      sum += std::exp(logit.value);
      deviation = std::max(deviation, logit.deviation);
    }
    const double log_sum = std::log(sum);
    want->push_back({log_sum, deviation + kUnit * (4.0 + std::fabs(log_sum))});
  }
  return [=] {
    TestPool pool(2, Manners::kPrompt);
    const Answer got = Run(*p, true, pool);
    for (int64_t b = 0; b < batch; ++b) ExpectValue(got.log_sum[b], (*want)[b], "log of the sum of vector ", b);
  };
}

void CheckThreads(Type type, bool quick) {
  const Problem p = Make(type, 1500, 130, 5, Fill::kNormal);
  TestPool alone(1, Manners::kPrompt);
  const Answer want = Run(p, false, alone), with_sum = Run(p, true, alone);
  ForPools(quick, [&](qwen_asr::Pool& pool, const std::string& what) {
    const Answer got = Run(p, true, pool);
    ExpectSame(what, got.token, want.token);
    ExpectSame(what, got.top, want.top);
    ExpectSame(what, got.log_sum, with_sum.log_sum);
  });
}

}  // namespace

void AddScreenCases(Cases& cases, bool quick) {
  const std::pair<const char*, Fill> fills[] = {
      {"normal", Fill::kNormal},   {"flat", Fill::kFlat},         {"ties", Fill::kTies},
      {"zeros", Fill::kZeros},     {"zeros in x", Fill::kZeroX},  {"tiny x", Fill::kTinyX},
      {"NaN in x", Fill::kNanInX}, {"-Inf in x", Fill::kInfInX},  {"NaN in weights", Fill::kNanInWeights},
      {"Inf in weights", Fill::kInfInWeights}, {"worst", Fill::kWorst}};
  struct Shape {
    int64_t vocab, cols;
  };
  const std::vector<Shape> shapes =
      quick ? std::vector<Shape>{{1, 3}, {700, 130}}
            : std::vector<Shape>{{1, 1}, {5, 17}, {31, 64}, {1000, 67}, {700, 259}, {3001, 130}};
  for (Type type : {Type::kF32, Type::kBF16, Type::kF16}) {
    for (Shape shape : shapes) {
      for (const auto& [name, fill] : fills) {
        for (int64_t batch = 1; batch <= 9; ++batch) {
          if (quick && batch % 4 != 1) continue;
          if (shape.vocab * shape.cols > 200000 && batch % 3 != 1) continue;
          cases.AddPrepared(Join("screen ", NameOf(type), " ", shape.vocab, "x", shape.cols, " batch ", batch, ", ", name),
                            [=, fill = fill] { return Prepare(type, shape.vocab, shape.cols, batch, fill); });
        }
      }
      cases.AddPrepared(Join("screen ", NameOf(type), " ", shape.vocab, "x", shape.cols, ", sum"),
                        [=] { return PrepareSum(type, shape.vocab, shape.cols, 3); });
    }
    cases.Add(Join("screen ", NameOf(type), ", pools"), [=] { CheckThreads(type, quick); });
  }
}

}  // namespace native
