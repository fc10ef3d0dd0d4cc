#include "reference.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace native {

namespace {

// Operands of int8 weights may become whole numbers up to this, so that int32 sums of `n` products cannot overflow.
double IntegerLimit(int64_t n) {
  return std::min(32767.0, std::floor(2147483647.0 / (128.0 * static_cast<double>(n / 8 + 2))));
}

std::vector<double> Times(const Packed& weights, const std::vector<double>& x) {
  std::vector<double> out;
  for (const Product& each : ProductsOf(weights, x)) out.push_back(each.value);
  return out;
}

std::vector<double> Norm(const double* x, const float* weight, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  std::vector<double> out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] / std::sqrt(sum / static_cast<double>(n) + kNormEps) * weight[i];
  return out;
}

// One head of q or k: norm, rotation, the cache's type.
std::vector<double> Head(const double* x, const std::vector<float>& norm, const LayerProblem& p, int64_t b) {
  const int64_t h = p.shape.head_dim;
  std::vector<double> in = Norm(x, norm.data(), h), out(h);
  for (int64_t i = 0; i < h / 2; ++i) {
    const double cos = p.cos[b * h / 2 + i], sin = p.sin[b * h / 2 + i];
    out[i] = in[i] * cos - in[i + h / 2] * sin;
    out[i + h / 2] = in[i + h / 2] * cos + in[i] * sin;
  }
  for (double& each : out) each = RoundAs(p.cache, each);
  return out;
}

// One query over the slots up to `start`; the newest key and value are given, the others come from the cache.
std::vector<double> Attend(const std::vector<double>& q, const LayerProblem& p, int64_t b, int64_t head, const double* key,
                           const double* value) {
  const int64_t h = p.shape.head_dim, row = (b * p.shape.key_heads + head) * p.shape.slots, slots = p.start[b] + 1;
  std::vector<double> scores(slots), out(h);
  for (int64_t s = 0; s < slots; ++s) {
    for (int64_t i = 0; i < h; ++i) scores[s] += q[i] * (s == slots - 1 ? key[i] : p.k_cache.At((row + s) * h + i));
    scores[s] /= std::sqrt(static_cast<double>(h));
  }
  double largest = scores[0], total = 0.0;
  for (double score : scores) largest = std::max(largest, score);
  for (double& score : scores) total += score = std::exp(score - largest);
  for (int64_t s = 0; s < slots; ++s) {
    for (int64_t i = 0; i < h; ++i) {
      out[i] += scores[s] / total * (s == slots - 1 ? value[i] : p.v_cache.At((row + s) * h + i));
    }
  }
  return out;
}

}  // namespace

std::vector<Product> ProductsOf(const Packed& weights, const std::vector<double>& x) {
  const int64_t cols = static_cast<int64_t>(x.size()), rows = static_cast<int64_t>(weights.values.size()) / cols;
  std::vector<double> rounded = x;
  double largest = 0.0;
  for (double& each : rounded) largest = std::max(largest, std::fabs(each = RoundAs(weights.type, each)));
  std::vector<Product> out;
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0.0, magnitude = 0.0, of_weights = 0.0;
    for (int64_t i = 0; i < cols; ++i) {
      const double w = weights.At(r * cols + i);
      sum += w * rounded[i];
      magnitude += std::fabs(w * rounded[i]);
      of_weights += std::fabs(w);
    }
    // The last term is for instructions that take denormal numbers for zeros.
    double tolerance = 3e-6 * magnitude + (of_weights + static_cast<double>(cols) * (1.0 + largest)) * FLT_MIN;
    if (weights.type == Type::kI8) tolerance += 0.51 * of_weights * largest / IntegerLimit(cols);
    const double scale = weights.scales.empty() ? 1.0 : weights.scales[r];
    out.push_back({sum * scale, tolerance * scale});
  }
  return out;
}

LayerResult LayerOf(const LayerProblem& p) {
  const LayerShape& s = p.shape;
  const int64_t h = s.head_dim;
  LayerResult result;
  for (int64_t b = 0; b < s.batch; ++b) {
    const std::vector<double> x(p.x.begin() + b * s.width, p.x.begin() + (b + 1) * s.width);
    const std::vector<double> normed = Norm(x.data(), p.input_norm.data(), s.width);
    const std::vector<double> q = Times(p.q, normed), k = Times(p.k, normed), v = Times(p.v, normed);
    std::vector<double> attended;
    for (int64_t head = 0; head < s.key_heads; ++head) {
      const std::vector<double> key = Head(&k[head * h], p.k_norm, p, b);
      std::vector<double> value(v.begin() + head * h, v.begin() + (head + 1) * h);
      for (double& each : value) each = RoundAs(p.cache, each);
      result.keys.insert(result.keys.end(), key.begin(), key.end());
      result.values.insert(result.values.end(), value.begin(), value.end());
      for (int64_t g = 0; g < s.groups; ++g) {
        const std::vector<double> query = Head(&q[(head * s.groups + g) * h], p.q_norm, p, b);
        const std::vector<double> one = Attend(query, p, b, head, key.data(), value.data());
        attended.insert(attended.end(), one.begin(), one.end());
      }
    }
    std::vector<double> hidden = Times(p.o, attended);
    for (int64_t i = 0; i < s.width; ++i) hidden[i] += x[i];
    const std::vector<double> inner = Norm(hidden.data(), p.post_norm.data(), s.width);
    std::vector<double> gated = Times(p.gate, inner);
    const std::vector<double> up = Times(p.up, inner);
    for (int64_t i = 0; i < s.inner; ++i) gated[i] = gated[i] / (1.0 + std::exp(-gated[i])) * up[i];
    std::vector<double> out = Times(p.down, gated);
    for (int64_t i = 0; i < s.width; ++i) out[i] += hidden[i];
    result.out.insert(result.out.end(), out.begin(), out.end());
  }
  return result;
}

}  // namespace native
