// The stem's convolution with its GELU.

#include <cmath>
#include <memory>

#include "conv.h"
#include "pools.h"
#include "reference.h"
#include "testing.h"

namespace native {

namespace {

struct Shape {
  int64_t images, time, freq, c_in, c_out;
};

ConvProblem Make(const Shape& s, Type weights, Type input) {
  Random random(static_cast<uint64_t>(s.time * 131 + s.freq * 17 + s.c_in * 3 + s.c_out));
  const double scale = 1.0 / std::sqrt(9.0 * static_cast<double>(s.c_in));
  return {weights, input, s.images, s.time, s.freq, s.c_in, s.c_out,
          Pack(input, random.Normals(s.images * s.time * s.freq * s.c_in), 1),
          Pack(weights, random.Normals(9 * s.c_in * s.c_out, scale), 1), random.Normals(s.c_out)};
}

Bytes Run(const ConvProblem& p, qwen_asr::Pool& pool) {
  Bytes out(p.rows() * p.c_out * SizeOf(p.weights), 0xff);  // NaN in every type
  qwen_asr::Conv conv{};
  conv.weights = p.weights;
  conv.input = p.input;
  conv.images = p.images;
  conv.time = p.time;
  conv.freq = p.freq;
  conv.c_in = p.c_in;
  conv.c_out = p.c_out;
  conv.x = p.x.bytes.data();
  conv.weight = p.weight.bytes.data();
  conv.bias = p.bias.data();
  conv.out = out.data();
  RunConv(conv, pool);
  return out;
}

Check Prepare(const Shape& s, Type weights, Type input) {
  const auto p = std::make_shared<ConvProblem>(Make(s, weights, input));
  const auto want = std::make_shared<Values>(ConvOf(*p));
  return [=] {
    TestPool pool(2, Manners::kPrompt);
    const std::vector<double> got = Unpack(p->weights, Run(*p, pool));
    for (size_t i = 0; i < want->size(); ++i) {
      if (weights == Type::kF32) {
        ExpectValue(got[i], (*want)[i], "channel ", i % p->c_out, " of position ", i / p->c_out);
      } else {
        ExpectStored(weights, got[i], (*want)[i], "channel ", i % p->c_out, " of position ", i / p->c_out);
      }
    }
  };
}

void CheckThreads(const Shape& s, Type weights, bool quick) {
  const ConvProblem p = Make(s, weights, weights);
  TestPool alone(1, Manners::kPrompt);
  const Bytes want = Run(p, alone);
  ForPools(quick, [&](qwen_asr::Pool& pool, const std::string& what) { ExpectSame(what, Run(p, pool), want); });
}

}  // namespace

void AddConvCases(Cases& cases, bool quick) {
  // Few channels, whose nine taps make one product, up to eight; more; rows and columns at the edge on one side or both.
  std::vector<Shape> shapes = {{1, 1, 1, 1, 1}, {2, 5, 4, 1, 33}, {1, 6, 7, 3, 5}, {2, 3, 5, 9, 40}, {1, 4, 4, 48, 48}};
  if (!quick) {
    shapes.insert(shapes.end(), {{1, 1, 9, 1, 48}, {3, 2, 1, 3, 17}, {1, 9, 1, 8, 31}, {2, 7, 8, 8, 65}, {1, 1, 1, 9, 16},
                                 {1, 1, 7, 48, 3}, {2, 1, 2, 9, 32}, {5, 10, 6, 1, 16}, {1, 31, 20, 3, 24}});
  }
  for (Type weights : kCacheTypes) {
    for (Type input : {weights, Type::kF32}) {
      if (input == weights && weights != Type::kF32 && quick) continue;
      for (Shape s : shapes) {
        cases.AddPrepared(Join("conv ", NameOf(weights), " of ", NameOf(input), ", ", s.images, " of ", s.time, "x", s.freq, "x", s.c_in,
                               " to ", s.c_out),
                          [=] { return Prepare(s, weights, input); });
      }
      if (weights == Type::kF32) break;
    }
    cases.Add(Join("conv ", NameOf(weights), ", pools"), [=] { CheckThreads({2, 20, 12, 9, 40}, weights, quick); });
    cases.Add(Join("conv ", NameOf(weights), ", thin, pools"), [=] { CheckThreads({2, 20, 12, 1, 40}, weights, quick); });
  }
}

}  // namespace native
