// A whole encoder layer.

#include <algorithm>
#include <memory>

#include "encoder_layer.h"
#include "pools.h"
#include "reference.h"
#include "testing.h"

namespace native {

namespace {

struct Shape {
  int64_t time, width, heads, inner, window;
  std::vector<std::vector<int32_t>> valid;  // of every clip's windows
  float limit = 0.0f;
  bool biases = true;
};

EncoderProblem Make(const Shape& s, Type weights) {
  Random random(static_cast<uint64_t>(s.time * 31 + s.width * 7 + s.window));
  EncoderProblem p{};
  p.weights = weights;
  p.batch = static_cast<int64_t>(s.valid.size());
  p.time = s.time;
  p.width = s.width;
  p.heads = s.heads;
  p.inner = s.inner;
  p.windows = static_cast<int64_t>(s.valid[0].size());
  p.window = s.window;
  p.limit = s.limit;
  p.x = random.Normals(p.batch * s.time * s.width);
  p.attention_norm = random.AroundOne(s.width);
  p.attention_norm_bias = random.Normals(s.width, 0.2);
  p.mlp_norm = random.AroundOne(s.width);
  p.mlp_norm_bias = random.Normals(s.width, 0.2);
  const auto bias = [&](int64_t n) { return s.biases ? random.Normals(n, 0.3) : Floats(); };
  p.q_bias = bias(s.width);
  p.k_bias = bias(s.width);
  p.v_bias = bias(s.width);
  p.out_bias = bias(s.width);
  p.fc1_bias = bias(s.inner);
  p.fc2_bias = bias(s.width);
  p.valid = Ints(p.batch * p.windows);
  for (int64_t i = 0; i < p.batch * p.windows; ++i) p.valid[i] = s.valid[i / p.windows][i % p.windows];
  p.q = RandomMatrix(random, weights, s.width, s.width);
  p.k = RandomMatrix(random, weights, s.width, s.width);
  p.v = RandomMatrix(random, weights, s.width, s.width);
  p.out_proj = RandomMatrix(random, weights, s.width, s.width);
  p.fc1 = RandomMatrix(random, weights, s.inner, s.width);
  p.fc2 = RandomMatrix(random, weights, s.width, s.inner);
  return p;
}

Floats Run(const EncoderProblem& p, qwen_asr::Pool& pool) {
  const auto vector = [](const Floats& x) { return x.empty() ? nullptr : x.data(); };
  Floats out(p.batch * p.time * p.width, kNan);
  qwen_asr::EncoderLayer layer{};
  layer.weights = p.weights;
  layer.operands = p.operands();
  layer.eps = kNormEps;
  layer.limit = p.limit;
  layer.batch = p.batch;
  layer.time = p.time;
  layer.windows = p.windows;
  layer.window = p.window;
  layer.heads = p.heads;
  layer.x = p.x.data();
  layer.valid = p.valid.data();
  layer.attention_norm = p.attention_norm.data();
  layer.attention_norm_bias = p.attention_norm_bias.data();
  layer.mlp_norm = p.mlp_norm.data();
  layer.mlp_norm_bias = p.mlp_norm_bias.data();
  layer.q = MatrixOf(p.q, p.width);
  layer.k = MatrixOf(p.k, p.width);
  layer.v = MatrixOf(p.v, p.width);
  layer.out_proj = MatrixOf(p.out_proj, p.width);
  layer.fc1 = MatrixOf(p.fc1, p.width);
  layer.fc2 = MatrixOf(p.fc2, p.inner);
  layer.q_bias = vector(p.q_bias);
  layer.k_bias = vector(p.k_bias);
  layer.v_bias = vector(p.v_bias);
  layer.out_bias = vector(p.out_bias);
  layer.fc1_bias = vector(p.fc1_bias);
  layer.fc2_bias = vector(p.fc2_bias);
  layer.out = out.data();
  RunEncoderLayer(layer, pool);
  return out;
}

Check Prepare(const Shape& s, Type weights) {
  const auto p = std::make_shared<EncoderProblem>(Make(s, weights));
  const auto want = std::make_shared<Values>(EncoderOf(*p));
  return [=] {
    TestPool pool(2, Manners::kPrompt);
    const Floats got = Run(*p, pool);
    for (size_t i = 0; i < want->size(); ++i) {
      ExpectValue(got[i], (*want)[i], "output ", i % p->width, " of token ", i / p->width);
    }
  };
}

// Neither a clip's padding nor another window or clip changes its own tokens.
void CheckApart(const Shape& s, Type weights) {
  EncoderProblem p = Make(s, weights);
  TestPool pool(2, Manners::kPrompt);
  const Floats clean = Run(p, pool);
  std::vector<bool> own(p.batch * p.time);
  for (int64_t row = 0; row < p.batch * p.time; ++row) {
    const int64_t t = row % p.time;
    own[row] = t % p.window < p.valid[row / p.time * p.windows + t / p.window];
    if (!own[row]) std::fill(p.x.begin() + row * p.width, p.x.begin() + (row + 1) * p.width, kNan);
  }
  const Floats got = Run(p, pool);
  for (int64_t row = 0; row < p.batch * p.time; ++row) {
    if (!own[row]) continue;
    const auto begin = row * p.width, end = begin + p.width;
    ExpectSame(Join("token ", row), Floats(got.begin() + begin, got.begin() + end), Floats(clean.begin() + begin, clean.begin() + end));
  }
}

void CheckThreads(const Shape& s, Type weights, bool quick) {
  const EncoderProblem p = Make(s, weights);
  TestPool alone(1, Manners::kPrompt);
  const Floats want = Run(p, alone);
  ForPools(quick, [&](qwen_asr::Pool& pool, const std::string& what) { ExpectSame(what, Run(p, pool), want); });
}

}  // namespace

void AddEncoderCases(Cases& cases, bool quick) {
  std::vector<std::pair<const char*, Shape>> shapes = {
      {"a window that is not full", {33, 48, 3, 70, 13, {{13, 13, 7}, {13, 4, 0}}}},
      {"odd heads, a limit", {11, 35, 7, 19, 11, {{11}}, 2.0f}},
      {"windows without tokens", {20, 32, 2, 64, 8, {{8, 8, 4}, {0, 0, 0}}, 0.0f, false}},
  };
  if (!quick) {
    shapes.insert(shapes.end(), {
        {"heads of one value", {9, 6, 6, 5, 4, {{4, 4, 1}}}},
        {"one head, small windows", {10, 20, 1, 33, 3, {{3, 3, 3, 1}, {3, 0, 2, 0}}}},
        {"one token", {1, 64, 1, 64, 1, {{1}}, 1.0f}},
        {"windows behind the last token", {12, 66, 2, 129, 10, {{10, 2, 0, 0}, {9, 0, 0, 0}}}},
        {"more valid tokens than there are", {12, 32, 2, 16, 10, {{10, 10}}}},
        {"the model's heads", {150, 128, 2, 300, 104, {{104, 46}}, 0.5f}},
    });
  }
  for (Type weights : kAllTypes) {
    for (const auto& [name, shape] : shapes) {
      const std::string title = Join("encoder ", NameOf(weights), ", ", name);
      cases.AddPrepared(title, [=, shape = shape] { return Prepare(shape, weights); });
      cases.Add(title + ", apart", [=, shape = shape] { CheckApart(shape, weights); });
    }
    const Shape shape{33, 48, 3, 70, 13, {{13, 13, 7}, {13, 4, 0}}};
    cases.Add(Join("encoder ", NameOf(weights), ", pools"), [=] { CheckThreads(shape, weights, quick); });
  }
}

}  // namespace native
