// Products of weight matrices: with up to eight vectors beside the weights as they are, with more from packed panels.

#include <algorithm>
#include <cmath>
#include <memory>

#include "linear.h"
#include "pools.h"
#include "reference.h"
#include "testing.h"

namespace native {

namespace {

struct Shape {
  int64_t rows, cols;
};

enum class Fill { kNormal, kZeros, kDenormal, kNanInX, kInfInX, kNanInWeights, kInfInWeights, kLargest };

struct Problem {
  Packed weights;
  Floats x, bias;
  int64_t rows, cols, batch;
};

Problem Make(Type type, Shape shape, int64_t batch, Fill fill, bool bias = false) {
  Random random(static_cast<uint64_t>(shape.rows * 1000003 + shape.cols * 101 + batch));
  Floats w = random.Normals(shape.rows * shape.cols), x = random.Normals(batch * shape.cols);
  const int64_t i = random.Below(shape.cols), b = random.Below(batch), r = random.Below(shape.rows);
  switch (fill) {
    case Fill::kNormal:
      break;
    case Fill::kZeros:
      std::fill(x.begin(), x.end(), 0.0f);
      break;
    case Fill::kDenormal:
      for (float& each : x) each *= 1e-40f;
      break;
    case Fill::kNanInX:
      x[b * shape.cols + i] = kNan;
      break;
    case Fill::kInfInX:
      x[b * shape.cols + i] = -kInf;
      break;
    case Fill::kNanInWeights:
      w[r * shape.cols + i] = kNan;
      break;
    case Fill::kInfInWeights:
      w[r * shape.cols + i] = kInf;
      break;
    case Fill::kLargest:  // all products of one sign: sums of integers must not overflow
      std::fill(w.begin(), w.end(), -1.0f);
      std::fill(x.begin(), x.end(), 3.0f);
  }
  Problem p{Pack(type, w, shape.cols), x, bias ? random.Normals(shape.rows) : Floats(), shape.rows, shape.cols, batch};
  if (type == Type::kI8 && fill == Fill::kNanInWeights) p.weights.scales[r] = kNan;
  return p;
}

Floats Run(const Problem& p, qwen_asr::Pool& pool) {
  Floats out(p.batch * p.rows, kNan);
  qwen_asr::Linear linear{};
  linear.weights = p.weights.type;
  linear.rows = p.batch;
  linear.x = p.x.data();
  linear.matrix = MatrixOf(p.weights, p.cols);
  linear.bias = p.bias.empty() ? nullptr : p.bias.data();
  linear.out = out.data();
  RunLinear(linear, pool);
  return out;
}

Check Prepare(Type type, Shape shape, int64_t batch, Fill fill, bool bias) {
  const auto p = std::make_shared<Problem>(Make(type, shape, batch, fill, bias));
  const auto want = std::make_shared<Values>();
  const Rows how = batch <= qwen_asr::kFewRows ? Rows::kFew : Rows::kMany;
  for (int64_t b = 0; b < batch; ++b) {
    const Values each = Times(p->weights, Exactly(p->x.data() + b * p->cols, p->cols), how, p->bias);
    want->insert(want->end(), each.begin(), each.end());
  }
  return [=] {
    TestPool pool(1, Manners::kPrompt);
    const Floats got = Run(*p, pool);
    for (int64_t i = 0; i < batch * p->rows; ++i) {
      const double value = (*want)[i].value;
      if (type == Type::kI8 && !std::isfinite(value)) {  // which of NaN and the infinities is not promised
        if (std::isfinite(got[i])) Fail(Join("row ", i % p->rows, " of vector ", i / p->rows, ": finite, though an operand is not"));
        continue;
      }
      ExpectValue(got[i], (*want)[i], "row ", i % p->rows, " of vector ", i / p->rows);
    }
  };
}

void CheckThreads(Type type, Shape shape, int64_t batch, bool quick) {
  const Problem p = Make(type, shape, batch, Fill::kNormal, true);
  TestPool alone(1, Manners::kPrompt);
  const Floats want = Run(p, alone);
  ForPools(quick, [&](qwen_asr::Pool& pool, const std::string& what) { ExpectSame(what, Run(p, pool), want); });
}

}  // namespace

void AddLinearCases(Cases& cases, bool quick) {
  // One row, fewer values than a vector, vectors and a rest, several pieces, a row of more than one piece.
  std::vector<Shape> shapes = {{1, 1}, {7, 31}, {33, 127}, {90, 257}};
  if (!quick) shapes.insert(shapes.end(), {{3, 5}, {2, 16}, {1, 33}, {17, 64}, {64, 129}, {5, 1024}, {2, 20003}, {1, 70000}});
  // Panels and rests of panels; odd depths; depths of one block of a panel, just more, and several.
  std::vector<Shape> packed = {{1, 1}, {33, 31}, {65, 255}, {40, 1027}};
  if (!quick) packed.insert(packed.end(), {{3, 5}, {31, 2}, {32, 64}, {48, 512}, {17, 513}, {9, 2051}, {300, 77}});
  std::vector<int64_t> many = {9, 25, 158};
  if (!quick) many = {9, 10, 11, 12, 13, 16, 17, 24, 25, 31, 40, 158};
  const std::pair<const char*, Fill> fills[] = {
      {"zeros", Fill::kZeros},           {"denormal", Fill::kDenormal},           {"NaN in x", Fill::kNanInX},
      {"-Inf in x", Fill::kInfInX},      {"NaN in weights", Fill::kNanInWeights}, {"Inf in weights", Fill::kInfInWeights},
      {"largest", Fill::kLargest}};
  for (Type type : kAllTypes) {
    const auto add = [&](Shape shape, int64_t batch, const char* what, Fill fill, bool bias) {
      if (type == Type::kI8 && fill == Fill::kInfInWeights) return;  // an infinite scale also makes NaNs, of zeros
      cases.AddPrepared(Join("linear ", NameOf(type), " ", shape.rows, "x", shape.cols, " batch ", batch, what, bias ? ", bias" : ""),
                        [=] { return Prepare(type, shape, batch, fill, bias); });
    };
    for (Shape shape : shapes) {
      for (int64_t batch = 1; batch <= qwen_asr::kFewRows; ++batch) {
        if (!quick || batch % 3 == 1) add(shape, batch, "", Fill::kNormal, batch % 2 == 1);
      }
      for (const auto& [name, fill] : fills) {
        for (int64_t batch : {1, 3, 4}) add(shape, batch, Join(", ", name).c_str(), fill, false);
      }
    }
    for (Shape shape : packed) {
      for (int64_t batch : many) {
        if (batch == 158 && shape.rows * shape.cols > 30000) continue;
        add(shape, batch, "", Fill::kNormal, batch % 2 == 1);
      }
      if (shape.cols > 600) continue;
      for (const auto& [name, fill] : fills) add(shape, 14, Join(", ", name).c_str(), fill, true);
    }
    for (Shape shape : {Shape{1, 7}, Shape{400, 193}}) {
      for (int64_t batch : {3, 20}) {
        cases.Add(Join("linear ", NameOf(type), " ", shape.rows, " rows batch ", batch, ", pools"),
                  [=] { CheckThreads(type, shape, batch, quick); });
      }
    }
    // More vectors than one piece has tiles for.
    if (!quick) add({5, 30}, 64 * 12 + 5, "", Fill::kNormal, true);
  }
}

}  // namespace native
