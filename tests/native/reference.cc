#include "reference.h"

#include <algorithm>
#include <cmath>

namespace native {

Packed RandomMatrix(Random& random, Type type, int64_t rows, int64_t cols) {
  return Pack(type, random.Normals(rows * cols, 1.0 / std::sqrt(static_cast<double>(cols))), cols);
}

namespace {

Values RowOf(const Values& x, int64_t row, int64_t width) {
  return Values(x.begin() + row * width, x.begin() + (row + 1) * width);
}

void Append(Values& to, const Values& from) { to.insert(to.end(), from.begin(), from.end()); }

Values Plus(const Values& a, const Values& b) {
  Values out(a.size());
  for (size_t i = 0; i < a.size(); ++i) out[i] = SumOf(a[i], b[i]);
  return out;
}

// One head of q or k: norm and rotation.
Values HeadOf(const Value* x, const Floats& norm, const DecoderProblem& p, int64_t row) {
  const int64_t h = p.shape.head_dim, half = h / 2;
  const Values in = RmsNormOf(Values(x, x + h), norm.data(), kNormEps);
  Values out(h);
  const auto turned = [&](const Value& a, double with_a, const Value& b, double with_b) {
    const double value = a.value * with_a + b.value * with_b;
    const double own = kUnit * (std::fabs(a.value * with_a) + std::fabs(b.value * with_b));
    return Value{value, std::sqrt(std::pow(a.deviation * with_a, 2) + std::pow(b.deviation * with_b, 2) + own * own)};
  };
  for (int64_t i = 0; i < half; ++i) {
    const double cos = p.cos[row * half + i], sin = p.sin[row * half + i];
    out[i] = turned(in[i], cos, in[i + half], -sin);
    out[i + half] = turned(in[i + half], cos, in[i], sin);
  }
  return out;
}

}  // namespace

DecoderProblem MakeDecoder(const DecoderShape& s, Type weights, Type cache, const std::vector<int32_t>& start) {
  Random random(static_cast<uint64_t>(s.rows() * 31 + s.width * 7 + s.slots + static_cast<int>(weights) * 5));
  const int64_t h = s.head_dim;
  DecoderProblem p{};
  p.shape = s;
  p.weights = weights;
  p.cache = cache;
  p.x = random.Normals(s.rows() * s.width);
  for (int64_t i = 0; i < s.rows() * (h / 2); ++i) {
    const double angle = random.Uniform() * 6.0;
    p.cos.push_back(static_cast<float>(std::cos(angle)));
    p.sin.push_back(static_cast<float>(std::sin(angle)));
  }
  p.cos.shrink_to_fit();  // no room behind the last value
  p.sin.shrink_to_fit();
  p.input_norm = random.AroundOne(s.width);
  p.post_norm = random.AroundOne(s.width);
  p.q_norm = random.AroundOne(h);
  p.k_norm = random.AroundOne(h);
  p.start.assign(start.begin(), start.end());
  p.q = RandomMatrix(random, weights, s.heads() * h, s.width);
  p.k = RandomMatrix(random, weights, s.key_heads * h, s.width);
  p.v = RandomMatrix(random, weights, s.key_heads * h, s.width);
  p.o = RandomMatrix(random, weights, s.width, s.heads() * h);
  p.gate = RandomMatrix(random, weights, s.inner, s.width);
  p.up = RandomMatrix(random, weights, s.inner, s.width);
  p.down = RandomMatrix(random, weights, s.width, s.inner);
  Floats keys = random.Normals(s.batch * s.key_heads * s.slots * h), values = random.Normals(keys.size());
  for (int64_t row = 0; row < s.batch * s.key_heads; ++row) {
    for (int64_t i = (row * s.slots + start[row / s.key_heads]) * h; i < (row + 1) * s.slots * h; ++i) {
      keys[i] = values[i] = kNan;
    }
  }
  p.k_cache = Pack(cache, keys, h);
  p.v_cache = Pack(cache, values, h);
  return p;
}

qwen_asr::DecoderLayer LayerOf(const DecoderProblem& p, Bytes& k_cache, Bytes& v_cache, Floats& out) {
  const DecoderShape& s = p.shape;
  qwen_asr::DecoderLayer layer{};
  layer.weights = p.weights;
  layer.cache = p.cache;
  layer.eps = kNormEps;
  layer.batch = s.batch;
  layer.time = s.time;
  layer.key_heads = s.key_heads;
  layer.groups = s.groups;
  layer.head_dim = s.head_dim;
  layer.slots = s.slots;
  layer.x = p.x.data();
  layer.cos = p.cos.data();
  layer.sin = p.sin.data();
  layer.start = p.start.data();
  layer.input_norm = p.input_norm.data();
  layer.post_norm = p.post_norm.data();
  layer.q_norm = p.q_norm.data();
  layer.k_norm = p.k_norm.data();
  layer.q = MatrixOf(p.q, s.width);
  layer.k = MatrixOf(p.k, s.width);
  layer.v = MatrixOf(p.v, s.width);
  layer.o = MatrixOf(p.o, s.heads() * s.head_dim);
  layer.gate = MatrixOf(p.gate, s.width);
  layer.up = MatrixOf(p.up, s.width);
  layer.down = MatrixOf(p.down, s.inner);
  layer.k_cache = k_cache.data();
  layer.v_cache = v_cache.data();
  layer.out = out.data();
  return layer;
}

DecoderResult DecoderOf(const DecoderProblem& p, Way way) {
  const DecoderShape& s = p.shape;
  const int64_t h = s.head_dim, kv = s.key_heads * h;
  const Rows how = way == Way::kStep ? Rows::kFew : Rows::kMany;
  const Values cached_keys = Exactly(p.k_cache.values), cached_values = Exactly(p.v_cache.values);
  DecoderResult result;
  Values queries;
  for (int64_t row = 0; row < s.rows(); ++row) {
    const Values normed = RmsNormOf(Exactly(p.x.data() + row * s.width, s.width), p.input_norm.data(), kNormEps);
    const Values q = Times(p.q, normed, how), k = Times(p.k, normed, how);
    for (int64_t head = 0; head < s.heads(); ++head) Append(queries, HeadOf(&q[head * h], p.q_norm, p, row));
    for (int64_t head = 0; head < s.key_heads; ++head) Append(result.keys, HeadOf(&k[head * h], p.k_norm, p, row));
    Append(result.values, Times(p.v, normed, how));
  }
  Values new_keys = result.keys, new_values = result.values;
  RoundValues(p.cache, new_keys);
  RoundValues(p.cache, new_values);
  const int64_t blocks = (s.time + 63) / 64;
  for (int64_t row = 0; row < s.rows(); ++row) {
    const int64_t b = row / s.time, t = row % s.time;
    int64_t together = s.groups;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = s.time * block / blocks, end = s.time * (block + 1) / blocks;
      if (begin <= t && t < end) together = (end - begin) * s.groups;
    }
    Values attended;
    for (int64_t head = 0; head < s.heads(); ++head) {
      const int64_t key_head = head / s.groups;
      Slots slots;
      for (int64_t slot = 0; slot < p.start[b]; ++slot) {
        const int64_t at = ((b * s.key_heads + key_head) * s.slots + slot) * h;
        slots.keys.push_back(&cached_keys[at]);
        slots.values.push_back(&cached_values[at]);
      }
      for (int64_t i = 0; i <= t; ++i) {
        slots.keys.push_back(&new_keys[(b * s.time + i) * kv + key_head * h]);
        slots.values.push_back(&new_values[(b * s.time + i) * kv + key_head * h]);
      }
      Append(attended, AttentionOf(p.cache, RowOf(queries, row * s.heads() + head, h), slots, way == Way::kBlock && together >= 8));
    }
    const Values hidden = Plus(Times(p.o, attended, how), Exactly(p.x.data() + row * s.width, s.width));
    const Values inner = RmsNormOf(hidden, p.post_norm.data(), kNormEps);
    Values gated = Times(p.gate, inner, how);
    const Values up = Times(p.up, inner, how);
    for (int64_t i = 0; i < s.inner; ++i) gated[i] = SwiGluOf(gated[i], up[i]);
    Append(result.out, Plus(Times(p.down, gated, how), hidden));
  }
  return result;
}

Values EncoderOf(const EncoderProblem& p) {
  const int64_t d = p.width, h = d / p.heads, rows = p.batch * p.time;
  const Rows how = Rows::kMany;
  Values q, k, v, out;
  for (int64_t row = 0; row < rows; ++row) {
    const Values x = Exactly(p.x.data() + row * d, d);
    const Values normed = LayerNormOf(x, p.attention_norm.data(), p.attention_norm_bias.data(), kNormEps);
    Append(q, Times(p.q, normed, how, p.q_bias));
    Append(k, Times(p.k, normed, how, p.k_bias));
    Append(v, Times(p.v, normed, how, p.v_bias));
  }
  RoundValues(p.operands(), k);
  RoundValues(p.operands(), v);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t b = row / p.time, window = row % p.time / p.window, begin = window * p.window;
    const int64_t count = std::min(p.window, p.time - begin);
    const int64_t valid = std::clamp<int64_t>(p.valid[b * p.windows + window], 0, count);
    Values attended;
    for (int64_t head = 0; head < p.heads; ++head) {
      Slots slots;
      for (int64_t i = 0; i < valid; ++i) {
        const int64_t at = (b * p.time + begin + i) * d + head * h;
        slots.keys.push_back(&k[at]);
        slots.values.push_back(&v[at]);
      }
      const Value* query = &q[row * d + head * h];
      Append(attended, AttentionOf(p.operands(), Values(query, query + h), slots, count >= 8 || p.heads > 1));
    }
    const Values hidden = Plus(Times(p.out_proj, attended, how, p.out_bias), Exactly(p.x.data() + row * d, d));
    Values inner = Times(p.fc1, LayerNormOf(hidden, p.mlp_norm.data(), p.mlp_norm_bias.data(), kNormEps), how, p.fc1_bias);
    for (Value& each : inner) each = GeluOf(each);
    Values last = Plus(Times(p.fc2, inner, how, p.fc2_bias), hidden);
    for (Value& each : last) {
      if (p.limit > 0.0f) each.value = std::clamp<double>(each.value, -p.limit, p.limit);
    }
    Append(out, last);
  }
  return out;
}

Values ConvOf(const ConvProblem& p) {
  const int64_t times = (p.time + 1) / 2, freqs = (p.freq + 1) / 2;
  Values out;
  for (int64_t at = 0; at < p.rows(); ++at) {
    const int64_t f = at % freqs, t = at / freqs % times, n = at / freqs / times;
    for (int64_t c = 0; c < p.c_out; ++c) {
      Sum sum;
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t y = 2 * t + tap / 3 - 1, x = 2 * f + tap % 3 - 1;
        if (y < 0 || y >= p.time || x < 0 || x >= p.freq) continue;
        for (int64_t i = 0; i < p.c_in; ++i) {
          const double in = RoundAs(p.weights, p.x.At(((n * p.time + y) * p.freq + x) * p.c_in + i));
          sum.Add(in * p.weight.At((tap * p.c_in + i) * p.c_out + c));
        }
      }
      out.push_back(GeluOf(SumOf(sum.Get(), {p.bias[c], 0.0})));
    }
  }
  return out;
}

}  // namespace native
