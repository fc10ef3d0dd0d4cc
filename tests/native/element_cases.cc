// What is done value by value, and the packed products by themselves.

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kernels.h"
#include "testing.h"
#include "values.h"

namespace native {

namespace {

using qwen_asr::BestKernels;
using qwen_asr::Kernels;

// Beside the ends of what each type can hold, and the middles between two values of it.
Floats Special() {
  Floats x = {0.0f, 1.0f, 1.5f, 3e38f, 1e-45f, 1e-40f, 1.17549435e-38f, 1e-37f, 5.9e-8f, 2.9e-8f, 3.1e-8f, 6.1e-5f, 6.09e-5f, 65504.0f,
              65519.0f, 65520.0f, 64503.0f, 64504.0f, 64505.0f, 64520.0f, 64528.0f, 3.3895314e38f, 3.3961775e38f, 3.4028235e38f,
              1.00390625f, 1.01171875f, 1.0039063f, 1.00048828125f, 1.00146484375f, 1.0004884f, 87.0f, 88.0f, 89.0f, 1e4f, 1e30f, kInf};
  const size_t n = x.size();
  for (size_t i = 0; i < n; ++i) x.push_back(-x[i]);
  x.push_back(kNan);
  x.push_back(-kNan);
  x.shrink_to_fit();
  return x;
}

// Of such values and of normal ones, so many from some place on: every value meets every lane and the rest behind the last vector.
template <typename With>
void ForLengths(const With& with) {
  const Floats special = Special();
  Random random(5);
  for (int64_t n : {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 65, 130}) {
    for (int64_t at = 0; at < static_cast<int64_t>(special.size()); at += 1 + n / 2) {
      Floats x = random.Normals(n, 3.0);
      for (int64_t i = 0; i < n; i += 2) x[i] = special[(at + i) % special.size()];
      with(x);
    }
  }
}

void CheckRounding(Type type) {
  ForLengths([type](const Floats& x) {
    const auto n = static_cast<int64_t>(x.size());
    Bytes stored(n * SizeOf(type));
    Floats rounded = x;
    BestKernels().store(type, x.data(), n, stored.data());
    BestKernels().round(type, rounded.data(), n);
    const std::vector<double> values = Unpack(type, stored);
    for (int64_t i = 0; i < n; ++i) {
      ExpectNear(values[i], RoundAs(type, x[i]), 0.0, "stored ", x[i]);
      ExpectNear(rounded[i], RoundAs(type, x[i]), 0.0, "rounded ", x[i]);
      if (std::signbit(rounded[i]) != std::signbit(x[i])) Fail(Join("the sign of ", x[i]));
    }
  });
}

void CheckGelu() {
  ForLengths([](const Floats& x) {
    Floats out = x;
    BestKernels().gelu(out.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] == -kInf) continue;  // zero or NaN, as anybody's formula has it
      ExpectValue(out[i], x[i] == kInf ? Value{kInf, 0.0} : GeluOf({x[i], 0.0}), "gelu of ", x[i]);
    }
  });
  Floats x(40001);
  for (int i = 0; i <= 40000; ++i) x[i] = static_cast<float>(i - 20000) / 1000.0f;
  Floats out = x;
  BestKernels().gelu(out.data(), 40001);
  for (int i = 0; i <= 40000; ++i) ExpectValue(out[i], GeluOf({x[i], 0.0}), "gelu of ", x[i]);
}

void CheckSwiGlu() {
  ForLengths([](const Floats& x) {
    const auto n = static_cast<int64_t>(x.size());
    Random random(9);
    const Floats up = random.Normals(n);
    Floats out = x;
    BestKernels().swiglu(out.data(), up.data(), n, out.data());
    for (int64_t i = 0; i < n; ++i) {
      if (x[i] == -kInf) continue;
      // Where the sigmoid's exponential ends, at exp(88), the product still is below this.
      const double end = x[i] < -87.0f ? std::fabs(x[i]) * std::exp(-88.0) * std::fabs(up[i]) * 1.01 : 0.0;
      const Value want = SwiGluOf({x[i], 0.0}, {up[i], 0.0});
      const double value = x[i] == kInf || std::fabs(want.value) > FLT_MAX ? std::copysign(kInf, up[i]) : want.value;
      ExpectNear(out[i], value, kDeviations * want.deviation + end, "swiglu of ", x[i], " and ", up[i]);
    }
  });
}

void CheckNorms(int64_t n, double scale, double offset, float eps) {
  Random random(static_cast<uint64_t>(n));
  Floats x = random.Normals(n, scale);
  for (float& each : x) each += static_cast<float>(offset);
  const Floats weight = random.AroundOne(n), bias = random.Normals(n);
  Floats out(n);
  BestKernels().rms_norm(x.data(), weight.data(), n, eps, out.data());
  const Values rms = RmsNormOf(Exactly(x.data(), n), weight.data(), eps);
  for (int64_t i = 0; i < n; ++i) ExpectValue(out[i], rms[i], "root mean square, ", i);
  BestKernels().layer_norm(x.data(), weight.data(), bias.data(), n, eps, out.data());
  const Values layer = LayerNormOf(Exactly(x.data(), n), weight.data(), bias.data(), eps);
  for (int64_t i = 0; i < n; ++i) ExpectValue(out[i], layer[i], "layer norm, ", i);
  x[n / 2] = kNan;
  BestKernels().rms_norm(x.data(), weight.data(), n, eps, out.data());
  for (int64_t i = 0; i < n; ++i) ExpectNear(out[i], kNan, 0.0, "root mean square of a NaN");
  BestKernels().layer_norm(x.data(), weight.data(), bias.data(), n, eps, x.data());
  for (int64_t i = 0; i < n; ++i) ExpectNear(x[i], kNan, 0.0, "layer norm of a NaN");
}

void CheckRotate(int64_t half) {
  Random random(static_cast<uint64_t>(half));
  const Floats x = random.Normals(2 * half), cos = random.Normals(half), sin = random.Normals(half);
  Floats out = x;
  BestKernels().rotate(out.data(), cos.data(), sin.data(), half);
  for (int64_t i = 0; i < half; ++i) {
    const double a = x[i], b = x[i + half], c = cos[i], s = sin[i];
    const double tolerance = 2.0 * kUnit * (std::fabs(a * c) + std::fabs(b * s) + std::fabs(b * c) + std::fabs(a * s));
    ExpectNear(out[i], a * c - b * s, tolerance, "first half");
    ExpectNear(out[i + half], b * c + a * s, tolerance, "second half");
  }
}

void CheckFinish(int64_t n) {
  Random random(static_cast<uint64_t>(n));
  const Floats sums = random.Normals(n), scale = random.Normals(n), bias = random.Normals(n), residual = random.Normals(n);
  for (int which = 0; which < 16; ++which) {
    Floats out = sums, apart(n);
    const auto given = [which](int bit, const Floats& x) { return (which & bit) != 0 ? x.data() : nullptr; };
    float* to = (which & 8) != 0 ? out.data() : apart.data();
    BestKernels().finish(sums.data(), n, given(1, scale), given(2, bias), given(4, residual), to);
    for (int64_t i = 0; i < n; ++i) {
      double want = sums[i], magnitude = std::fabs(want);
      if ((which & 1) != 0) magnitude = std::fabs(want *= scale[i]);
      if ((which & 2) != 0) want += bias[i], magnitude += std::fabs(bias[i]);
      if ((which & 4) != 0) want += residual[i], magnitude += std::fabs(residual[i]);
      ExpectNear(to[i], want, 3.0 * kUnit * magnitude, "finished");
    }
  }
  Floats same = sums;
  BestKernels().finish(same.data(), n, scale.data(), nullptr, nullptr, same.data());
  for (int64_t i = 0; i < n; ++i) ExpectNear(same[i], sums[i] * scale[i], 0.0, "in place");
}

void CheckClamp() {
  ForLengths([](const Floats& x) {
    Floats out = x;
    BestKernels().clamp(out.data(), static_cast<int64_t>(x.size()), 2.5f);
    for (size_t i = 0; i < x.size(); ++i) {
      ExpectNear(out[i], std::isnan(x[i]) ? x[i] : std::clamp(x[i], -2.5f, 2.5f), 0.0, "clamped ", x[i]);
    }
  });
}

// Every height of a tile, panels that are not full, depths that are odd; rows of the result further apart than a panel.
void CheckMultiply(Type weights, int64_t depth, bool by_depth) {
  const Kernels& k = BestKernels();
  const Type packed = k.packed_type(weights);
  const int64_t size = static_cast<int64_t>(SizeOf(packed)), padded = packed == Type::kBF16 ? (depth + 1) / 2 * 2 : depth;
  for (int64_t rows = 1; rows <= k.tile_rows; ++rows) {
    for (int64_t cols : {int64_t{1}, k.panel / 2 - 1, k.panel / 2, k.panel - 1, k.panel}) {
      if (cols < 1) continue;
      Random random(static_cast<uint64_t>(depth * 100 + rows * 10 + cols));
      const int64_t stride = by_depth ? cols + 3 : depth + 2;  // of the weights
      const Packed w = Pack(weights, random.Normals(by_depth ? (depth - 1) * stride + cols : (cols - 1) * stride + depth), 1);
      const Floats x = random.Normals(rows * depth);
      Bytes panel(k.panel * padded * size, 0xff), tile(rows * padded * size, 0xff);
      (by_depth ? k.pack_depth : k.pack_rows)(weights, w.bytes.data(), stride, cols, depth, panel.data());
      std::vector<const void*> each;
      for (int64_t r = 0; r < rows; ++r) each.push_back(x.data() + r * depth);
      k.pack_tile(weights, Type::kF32, each.data(), rows, depth, tile.data());
      const int64_t apart = k.panel + 5;
      Floats once((rows - 1) * apart + k.panel, 7.0f);
      k.multiply(packed, tile.data(), rows, depth, panel.data(), once.data(), apart, false);
      Floats twice = once;
      k.multiply(packed, tile.data(), rows, depth, panel.data(), twice.data(), apart, true);
      for (int64_t i = 0; i < static_cast<int64_t>(once.size()); ++i) {
        const int64_t r = i / apart, c = i % apart;
        if (c >= k.panel) {
          ExpectNear(twice[i], 7.0, 0.0, "between two rows");
          continue;
        }
        Sum sum;
        for (int64_t d = 0; d < depth && c < cols; ++d) {
          sum.Add(RoundAs(weights == Type::kI8 ? Type::kBF16 : weights, x[r * depth + d]) *
                  w.At(by_depth ? d * stride + c : c * stride + d));
        }
        const Value want = sum.Get();
        ExpectValue(once[i], want, rows, " rows, ", cols, " columns, product ", r, ", ", c);
        ExpectNear(twice[i], 2.0 * want.value, 3.0 * kDeviations * want.deviation, "added");
      }
    }
  }
}

}  // namespace

void AddElementCases(Cases& cases, bool quick) {
  for (Type type : kCacheTypes) cases.Add(Join("rounding to ", NameOf(type)), [=] { CheckRounding(type); });
  cases.Add("gelu", CheckGelu);
  cases.Add("swiglu", CheckSwiGlu);
  cases.Add("clamp", CheckClamp);
  for (int64_t n : {1, 2, 5, 15, 16, 17, 31, 64, 65, 128, 1000, 1023}) {
    const std::string size = " of " + std::to_string(n);
    cases.Add("norms" + size, [=] { CheckNorms(n, 1.0, 0.0, 1e-6f); });
    cases.Add("norms" + size + ", far from zero", [=] { CheckNorms(n, 1.0, 100.0, 1e-5f); });
    cases.Add("norms" + size + ", small", [=] { CheckNorms(n, 1e-6, 0.0, 1e-6f); });
    cases.Add("finish" + size, [=] { CheckFinish(n); });
    cases.Add("rotate half" + size, [=] { CheckRotate(n); });
  }
  for (Type weights : kAllTypes) {
    for (int64_t depth : {1, 2, 3, 16, 17, 31, 33, 64, 131}) {
      if (quick && depth % 2 == 0) continue;
      cases.Add(Join("packed by rows ", NameOf(weights), " ", depth), [=] { CheckMultiply(weights, depth, false); });
      if (weights == Type::kI8) continue;  // which never lies that way
      cases.Add(Join("packed by depth ", NameOf(weights), " ", depth), [=] { CheckMultiply(weights, depth, true); });
    }
  }
}

}  // namespace native
