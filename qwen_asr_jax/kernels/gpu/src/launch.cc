#include "launch.h"

namespace qwen_asr_gpu {

namespace {

enum { kDecoderProgram, kHeadProgram };

// What every GPU that the kernels are for gives a block, at least: that of 8.6, 8.9 and 12.0.
constexpr int kMostShared = 99 * 1024;

std::vector<KernelSpec> KernelsOf(const DecoderShape& s) {
  const Product project = WholeRows(s.weights, s.batch, s.projected(), s.width);
  const Product output = SplitRows(s.weights, s.batch, s.width, s.attended());
  const Product gate = PairedRows(s.weights, s.batch, s.inner, s.width);
  const Product down = SplitRows(s.weights, s.batch, s.width, s.inner);
  const int staged = StagedBytes(s.weights, s.batch, s.width);
  const auto split_bytes = [&](const Product& p) { return p.split > 1 ? SplitBytes(s.batch, p.group_rows) : 0; };
  return {{"qwen_project", project.blocks(), staged, true},
          {"qwen_attend", s.batch * s.key_heads * s.splits(), AttendBytes(s.groups(), s.head_dim), false},
          {"qwen_output", output.blocks(), split_bytes(output), true},
          {"qwen_gate", gate.blocks(), staged, true},
          {"qwen_down", down.blocks(), split_bytes(down), true}};
}

std::vector<KernelSpec> KernelsOf(const HeadShape& s) {
  const Product logits = WholeRows(s.weights, s.batch, s.vocab, s.width);
  return {{"qwen_logits", AtMost(logits.blocks(), kMaxHeadBlocks), LogitsBytes(s.weights, s.batch, s.width), true},
          {"qwen_choose", 1, 0, false}};
}

// As few rounds as there must be, and all blocks with nearly as much to do.
int BlocksToLaunch(const KernelSpec& kernel, int at_once) {
  if (!kernel.loops || at_once < 1) return kernel.blocks;
  return CeilDiv(kernel.blocks, CeilDiv(kernel.blocks, at_once));
}

bool IsPowerOfTwo(int a) { return a > 0 && (a & (a - 1)) == 0; }

}  // namespace

ProgramKey KeyOf(const DecoderShape& s) {
  return {kDecoderProgram, s.weights, s.cache, s.batch, s.width, s.inner, s.heads, s.key_heads, s.head_dim};
}

ProgramKey KeyOf(const HeadShape& s) { return {kHeadProgram, s.weights, s.batch, s.width, s.vocab, 0, 0, 0, 0}; }

DecoderShape DecoderOf(const ProgramKey& key) {
  return {static_cast<Type>(key[1]), static_cast<Type>(key[2]), key[3], key[4], key[5], key[6], key[7], key[8]};
}

HeadShape HeadOf(const ProgramKey& key) { return {static_cast<Type>(key[1]), key[2], key[3], key[4]}; }

std::vector<KernelSpec> KernelsOf(const ProgramKey& key) {
  return key[0] == kDecoderProgram ? KernelsOf(DecoderOf(key)) : KernelsOf(HeadOf(key));
}

std::string WhyNot(const ProgramKey& key) {
  const bool decoder = key[0] == kDecoderProgram;
  const int batch = decoder ? key[3] : key[2], width = decoder ? key[4] : key[3];
  for (int i = 1; i < (decoder ? 9 : 5); ++i) {
    const bool type = i == 1 || (decoder && i == 2);
    if (key[i] < (type ? 0 : 1) || (type && key[i] > kI8)) return "sizes must be positive, and types known";
  }
  if (batch > kMaxBatch) return "at most " + std::to_string(kMaxBatch) + " rows, got " + std::to_string(batch);
  if (width % 16 != 0) return "the width must be a multiple of 16, got " + std::to_string(width);
  if (decoder) {
    const DecoderShape s = DecoderOf(key);
    if (s.cache == kI8) return "a cache must be floating";
    if (s.inner % 16 != 0) return "the MLP's width must be a multiple of 16, got " + std::to_string(s.inner);
    if (!IsPowerOfTwo(s.head_dim) || s.head_dim < 16 || s.head_dim > 128) {
      return "heads must be 16, 32, 64 or 128 wide, got " + std::to_string(s.head_dim);
    }
    if (s.heads % s.key_heads != 0 || s.groups() > kMaxGroups) {
      return "1 to " + std::to_string(kMaxGroups) + " query heads per key head, got " + std::to_string(s.heads) + " for " +
             std::to_string(s.key_heads);
    }
  }
  for (const KernelSpec& kernel : KernelsOf(key)) {
    if (kernel.shared_bytes > kMostShared) {
      return std::to_string(batch) + " rows of " + std::to_string(width) + " values do not fit into shared memory";
    }
  }
  return "";
}

ScratchLayout LayoutOf(const DecoderShape& s) {
  ScratchLayout at{};
  const auto take = [&at](int64_t bytes) {
    const int64_t begin = at.bytes;
    at.bytes += (bytes + 255) / 256 * 256;
    return begin;
  };
  const int64_t batch = s.batch, operand = SizeOf(OperandOf(s.weights)), results = batch * s.heads * s.splits();
  at.projected = take(batch * s.projected() * 4);
  at.attended = take(batch * s.attended() * operand);
  at.hidden = take(batch * s.width * 4);
  at.gated = take(batch * s.inner * operand);
  at.sums = take(results * s.head_dim * 4);
  at.tops = take(results * 4);
  at.totals = take(results * 4);
  at.arrived = take(batch * s.key_heads * 4);
  return at;
}

bool EnqueueDecoder(const DecoderStep& step, Device& device) {
  const DecoderShape& s = step.shape;
  const std::vector<KernelSpec> kernels = KernelsOf(s);
  const ScratchLayout at = LayoutOf(s);
  const auto floats = [&](int64_t offset) { return reinterpret_cast<float*>(step.scratch + offset); };
  float *projected = floats(at.projected), *hidden = floats(at.hidden);
  void *attended = step.scratch + at.attended, *gated = step.scratch + at.gated;
  auto* arrived = reinterpret_cast<unsigned*>(step.scratch + at.arrived);
  // The first kernel waits for all that XLA has put in front of it.
  bool first = true;
  const auto launch = [&](int kernel, const void* arguments) {
    const KernelSpec& spec = kernels[kernel];
    const int blocks = BlocksToLaunch(spec, device.BlocksAtOnce(kernel));
    const bool overlap = step.overlap && !first;
    first = false;
    return device.Launch(kernel, blocks, spec.shared_bytes, arguments, overlap);
  };
  // Behind the first layer the hidden state lies in `out`: `down` writes there when nobody reads the old one any more.
  const float* x = step.x;
  const auto output_bytes = static_cast<unsigned long long>(s.width) * s.attended() * SizeOf(s.weights);
  for (const LayerWeights& l : step.layers) {
    const ProjectArgs project{x, l.input_norm, l.qkv, projected, arrived, step.eps};
    const AttendArgs attend{projected,
                            l.q_norm,
                            l.k_norm,
                            step.cos,
                            step.sin,
                            step.start,
                            l.k_cache,
                            l.v_cache,
                            floats(at.sums),
                            floats(at.tops),
                            floats(at.totals),
                            arrived,
                            attended,
                            l.output.values,
                            step.prefetch ? output_bytes : 0,
                            step.slots,
                            step.eps};
    const AddArgs output{attended, l.output, x, hidden};
    const GateArgs gate{hidden, l.post_norm, l.gate_up, gated, step.eps};
    const AddArgs down{gated, l.down, hidden, step.out};
    const bool done = launch(kProjectKernel, &project) && launch(kAttendKernel, &attend) && launch(kOutputKernel, &output) &&
                      launch(kGateKernel, &gate) && launch(kDownKernel, &down);
    if (!done) return false;
    x = step.out;
  }
  return true;
}

bool EnqueueHead(const HeadStep& step, Device& device) {
  const std::vector<KernelSpec> kernels = KernelsOf(step.shape);
  const int blocks = BlocksToLaunch(kernels[kLogitsKernel], device.BlocksAtOnce(kLogitsKernel));
  const LogitsArgs logits{step.x, step.weights, step.tops, step.tokens};
  const ChooseArgs choose{step.tops, step.tokens, step.top, step.token, blocks};
  return device.Launch(kLogitsKernel, blocks, kernels[kLogitsKernel].shared_bytes, &logits, false) &&
         device.Launch(kChooseKernel, 1, kernels[kChooseKernel].shared_bytes, &choose, step.overlap);
}

}  // namespace qwen_asr_gpu
