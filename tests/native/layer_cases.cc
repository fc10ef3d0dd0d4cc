// A whole decoder layer for one token per row.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "decoder_layer.h"
#include "pools.h"
#include "reference.h"
#include "testing.h"

namespace native {

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

LayerProblem Make(const LayerShape& s, Type weights, Type cache, const std::vector<int32_t>& start) {
  Random random(static_cast<uint64_t>(s.batch * 31 + s.width * 7 + s.slots + static_cast<int>(weights) * 5));
  auto matrix = [&](int64_t rows, int64_t cols) {
    return Pack(weights, random.Normals(rows * cols, 1.0 / std::sqrt(static_cast<double>(cols))), cols);
  };
  auto around_one = [&](int64_t n) {
    std::vector<float> out = random.Normals(n, 0.2);
    for (float& each : out) each += 1.0f;
    return out;
  };
  const int64_t h = s.head_dim;
  LayerProblem p{s, weights, cache, random.Normals(s.batch * s.width), {}, {}, around_one(s.width), around_one(s.width),
                 around_one(h), around_one(h), start, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  for (int64_t i = 0; i < s.batch * h / 2; ++i) {
    const double angle = random.Uniform() * 6.0;
    p.cos.push_back(static_cast<float>(std::cos(angle)));
    p.sin.push_back(static_cast<float>(std::sin(angle)));
  }
  p.q = matrix(s.heads() * h, s.width);
  p.k = matrix(s.key_heads * h, s.width);
  p.v = matrix(s.key_heads * h, s.width);
  p.o = matrix(s.width, s.heads() * h);
  p.gate = matrix(s.inner, s.width);
  p.up = matrix(s.inner, s.width);
  p.down = matrix(s.width, s.inner);
  // From the new token's slot on the cache is full of NaN: reading there shows.
  std::vector<float> keys = random.Normals(s.batch * s.key_heads * s.slots * h), values = random.Normals(keys.size());
  for (int64_t row = 0; row < s.batch * s.key_heads; ++row) {
    for (int64_t i = (row * s.slots + start[row / s.key_heads]) * h; i < (row + 1) * s.slots * h; ++i) {
      keys[i] = values[i] = kNan;
    }
  }
  p.k_cache = Pack(cache, keys, h);
  p.v_cache = Pack(cache, values, h);
  return p;
}

struct Ran {
  std::vector<float> out;
  std::vector<uint8_t> k_cache, v_cache;
};

Ran Run(const LayerProblem& p, qwen_asr::Pool& pool) {
  const LayerShape& s = p.shape;
  Ran ran{std::vector<float>(s.batch * s.width, kNan), p.k_cache.bytes, p.v_cache.bytes};
  qwen_asr::DecoderLayer layer{};
  layer.weights = p.weights;
  layer.cache = p.cache;
  layer.eps = kNormEps;
  layer.batch = s.batch;
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
  layer.k_cache = ran.k_cache.data();
  layer.v_cache = ran.v_cache.data();
  layer.out = ran.out.data();
  RunDecoderLayer(layer, pool);
  return ran;
}

// The new slot's values near `want`, every other byte as before.
void CheckCache(const std::string& name, const LayerProblem& p, const Packed& before, const std::vector<uint8_t>& after,
                const std::vector<double>& want, double tolerance) {
  const LayerShape& s = p.shape;
  const int64_t h = s.head_dim;
  const std::vector<double> values = Values(p.cache, after);
  std::vector<uint8_t> rest = after;
  for (int64_t row = 0; row < s.batch * s.key_heads; ++row) {
    const int64_t slot = row * s.slots + p.start[row / s.key_heads];
    for (int64_t i = 0; i < h; ++i) {
      const double expected = want[row * h + i];
      ExpectNear(values[slot * h + i], expected, tolerance * (0.25 + std::fabs(expected)), name, " ", i, " of row ", row);
    }
    const size_t size = SizeOf(p.cache);
    std::memcpy(rest.data() + slot * h * size, before.bytes.data() + slot * h * size, h * size);
  }
  ExpectSame(name + " elsewhere", rest, before.bytes);
}

// Where a sum in float32 falls on the other side of a rounding to 16 bits than one in double, a value differs by one unit of
// its type: tolerances are a few of the coarsest unit on the way, as a fraction of the largest output.
double ToleranceOf(Type type) {
  switch (type) {
    case Type::kF32:
      return 1e-5;
    case Type::kF16:
      return 1e-3;
    case Type::kI8:
      return 5e-4;  // operands as whole numbers of 16 bits
    default:
      return 8e-3;
  }
}

void Check(const LayerShape& s, Type weights, Type cache, const std::vector<int32_t>& start) {
  const LayerProblem p = Make(s, weights, cache, start);
  TestPool pool(2, Manners::kPrompt);
  const Ran got = Run(p, pool);
  const LayerResult want = LayerOf(p);
  const double tolerance = std::max(ToleranceOf(weights), ToleranceOf(cache));
  for (int64_t b = 0; b < s.batch; ++b) {
    double largest = 0.0;
    for (int64_t i = 0; i < s.width; ++i) largest = std::max(largest, std::fabs(want.out[b * s.width + i]));
    for (int64_t i = b * s.width; i < (b + 1) * s.width; ++i) {
      ExpectNear(got.out[i], want.out[i], tolerance * largest, "output ", i - b * s.width, " of row ", b);
    }
  }
  CheckCache("key", p, p.k_cache, got.k_cache, want.keys, tolerance);
  CheckCache("value", p, p.v_cache, got.v_cache, want.values, tolerance);
}

// A NaN in one row's input stays in that row.
void CheckNan(const LayerShape& s, Type weights, Type cache, const std::vector<int32_t>& start) {
  LayerProblem p = Make(s, weights, cache, start);
  TestPool pool(2, Manners::kPrompt);
  const Ran clean = Run(p, pool);
  p.x[(s.batch - 1) * s.width + s.width / 2] = kNan;
  const Ran got = Run(p, pool);
  const int64_t others = (s.batch - 1) * s.width;
  for (int64_t i = others; i < s.batch * s.width; ++i) ExpectNear(got.out[i], kNan, 0.0, "output of the row with a NaN");
  ExpectSame("other rows", std::vector<float>(got.out.begin(), got.out.begin() + others),
             std::vector<float>(clean.out.begin(), clean.out.begin() + others));
}

void CheckThreads(const LayerShape& s, Type weights, Type cache, const std::vector<int32_t>& start, bool quick) {
  const LayerProblem p = Make(s, weights, cache, start);
  TestPool alone(1, Manners::kPrompt);
  const Ran want = Run(p, alone);
  ForPools(quick, [&](qwen_asr::Pool& pool, const std::string& what) {
    const Ran got = Run(p, pool);
    ExpectSame(what + ", output", got.out, want.out);
    ExpectSame(what + ", keys", got.k_cache, want.k_cache);
    ExpectSame(what + ", values", got.v_cache, want.v_cache);
  });
}

}  // namespace

void AddLayerCases(Cases& cases, bool quick) {
  // Heads as the models have them, and sizes that no vector length divides.
  const LayerShape usual{1, 128, 2, 2, 64, 160, 600}, odd{1, 37, 1, 3, 10, 53, 300}, wide{1, 192, 2, 1, 128, 96, 40};
  for (Type weights : kAllTypes) {
    for (Type cache : kCacheTypes) {
      if (quick && weights != Type::kF32 && cache != Type::kBF16) continue;
      auto add = [&](LayerShape s, std::vector<int32_t> start) {
        s.batch = static_cast<int64_t>(start.size());
        std::string name = Join("layer ", NameOf(weights), ", cache ", NameOf(cache), ", ", s.width, " wide, at");
        for (int32_t each : start) name += " " + std::to_string(each);
        cases.push_back({name, [=] { Check(s, weights, cache, start); }});
        if (s.batch > 1) cases.push_back({name + ", a NaN", [=] { CheckNan(s, weights, cache, start); }});
      };
      // The first slot, the last one, the edges of blocks of 256, rows at different places.
      add(usual, {599, 0});
      add(odd, {256, 255, 0, 299});
      add(wide, {39});
      if (!quick) {
        for (int32_t start : {0, 1, 255, 256, 257, 599}) add(usual, {start});
        add(odd, {0});
        add(usual, {3, 511, 512, 100});
        add(wide, {0, 10, 20, 30, 39});
        add(odd, {5, 299, 1, 0, 256, 77});
        add(usual, {0, 0, 0, 0, 0, 0, 0});
        add(usual, {599, 300, 0, 255, 256, 257, 511, 512});
      }
      const LayerShape s{3, 128, 2, 2, 64, 160, 600};
      cases.push_back({Join("layer ", NameOf(weights), ", cache ", NameOf(cache), ", pools"),
                       [=] { CheckThreads(s, weights, cache, {599, 0, 256}, quick); }});
    }
  }
}

}  // namespace native
