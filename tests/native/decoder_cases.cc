// A whole decoder layer: one token per row, or several.

#include <cstring>
#include <memory>

#include "decoder_layer.h"
#include "pools.h"
#include "reference.h"
#include "testing.h"

namespace native {

namespace {

struct Ran {
  Floats out;
  Bytes k_cache, v_cache;
};

using Runs = void (*)(qwen_asr::DecoderLayer, qwen_asr::Pool&);

void RunAny(qwen_asr::DecoderLayer layer, qwen_asr::Pool& pool) { qwen_asr::RunDecoderLayers(&layer, 1, pool); }
void RunStep(qwen_asr::DecoderLayer layer, qwen_asr::Pool& pool) { qwen_asr::RunDecoderStep(&layer, 1, pool); }
void RunBlock(qwen_asr::DecoderLayer layer, qwen_asr::Pool& pool) { qwen_asr::RunDecoderBlock(layer, pool); }

Ran Run(const DecoderProblem& p, qwen_asr::Pool& pool, Runs run = RunAny) {
  Ran ran{Floats(p.shape.rows() * p.shape.width, kNan), p.k_cache.bytes, p.v_cache.bytes};
  run(LayerOf(p, ran.k_cache, ran.v_cache, ran.out), pool);
  return ran;
}

// Three layers of the same weights, each with caches of its own, in one call and in three.
void ExpectChained(const DecoderProblem& p, qwen_asr::Pool& pool) {
  constexpr int kLayers = 3;
  DecoderProblem next = p;
  Ran one[kLayers];
  for (Ran& each : one) {
    each = Run(next, pool);
    next.x = each.out;
  }
  Floats out(p.shape.rows() * p.shape.width, kNan);
  Ran all[kLayers];
  qwen_asr::DecoderLayer layers[kLayers];
  for (int i = 0; i < kLayers; ++i) {
    all[i] = {{}, p.k_cache.bytes, p.v_cache.bytes};
    layers[i] = LayerOf(p, all[i].k_cache, all[i].v_cache, out);
  }
  qwen_asr::RunDecoderLayers(layers, kLayers, pool);
  ExpectSame("three layers in one call", out, one[kLayers - 1].out);
  for (int i = 0; i < kLayers; ++i) {
    ExpectSame(Join("keys of layer ", i), all[i].k_cache, one[i].k_cache);
    ExpectSame(Join("values of layer ", i), all[i].v_cache, one[i].v_cache);
  }
}

// The new slots' values near `want`, every other byte as before.
void ExpectCache(const std::string& name, const DecoderProblem& p, const Packed& before, const Bytes& after, const Values& want) {
  const DecoderShape& s = p.shape;
  const int64_t h = s.head_dim;
  const std::vector<double> values = Unpack(p.cache, after);
  Bytes rest = after;
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t t = 0; t < s.time; ++t) {
      for (int64_t head = 0; head < s.key_heads; ++head) {
        const int64_t slot = (b * s.key_heads + head) * s.slots + p.start[b] + t, of = (b * s.time + t) * s.key_heads + head;
        for (int64_t i = 0; i < h; ++i) {
          ExpectStored(p.cache, values[slot * h + i], want[of * h + i], name, " ", i, " of token ", t, " of row ", b);
        }
        const size_t size = SizeOf(p.cache);
        std::memcpy(rest.data() + slot * h * size, before.bytes.data() + slot * h * size, h * size);
      }
    }
  }
  ExpectSame(name + " elsewhere", rest, before.bytes);
}

void Expect(const char* how, const DecoderProblem& p, const Ran& got, const DecoderResult& want) {
  const int64_t width = p.shape.width;
  for (size_t i = 0; i < want.out.size(); ++i) {
    ExpectValue(got.out[i], want.out[i], how, ", output ", i % width, " of row ", i / width);
  }
  ExpectCache(Join(how, ", key"), p, p.k_cache, got.k_cache, want.keys);
  ExpectCache(Join(how, ", value"), p, p.v_cache, got.v_cache, want.values);
}

// The same tokens one after the other.
Ran RunSteps(const DecoderProblem& p, qwen_asr::Pool& pool) {
  const DecoderShape& s = p.shape;
  const int64_t half = s.head_dim / 2;
  DecoderProblem step = p;
  step.shape.time = 1;
  Floats all(s.rows() * s.width);
  for (int64_t t = 0; t < s.time; ++t) {
    for (int64_t b = 0; b < s.batch; ++b) {
      const int64_t row = b * s.time + t;
      std::memcpy(&step.x[b * s.width], &p.x[row * s.width], s.width * sizeof(float));
      std::memcpy(&step.cos[b * half], &p.cos[row * half], half * sizeof(float));
      std::memcpy(&step.sin[b * half], &p.sin[row * half], half * sizeof(float));
      step.start[b] = static_cast<int32_t>(p.start[b] + t);
    }
    const Ran one = Run(step, pool, RunStep);
    for (int64_t b = 0; b < s.batch; ++b) {
      std::memcpy(&all[(b * s.time + t) * s.width], &one.out[b * s.width], s.width * sizeof(float));
    }
    step.k_cache.bytes = one.k_cache;
    step.v_cache.bytes = one.v_cache;
  }
  return {all, step.k_cache.bytes, step.v_cache.bytes};
}

// A NaN in the last token's input stays in its row.
void ExpectApart(const DecoderProblem& p) {
  const DecoderShape& s = p.shape;
  TestPool pool(2, Manners::kPrompt);
  const Ran clean = Run(p, pool);
  const int64_t last = (s.rows() - 1) * s.width;
  DecoderProblem with_nan = p;
  with_nan.x[last + s.width / 2] = kNan;
  const Ran got = Run(with_nan, pool);
  for (int64_t i = last; i < s.rows() * s.width; ++i) ExpectNear(got.out[i], kNan, 0.0, "output of the token with a NaN");
  // Earlier tokens of its own row may have it, too: attention gives what is behind them a weight of zero, and zero times NaN is NaN.
  const int64_t others = (s.batch - 1) * s.time * s.width;
  ExpectSame("other rows", Floats(got.out.begin(), got.out.begin() + others), Floats(clean.out.begin(), clean.out.begin() + others));
}

// Both ways, whichever of them the layer itself takes.
Check Prepare(const DecoderShape& s, Type weights, Type cache, const std::vector<int32_t>& start) {
  const auto p = std::make_shared<DecoderProblem>(MakeDecoder(s, weights, cache, start));
  const auto block = std::make_shared<DecoderResult>(DecoderOf(*p, Way::kBlock));
  const bool both = s.batch <= qwen_asr::kFewRows && s.time <= 9;
  const auto steps = std::make_shared<DecoderResult>(both ? DecoderOf(*p, Way::kStep) : DecoderResult());
  return [=] {
    TestPool pool(2, Manners::kPrompt);
    Expect("a block", *p, Run(*p, pool, RunBlock), *block);
    if (both) Expect("steps", *p, RunSteps(*p, pool), *steps);
    Expect("the layer", *p, Run(*p, pool), s.steps() ? *steps : *block);
    ExpectApart(*p);
    ExpectChained(*p, pool);
  };
}

void ExpectSameForPools(const DecoderProblem& p, bool quick) {
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

void AddDecoderCases(Cases& cases, bool quick) {
  // Heads as the models have them, and sizes that no vector length divides.
  const DecoderShape usual{1, 1, 128, 2, 2, 64, 160, 600}, odd{1, 1, 37, 1, 3, 10, 53, 300}, wide{1, 1, 192, 2, 1, 128, 96, 40};
  for (Type weights : kAllTypes) {
    for (Type cache : kCacheTypes) {
      if (quick && weights != Type::kF32 && cache != Type::kBF16) continue;
      const auto name = [&](const DecoderShape& s, const std::vector<int32_t>& start) {
        std::string all = Join("decoder ", NameOf(weights), ", cache ", NameOf(cache), ", ", s.width, " wide, ", s.time, " at");
        for (int32_t each : start) all += " " + std::to_string(each);
        return all;
      };
      const auto add = [&](DecoderShape s, int64_t time, std::vector<int32_t> start) {
        s.batch = static_cast<int64_t>(start.size());
        s.time = time;
        cases.AddPrepared(name(s, start), [=] { return Prepare(s, weights, cache, start); });
      };
      // The first slot, the last one, the edges of blocks of 256, rows at different places.
      add(usual, 1, {599, 0});
      add(odd, 1, {256, 255, 0, 299});
      add(wide, 1, {39});
      add(odd, 1, {0, 299, 31, 5, 256, 7, 77, 1, 2});
      add(odd, 2, {0, 298});
      add(odd, 5, {295});
      add(wide, 40, {0});
      add(odd, 7, {0, 293});
      if (!quick) {
        for (int32_t start : {0, 1, 255, 256, 257, 599}) add(usual, 1, {start});
        add(odd, 1, {0});
        add(usual, 1, {3, 511, 512, 100});
        add(wide, 1, {0, 10, 20, 30, 39});
        add(usual, 1, {599, 300, 0, 255, 256, 257, 511, 512});
        for (int64_t time : {2, 3, 4, 7, 13}) add(wide, time, {static_cast<int32_t>(40 - time), 0});
        add(usual, 3, {597, 0, 100});
        add(usual, 9, {0});
        add(odd, 33, {0, 267, 5});
        add(odd, 130, {0, 170});  // three blocks of queries
        add(wide, 9, {31, 0});
      }
      const DecoderShape step{3, 1, 128, 2, 2, 64, 160, 600}, block{2, 11, 128, 2, 2, 64, 160, 300};
      if (cache != Type::kBF16) continue;
      cases.AddPrepared(Join("decoder ", NameOf(weights), ", step, pools"), [=] {
        const auto p = std::make_shared<DecoderProblem>(MakeDecoder(step, weights, cache, {599, 0, 256}));
        return [=] { ExpectSameForPools(*p, quick); };
      });
      cases.AddPrepared(Join("decoder ", NameOf(weights), ", block, pools"), [=] {
        const auto p = std::make_shared<DecoderProblem>(MakeDecoder(block, weights, cache, {289, 0}));
        return [=] { ExpectSameForPools(*p, quick); };
      });
    }
  }
}

}  // namespace native
