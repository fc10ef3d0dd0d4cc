// The head of the CUDA kernels, emulated: the first of equal highest logits, the first NaN.

#include <cmath>
#include <memory>

#include "emulated_programs.h"

namespace native {

namespace {

// Logits that every type computes without rounding: small whole numbers. Of int8 rows the last column makes the scale 1, and
// meets zeros.
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

  int64_t Want(int64_t b) const {
    int64_t best = 0;
    for (int64_t t = 1; t < vocab && !std::isnan(Logit(b, best)); ++t) {
      if (Logit(b, t) > Logit(b, best) || std::isnan(Logit(b, t))) best = t;
    }
    return best;
  }
};

Problem Make(const Program& program) {
  const auto s = qwen_asr_gpu::HeadOf(program.key);
  const int64_t weights = int64_t{s.vocab} * s.width, values = int64_t{s.batch} * s.width;
  Problem p{TypeOf(s.weights), s.vocab, s.width, s.batch, Floats(weights), Floats(values), {}};
  Random random(static_cast<uint64_t>(p.vocab * 131 + p.cols * 7 + p.batch));
  for (float& each : p.weights) each = static_cast<float>(random.Below(5) - 2);
  for (float& each : p.x) each = static_cast<float>(random.Below(5) - 2);
  for (int64_t r = 0; r < p.vocab; ++r) {
    p.weights[r * p.cols] = 0.0f;
    p.weights[r * p.cols + p.cols - 1] = 127.0f;
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    p.x[b * p.cols] = 1.0f;
    p.x[b * p.cols + p.cols - 1] = 0.0f;
  }
  p.packed = Pack(p.type, p.weights, p.cols);
  return p;
}

// One token's logit becomes NaN or an infinity for all vectors, by its first column, which is 0 times 1.
void Spoil(Problem& p, int64_t token, float with) {
  if (p.type == Type::kI8) {
    p.packed.scales[token] = with;
  } else {
    p.weights[token * p.cols] = with;
    p.packed = Pack(p.type, p.weights, p.cols);
  }
}

void Expect(const Program& program, const Problem& p, int at_once, uint64_t seed) {
  Floats top(p.batch, kNan), tops(qwen_asr_gpu::kMaxHeadBlocks * p.batch, kNan);
  Ints token(p.batch, -1), tokens(tops.size(), -1);
  qwen_asr_gpu::HeadStep step{};
  step.shape = qwen_asr_gpu::HeadOf(program.key);
  step.x = p.x.data();
  step.weights = {p.packed.bytes.data(), p.packed.scales.empty() ? nullptr : p.packed.scales.data()};
  step.top = top.data();
  step.token = token.data();
  step.tops = tops.data();
  step.tokens = tokens.data();
  step.overlap = seed % 2 == 1;
  EmulatedDevice device(program, at_once, seed * 1000);
  if (!EnqueueHead(step, device)) Fail("a kernel was not launched");
  device.Finish();
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t want = p.Want(b);
    ExpectNear(token[b], static_cast<double>(want), 0.0, "token of vector ", b);
    ExpectNear(top[b], p.Logit(b, want), 0.0, "highest logit of vector ", b);
  }
}

}  // namespace

void AddEmulatedHeadCases(Cases& cases, bool quick) {
  for (const Program& program : Programs()) {
    if (program.key[0] != 1) continue;
    const auto s = qwen_asr_gpu::HeadOf(program.key);
    const Type type = TypeOf(s.weights);
    const int last = s.vocab - 1;
    const std::string name = Join("head ", NameOf(type), " ", s.vocab, "x", s.width, " batch ", s.batch);
    const auto add = [&](const char* how, std::vector<std::pair<int64_t, float>> tokens) {
      cases.AddPrepared(Join(name, ", ", how), [=, &program] {
        auto p = std::make_shared<Problem>(Make(program));
        for (const auto& [token, with] : tokens) Spoil(*p, token, with);
        return [=, &program] {
          Expect(program, *p, 1000, 1);
          Expect(program, *p, 3, 2);
        };
      });
    };
    add("as it is", {});
    add("a NaN at the end", {{last, kNan}});
    if (quick) continue;
    add("two NaNs", {{last / 2, kNan}, {last, kNan}});
    if (type == Type::kI8) continue;  // an infinite scale also makes NaNs, of zeros
    add("an infinity", {{last, kInf}});
    add("two infinities", {{last / 3, kInf}, {last, kInf}});
    add("an infinity, then a NaN", {{last / 3, kInf}, {last, kNan}});
    std::vector<std::pair<int64_t, float>> all;
    for (int64_t t = 0; t <= last && last < 100; ++t) all.emplace_back(t, -kInf);
    if (!all.empty()) add("negative infinities", all);
  }
}

}  // namespace native
