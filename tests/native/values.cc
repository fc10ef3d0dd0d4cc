#include "values.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace native {

namespace {

double Square(double x) { return x * x; }

// Uniform errors of up to half a unit have this deviation, in units.
const double kUniform = 1.0 / std::sqrt(12.0);

// Operands of int8 weights may become whole numbers up to this, so that int32 sums of `n` products cannot overflow.
double IntegerLimit(int64_t n) {
  return std::min(32767.0, std::floor(2147483647.0 / (128.0 * static_cast<double>(n / 8 + 2))));
}

}  // namespace

Values Exactly(const float* x, int64_t n) {
  Values out(n);
  for (int64_t i = 0; i < n; ++i) out[i].value = x[i];
  return out;
}

Values Exactly(const std::vector<double>& x) {
  Values out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i].value = x[i];
  return out;
}

Value RoundValue(Type type, Value x) {
  if (type == Type::kF32 || type == Type::kI8) return x;
  const double rounded = RoundAs(type, x.value);
  constexpr double kFar = 4.0;
  if (x.deviation == 0.0 || !std::isfinite(x.value)) return {rounded, 0.0};
  if (RoundAs(type, x.value - kFar * x.deviation) == RoundAs(type, x.value + kFar * x.deviation)) return {rounded, 0.0};
  double weights = 0.0, squares = 0.0;
  for (double z = -kFar; z <= kFar; z += 0.25) {
    const double weight = std::exp(-0.5 * z * z);
    weights += weight;
    squares += weight * Square(RoundAs(type, x.value + z * x.deviation) - rounded);
  }
  return {rounded, std::sqrt(squares / weights)};
}

void RoundValues(Type type, Values& x) {
  for (Value& each : x) each = RoundValue(type, each);
}

void Sum::Add(double product) {
  ++n_;
  value_ += product;
  products_ += product * product;
  largest_ = std::max(largest_, std::fabs(value_));
}

Value Sum::Get() const {
  // A sum on the way is as large as some of its parts, in another order than here; a product may be rounded on its own.
  const double way = std::max(largest_, std::sqrt(products_));
  const double own = 2.0 * kUnit * kUniform * (std::sqrt(static_cast<double>(n_)) * way + std::sqrt(products_));
  // Some instructions take denormal numbers for zeros.
  return {value_, std::sqrt(Square(own) + squares_) + static_cast<double>(n_) * FLT_MIN};
}

Values Times(const Packed& weights, Values x, Rows rows, const Floats& bias) {
  const auto cols = static_cast<int64_t>(x.size()), count = static_cast<int64_t>(weights.values.size()) / cols;
  double largest = 0.0, flushed = 0.0;
  if (weights.type == Type::kI8 && rows == Rows::kMany) {
    RoundValues(Type::kBF16, x);
  } else {
    RoundValues(weights.type, x);
  }
  for (const Value& each : x) largest = std::max(largest, std::fabs(each.value));
  flushed = (1.0 + largest) * FLT_MIN;  // a denormal weight, or operand, that counts as zero
  if (weights.type == Type::kI8 && rows == Rows::kFew) {
    const double unit = 1.01 * kUniform * largest / IntegerLimit(cols);
    for (Value& each : x) each.deviation = std::sqrt(Square(each.deviation) + Square(unit));
  }
  Values out(count);
  for (int64_t r = 0; r < count; ++r) {
    Sum sum;
    for (int64_t i = 0; i < cols; ++i) {
      const double w = weights.At(r * cols + i);
      sum.Add(w * x[i].value);
      sum.AddDeviation(std::fabs(w) * (x[i].deviation + FLT_MIN) + flushed);
    }
    out[r] = sum.Get();
    if (!weights.scales.empty()) {
      const double scale = weights.scales[r];
      out[r] = {out[r].value * scale, std::fabs(scale) * (out[r].deviation + 2.0 * kUnit * std::fabs(out[r].value))};
    }
    if (!bias.empty()) out[r] = SumOf(out[r], {bias[r], 0.0});
  }
  return out;
}

namespace {

// Values times 1 / sqrt(mean of squares + eps), which is wrong by the same factor for all of them.
Values Scaled(const Values& x, double eps) {
  Sum squares;
  const auto n = static_cast<double>(x.size());
  for (const Value& each : x) {
    squares.Add(each.value * each.value);
    squares.AddDeviation(2.0 * std::fabs(each.value) * each.deviation);
  }
  const Value sum = squares.Get();
  const double mean = sum.value / n + eps, scale = 1.0 / std::sqrt(mean);
  const double relative = 0.5 * sum.deviation / n / mean + 2.0 * kUnit;
  Values out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = x[i].value * scale;
    out[i] = {value, std::sqrt(Square(x[i].deviation * scale) + Square(value * relative))};
  }
  return out;
}

}  // namespace

Values RmsNormOf(const Values& x, const float* weight, double eps) {
  Values out = Scaled(x, eps);
  for (size_t i = 0; i < x.size(); ++i) {
    const double w = weight[i];
    out[i] = {out[i].value * w, std::fabs(w) * (out[i].deviation + kUnit * std::fabs(out[i].value))};
  }
  return out;
}

Values LayerNormOf(const Values& x, const float* weight, const float* bias, double eps) {
  Sum all;
  for (const Value& each : x) {
    all.Add(each.value);
    all.AddDeviation(each.deviation);
  }
  const auto n = static_cast<double>(x.size());
  const Value mean = {all.Get().value / n, all.Get().deviation / n + kUnit * std::fabs(all.Get().value / n)};
  Values centred(x.size());
  for (size_t i = 0; i < x.size(); ++i) centred[i] = SumOf(x[i], {-mean.value, mean.deviation});
  Values out = Scaled(centred, eps);
  for (size_t i = 0; i < x.size(); ++i) {
    const double w = weight[i], value = out[i].value * w;
    out[i] = SumOf({value, std::fabs(w) * out[i].deviation + kUnit * std::fabs(value)}, {bias[i], 0.0});
  }
  return out;
}

// The kernels' erf is wrong by 1.5e-7 at most.
Value GeluOf(Value x) {
  const double half = 0.5 * (1.0 + std::erf(x.value / std::sqrt(2.0))), slope = 1.13;  // its largest
  const double own = std::fabs(x.value) * (0.75e-7 + 4.0 * kUnit) / 2.0;
  return {x.value * half, std::sqrt(Square(slope * x.deviation) + Square(own)) + FLT_MIN};
}

Value SwiGluOf(Value gate, Value up) {
  const double silu = gate.value / (1.0 + std::exp(-gate.value)), slope = 1.1;  // its largest
  const double value = silu * up.value;
  return {value, std::sqrt(Square(slope * gate.deviation * up.value) + Square(silu * up.deviation) + Square(4.0 * kUnit * value)) +
                     FLT_MIN * (1.0 + std::fabs(up.value))};
}

Value SumOf(Value a, Value b) {
  const double sum = a.value + b.value;
  return {sum, std::sqrt(Square(a.deviation) + Square(b.deviation) + Square(kUnit * sum))};
}

Values AttentionOf(Type cache, Values q, const Slots& slots, bool rounded) {
  const size_t h = q.size(), count = slots.keys.size();
  RoundValues(cache, q);
  Values scores(count), weights(count), out(h);
  const double scale = 1.0 / std::sqrt(static_cast<double>(h));
  double largest = -HUGE_VAL, total = 0.0, total_squares = 0.0;
  for (size_t s = 0; s < count; ++s) {
    Sum sum;
    for (size_t i = 0; i < h; ++i) {
      const Value& key = slots.keys[s][i];
      sum.Add(q[i].value * key.value);
      sum.AddDeviation(q[i].value * key.deviation);
      sum.AddDeviation(q[i].deviation * key.value);
    }
    scores[s] = {sum.Get().value * scale, sum.Get().deviation * scale};
    largest = std::isnan(scores[s].value) ? scores[s].value : std::max(largest, scores[s].value);
  }
  // A weight's own deviation, relative to it; that of the total is of their sum.
  for (size_t s = 0; s < count; ++s) {
    const double below = largest - scores[s].value, weight = std::exp(-below);
    const double relative = std::sqrt(Square(scores[s].deviation) + Square(kUnit * (4.0 + std::fabs(scores[s].value) + below)));
    weights[s] = {weight, weight * relative};
    total += weight;
    total_squares += Square(weights[s].deviation);
  }
  const double of_total = std::sqrt(total_squares) / total + 3.0 * kUnit;
  for (Value& each : weights) {
    each = {each.value / total, each.deviation / total};
    if (!rounded) continue;
    each = RoundValue(cache, {each.value, std::sqrt(Square(each.deviation) + Square(each.value * of_total))});
  }
  for (size_t i = 0; i < h; ++i) {
    Sum sum;
    for (size_t s = 0; s < count; ++s) {
      const Value& value = slots.values[s][i];
      sum.Add(weights[s].value * value.value);
      sum.AddDeviation(weights[s].deviation * value.value);
      sum.AddDeviation(weights[s].value * value.deviation);
    }
    out[i] = sum.Get();
    if (count > 0) out[i].deviation = std::sqrt(Square(out[i].deviation) + Square(out[i].value * of_total));
  }
  return out;
}

}  // namespace native
