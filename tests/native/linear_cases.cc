// Products of weight matrices with one to nine vectors.

#include <algorithm>
#include <cmath>
#include <limits>

#include "decoder_layer.h"
#include "pools.h"
#include "reference.h"
#include "testing.h"

namespace native {

namespace {

struct Shape {
  int64_t rows, cols;
};

enum class Fill { kNormal, kZeros, kDenormal, kNanInX, kInfInX, kNanInWeights, kInfInWeights, kLargest };

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

struct Problem {
  Packed weights;
  std::vector<float> x;
  int64_t rows, cols, batch;
};

Problem Make(Type type, Shape shape, int64_t batch, Fill fill) {
  Random random(static_cast<uint64_t>(shape.rows * 1000003 + shape.cols * 101 + batch));
  std::vector<float> w = random.Normals(shape.rows * shape.cols), x = random.Normals(batch * shape.cols);
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
  return {Pack(type, w, shape.cols), x, shape.rows, shape.cols, batch};
}

std::vector<float> Run(const Problem& p, qwen_asr::Pool& pool) {
  std::vector<float> out(p.batch * p.rows, kNan);
  qwen_asr::Linear linear{};
  linear.weights = p.weights.type;
  linear.batch = p.batch;
  linear.x = p.x.data();
  linear.matrix = MatrixOf(p.weights, p.cols);
  linear.out = out.data();
  RunLinear(linear, pool);
  return out;
}

void CheckValues(Type type, Shape shape, int64_t batch, Fill fill) {
  const Problem p = Make(type, shape, batch, fill);
  TestPool pool(1, Manners::kPrompt);
  const std::vector<float> got = Run(p, pool);
  for (int64_t b = 0; b < batch; ++b) {
    const std::vector<double> x(p.x.begin() + b * p.cols, p.x.begin() + (b + 1) * p.cols);
    const bool finite = std::all_of(x.begin(), x.end(), [](double each) { return std::isfinite(each); });
    const std::vector<Product> want = ProductsOf(p.weights, x);
    for (int64_t r = 0; r < p.rows; ++r) {
      const double value = got[b * p.rows + r];
      if (type == Type::kI8 && !finite) {  // which of NaN and the infinities is not promised
        if (std::isfinite(value)) Fail(Join("row ", r, " of vector ", b, ": finite, though an operand is not"));
        continue;
      }
      ExpectNear(value, want[r].value, want[r].tolerance, "row ", r, " of vector ", b);
    }
  }
}

void CheckThreads(Type type, Shape shape, int64_t batch, bool quick) {
  const Problem p = Make(type, shape, batch, Fill::kNormal);
  TestPool alone(1, Manners::kPrompt);
  const std::vector<float> want = Run(p, alone);
  ForPools(quick, [&](qwen_asr::Pool& pool, const std::string& what) { ExpectSame(what, Run(p, pool), want); });
}

}  // namespace

void AddLinearCases(Cases& cases, bool quick) {
  // One row, fewer values than a vector, vectors and a rest, several pieces, a row of more than one piece.
  std::vector<Shape> shapes = {{1, 1}, {7, 31}, {33, 127}, {90, 257}};
  if (!quick) shapes.insert(shapes.end(), {{3, 5}, {2, 16}, {1, 33}, {17, 64}, {64, 129}, {5, 1024}, {2, 20003}, {1, 70000}});
  for (Type type : kAllTypes) {
    for (Shape shape : shapes) {
      const std::string size = Join(shape.rows, "x", shape.cols);
      for (int64_t batch = 1; batch <= 9; ++batch) {
        if (quick && batch % 3 != 1 && batch != 9) continue;
        cases.push_back({Join("linear ", NameOf(type), " ", size, " batch ", batch),
                         [=] { CheckValues(type, shape, batch, Fill::kNormal); }});
      }
      const std::pair<const char*, Fill> fills[] = {{"zeros", Fill::kZeros},
                                                    {"denormal", Fill::kDenormal},
                                                    {"NaN in x", Fill::kNanInX},
                                                    {"-Inf in x", Fill::kInfInX},
                                                    {"NaN in weights", Fill::kNanInWeights},
                                                    {"Inf in weights", Fill::kInfInWeights},
                                                    {"largest", Fill::kLargest}};
      for (const auto& [name, fill] : fills) {
        if (type == Type::kI8 && (fill == Fill::kNanInWeights || fill == Fill::kInfInWeights)) continue;
        for (int64_t batch : {1, 3, 4}) {
          cases.push_back({Join("linear ", NameOf(type), " ", size, " batch ", batch, ", ", name),
                           [=, fill = fill] { CheckValues(type, shape, batch, fill); }});
        }
      }
    }
    for (Shape shape : {Shape{1, 7}, Shape{400, 193}}) {
      cases.push_back({Join("linear ", NameOf(type), " ", shape.rows, " rows, pools"),
                       [=] { CheckThreads(type, shape, 3, quick); }});
    }
  }
}

}  // namespace native
