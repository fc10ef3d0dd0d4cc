// Decode steps of the CUDA kernels, emulated, against the reference of the CPU's.

#include <cstring>
#include <memory>

#include "emulated_programs.h"
#include "reference.h"

namespace native {

namespace {

using qwen_asr_gpu::DecoderStep;

// Matrices of one type on top of each other.
struct Fused {
  Bytes bytes;
  Floats scales;

  void Append(const Packed& part) {
    bytes.insert(bytes.end(), part.bytes.begin(), part.bytes.end());
    scales.insert(scales.end(), part.scales.begin(), part.scales.end());
    bytes.shrink_to_fit();  // no room behind the last value
    scales.shrink_to_fit();
  }
  qwen_asr_gpu::Weights weights() const { return {bytes.data(), scales.empty() ? nullptr : scales.data()}; }
};

struct FusedProblem {
  DecoderProblem p;
  Fused qkv, output, gate_up, down;
};

std::shared_ptr<FusedProblem> Make(const Program& program, int64_t slots, const std::vector<int32_t>& start) {
  const auto s = qwen_asr_gpu::DecoderOf(program.key);
  const DecoderShape shape{s.batch, 1, s.width, s.key_heads, s.groups(), s.head_dim, s.inner, slots};
  auto all = std::make_shared<FusedProblem>();
  all->p = MakeDecoder(shape, TypeOf(s.weights), TypeOf(s.cache), start);
  for (const Packed* each : {&all->p.q, &all->p.k, &all->p.v}) all->qkv.Append(*each);
  for (const Packed* each : {&all->p.gate, &all->p.up}) all->gate_up.Append(*each);
  all->output.Append(all->p.o);
  all->down.Append(all->p.down);
  return all;
}

struct Ran {
  Floats out;
  std::vector<Bytes> k_caches, v_caches;  // of every layer
};

struct How {
  int at_once;
  uint64_t seed;
  bool overlap;
  int layers = 1;
};

// Layers of the same weights, each with caches of its own.
Ran Run(const Program& program, const FusedProblem& all, const How& how) {
  const DecoderProblem& p = all.p;
  Ran ran{Floats(p.shape.batch * p.shape.width, kNan), {}, {}};
  ran.k_caches.assign(how.layers, p.k_cache.bytes);
  ran.v_caches.assign(how.layers, p.v_cache.bytes);
  DecoderStep step{};
  step.shape = qwen_asr_gpu::DecoderOf(program.key);
  for (int i = 0; i < how.layers; ++i) {
    step.layers.push_back({p.input_norm.data(), p.post_norm.data(), p.q_norm.data(), p.k_norm.data(), all.qkv.weights(),
                           all.output.weights(), all.gate_up.weights(), all.down.weights(), ran.k_caches[i].data(),
                           ran.v_caches[i].data()});
  }
  Bytes scratch(qwen_asr_gpu::LayoutOf(step.shape).bytes, 0xff);
  step.x = p.x.data();
  step.cos = p.cos.data();
  step.sin = p.sin.data();
  step.start = p.start.data();
  step.out = ran.out.data();
  step.scratch = scratch.data();
  step.slots = static_cast<int>(p.shape.slots);
  step.eps = kNormEps;
  step.overlap = how.overlap;
  step.prefetch = how.seed % 2 == 0;
  EmulatedDevice device(program, how.at_once, how.seed * 1000);
  if (!EnqueueDecoder(step, device)) Fail("a kernel was not launched");
  device.Finish();
  return ran;
}

// The new slot's values near `want`, every other byte as before.
void ExpectCache(const char* name, const DecoderProblem& p, const Packed& before, const Bytes& after, const Values& want) {
  const DecoderShape& s = p.shape;
  const int64_t h = s.head_dim;
  const std::vector<double> values = Unpack(p.cache, after);
  Bytes rest = after;
  for (int64_t row = 0; row < s.batch * s.key_heads; ++row) {
    const int64_t at = (row * s.slots + p.start[row / s.key_heads]) * h;
    const size_t size = SizeOf(p.cache);
    for (int64_t i = 0; i < h; ++i) ExpectStored(p.cache, values[at + i], want[row * h + i], name, " ", i, " of head ", row);
    std::memcpy(rest.data() + at * size, before.bytes.data() + at * size, h * size);
  }
  ExpectSame(Join(name, " elsewhere"), rest, before.bytes);
}

void ExpectSameRun(const std::string& what, const Ran& got, const Ran& want) {
  ExpectSame(what + ", output", got.out, want.out);
  for (size_t i = 0; i < want.k_caches.size(); ++i) {
    ExpectSame(Join(what, ", keys of layer ", i), got.k_caches[i], want.k_caches[i]);
    ExpectSame(Join(what, ", values of layer ", i), got.v_caches[i], want.v_caches[i]);
  }
}

// Nothing depends on how many blocks there are, who comes first, and whether kernels overlap.
void ExpectSameHowever(const Program& program, const FusedProblem& all, const Ran& want) {
  const How ways[] = {{1, 2, false}, {3, 3, true}, {1000, 4, true}};
  for (const How& how : ways) {
    ExpectSameRun(Join(how.at_once, " blocks at once", how.overlap ? ", overlapping" : ""), Run(program, all, how), want);
  }
}

// Three layers in one call, and in three.
void ExpectChained(const Program& program, const FusedProblem& all) {
  constexpr int kLayers = 3;
  FusedProblem next = all;
  Ran one{};
  for (int i = 0; i < kLayers; ++i) {
    const Ran layer = Run(program, next, {1000, 5, false});
    next.p.x = one.out = layer.out;
    one.k_caches.push_back(layer.k_caches[0]);
    one.v_caches.push_back(layer.v_caches[0]);
  }
  ExpectSameRun("three layers", Run(program, all, {1000, 6, false, kLayers}), one);
  ExpectSameRun("three overlapping layers", Run(program, all, {2, 7, true, kLayers}), one);
}

// A NaN in the last row's input stays in its row.
void ExpectApart(const Program& program, const FusedProblem& all, const Ran& clean) {
  const DecoderShape& s = all.p.shape;
  FusedProblem with_nan = all;
  const int64_t last = (s.batch - 1) * s.width;
  with_nan.p.x[last + s.width / 2] = kNan;
  const Ran got = Run(program, with_nan, {1000, 8, false});
  for (int64_t i = last; i < s.batch * s.width; ++i) ExpectNear(got.out[i], kNan, 0.0, "output of the row with a NaN");
  ExpectSame("other rows", Floats(got.out.begin(), got.out.begin() + last), Floats(clean.out.begin(), clean.out.begin() + last));
}

// Slots outside of the cache are those at its ends.
void ExpectInside(const Program& program, const FusedProblem& all) {
  FusedProblem outside = all, inside = all;
  for (size_t b = 0; b < outside.p.start.size(); ++b) {
    outside.p.start[b] = b % 2 == 0 ? static_cast<int32_t>(all.p.shape.slots + 7) : -3;
    inside.p.start[b] = b % 2 == 0 ? static_cast<int32_t>(all.p.shape.slots - 1) : 0;
  }
  ExpectSameRun("slots outside", Run(program, outside, {1000, 9, false}), Run(program, inside, {1000, 9, false}));
}

Check Prepare(const Program& program, int64_t slots, const std::vector<int32_t>& start, bool more) {
  const std::shared_ptr<FusedProblem> all = Make(program, slots, start);
  // A block rounds operands of int8 weights as these kernels do, and weights of attention only for eight queries and more.
  const auto want = std::make_shared<DecoderResult>(DecoderOf(all->p, Way::kBlock));
  return [=, &program] {
    const DecoderProblem& p = all->p;
    const Ran got = Run(program, *all, {1000, 1, false});
    for (size_t i = 0; i < want->out.size(); ++i) {
      ExpectValue(got.out[i], want->out[i], "output ", i % p.shape.width, " of row ", i / p.shape.width);
    }
    ExpectCache("key", p, p.k_cache, got.k_caches[0], want->keys);
    ExpectCache("value", p, p.v_cache, got.v_caches[0], want->values);
    ExpectSameHowever(program, *all, got);
    if (!more) return;
    ExpectApart(program, *all, got);
    ExpectChained(program, *all);
    ExpectInside(program, *all);
  };
}

}  // namespace

void AddEmulatedDecoderCases(Cases& cases, bool quick) {
  for (const Program& program : Programs()) {
    if (program.key[0] != 0) continue;
    const auto s = qwen_asr_gpu::DecoderOf(program.key);
    std::string name = Join("decoder ", NameOf(TypeOf(s.weights)), ", cache ", NameOf(TypeOf(s.cache)), ", ", s.width, " wide, ",
                            s.heads, " heads of ", s.head_dim, ", at");
    const auto add = [&](int64_t slots, std::vector<int32_t> first, bool more) {
      std::vector<int32_t> start;
      for (int b = 0; b < s.batch; ++b) start.push_back(first[b % first.size()]);
      std::string at;
      for (int32_t each : start) at += " " + std::to_string(each);
      cases.AddPrepared(Join(name, at, " of ", slots), [=, &program] { return Prepare(program, slots, start, more); });
    };
    // The first slot and the last one; one block's slots and one more; rows at different places.
    add(40, {39, 0, 31, 32, 1, 33, 17, 38}, true);
    add(601, {600, 30, 257, 0, 512, 63, 64, 399}, false);
    if (quick) continue;
    add(600, {0}, false);
    add(599, {1, 598}, false);
    for (int32_t at : {31, 32, 33, 64, 100, 255, 411, 511}) add(600, {at, 599 - at, 7, at}, false);
  }
}

}  // namespace native
