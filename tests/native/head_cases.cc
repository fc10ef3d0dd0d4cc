// The head: the first of equal highest logits, the first NaN, log of the sum of exponentials.

#include <cmath>
#include <memory>

#include "linear.h"
#include "pools.h"
#include "reference.h"
#include "testing.h"

namespace native {

namespace {

// Logits that every type and every instruction set computes without rounding: small whole numbers. Operands of int8 weights
// are made whole by their largest; here that is 2^15 - 1, which meets a weight of zero, and the scale of a row is 1, by its
// last column of 127, which meets a zero.
struct Problem {
  Type type;
  int64_t vocab, cols, batch;
  Floats weights, x;
  Packed packed;

  double Logit(int64_t b, int64_t token) const {
    double sum = 0.0;
    for (int64_t i = 0; i < cols; ++i) sum += packed.At(token * cols + i) * x[b * cols + i];
    return sum * (packed.scales.empty() ? 1.0 : packed.scales[token]);
  }
};

Problem Make(Type type, int64_t vocab, int64_t cols, int64_t batch) {
  Random random(static_cast<uint64_t>(vocab * 131 + cols * 7 + batch));
  Problem p{type, vocab, cols, batch, Floats(vocab * cols), Floats(batch * cols), {}};
  for (float& each : p.weights) each = static_cast<float>(random.Below(5) - 2);
  for (float& each : p.x) each = static_cast<float>(random.Below(5) - 2);
  for (int64_t r = 0; r < vocab; ++r) {
    p.weights[r * cols] = 0.0f;
    p.weights[r * cols + cols - 1] = 127.0f;
  }
  for (int64_t b = 0; b < batch; ++b) {
    p.x[b * cols] = 32767.0f;
    p.x[b * cols + cols - 1] = 0.0f;
  }
  p.packed = Pack(type, p.weights, cols);
  return p;
}

struct Answer {
  Ints token;
  Floats top, log_sum;
};

Answer Run(const Problem& p, qwen_asr::Pool& pool) {
  Answer out{Ints(p.batch, -1), Floats(p.batch), Floats(p.batch)};
  qwen_asr::Head head{};
  head.weights = p.type;
  head.batch = p.batch;
  head.x = p.x.data();
  head.matrix = MatrixOf(p.packed, p.cols);
  head.token = out.token.data();
  head.top = out.top.data();
  head.log_sum = out.log_sum.data();
  RunHead(head, pool);
  return out;
}

struct Want {
  int64_t token;
  double top, log_sum;
};

std::vector<Want> WantOf(const Problem& p) {
  std::vector<Want> all;
  for (int64_t b = 0; b < p.batch; ++b) {
    std::vector<double> logits(p.vocab);
    for (int64_t t = 0; t < p.vocab; ++t) logits[t] = p.Logit(b, t);
    int64_t best = 0;
    for (int64_t t = 1; t < p.vocab && !std::isnan(logits[best]); ++t) {
      if (logits[t] > logits[best] || std::isnan(logits[t])) best = t;
    }
    double sum = 0.0;
    for (double logit : logits) sum += logit == logits[best] ? 1.0 : std::exp(logit - logits[best]);
    all.push_back({best, logits[best], logits[best] + std::log(sum)});
  }
  return all;
}

Check Prepare(const Problem& problem) {
  const auto p = std::make_shared<Problem>(problem);
  return [p, all = WantOf(problem)] {
    TestPool pool(2, Manners::kPrompt);
    const Answer got = Run(*p, pool);
    for (int64_t b = 0; b < p->batch; ++b) {
      const Want& want = all[b];
      ExpectNear(got.token[b], static_cast<double>(want.token), 0.0, "token of vector ", b);
      ExpectNear(got.top[b], want.top, 0.0, "highest logit of vector ", b);
      ExpectNear(got.log_sum[b], want.log_sum, 4e-6 * (1.0 + std::fabs(want.top)), "log of the sum of vector ", b);
    }
  };
}

// One token's logit becomes NaN or an infinity for all vectors, by the column where x is 32767.
void Spoil(Problem& p, int64_t token, float with) {
  if (p.type == Type::kI8) {
    p.packed.scales[token] = with;
  } else {
    p.weights[token * p.cols] = with;
    p.packed = Pack(p.type, p.weights, p.cols);
  }
}

void CheckThreads(Type type, bool quick) {
  const Problem p = Make(type, 1500, 130, 3);
  TestPool alone(1, Manners::kPrompt);
  const Answer want = Run(p, alone);
  ForPools(quick, [&](qwen_asr::Pool& pool, const std::string& what) {
    const Answer got = Run(p, pool);
    ExpectSame(what, got.token, want.token);
    ExpectSame(what, got.top, want.top);
    ExpectSame(what, got.log_sum, want.log_sum);
  });
}

}  // namespace

void AddHeadCases(Cases& cases, bool quick) {
  struct Shape {
    int64_t vocab, cols;
  };
  const std::vector<Shape> shapes =
      quick ? std::vector<Shape>{{1, 3}, {700, 50}} : std::vector<Shape>{{1, 3}, {5, 17}, {31, 64}, {1000, 67}, {3001, 130}};
  for (Type type : kAllTypes) {
    for (Shape shape : shapes) {
      const std::string name = Join("head ", NameOf(type), " ", shape.vocab, "x", shape.cols);
      for (int64_t batch : {1, 2, 3, 4, 5, 8, 9}) {
        cases.AddPrepared(Join(name, " batch ", batch), [=] { return Prepare(Make(type, shape.vocab, shape.cols, batch)); });
      }
      const int64_t last = shape.vocab - 1;
      auto spoilt = [&](const char* how, std::vector<std::pair<int64_t, float>> tokens) {
        cases.AddPrepared(Join(name, ", ", how), [=] {
                           Problem p = Make(type, shape.vocab, shape.cols, 2);
                           for (const auto& [token, with] : tokens) Spoil(p, token, with);
                           return Prepare(p);
                         });
      };
      spoilt("a NaN at the end", {{last, kNan}});
      spoilt("two NaNs", {{last / 2, kNan}, {last, kNan}});
      if (type == Type::kI8) continue;  // an infinite scale also makes NaNs, of zeros
      spoilt("an infinity", {{last, kInf}});
      spoilt("two infinities", {{last / 3, kInf}, {last, kInf}});
      spoilt("infinities of both signs", {{0, -kInf}, {last, kInf}});
      spoilt("an infinity, then a NaN", {{last / 3, kInf}, {last, kNan}});
      spoilt("a negative infinity", {{0, -kInf}});
      std::vector<std::pair<int64_t, float>> all;
      for (int64_t t = 0; t < shape.vocab && shape.vocab < 1000; ++t) all.emplace_back(t, -kInf);
      spoilt("negative infinities", all);
    }
    cases.Add(Join("head ", NameOf(type), ", pools"), [=] { CheckThreads(type, quick); });
  }
}

}  // namespace native
