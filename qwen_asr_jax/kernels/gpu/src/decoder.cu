// A decoder layer for one new token per row, as five kernels: project, attend, output, gate, down.
//
// Compiled for one shape and one choice of types, which these macros name: QWEN_WEIGHTS, QWEN_CACHE (numbers of Type),
// QWEN_BATCH, QWEN_WIDTH, QWEN_INNER, QWEN_HEADS, QWEN_KEY_HEADS, QWEN_HEAD_DIM. Every kernel is launched with kThreads
// threads per block; how many blocks, and how much shared memory, launch.cc knows.

#include "attention.cuh"

namespace qwen_asr_gpu {

namespace {

constexpr int kWidth = QWEN_WIDTH;
constexpr int kInner = QWEN_INNER;
constexpr int kAttended = kHeads * kHeadDim;

constexpr Product kProject = WholeRows(kWeights, kBatch, kProjected, kWidth);
constexpr Product kOutput = SplitRows(kWeights, kBatch, kWidth, kAttended);
constexpr Product kGate = PairedRows(kWeights, kBatch, kInner, kWidth);
constexpr Product kDown = SplitRows(kWeights, kBatch, kWidth, kInner);

// Of rows that there are; others have none.
QWEN_DEVICE float ScaleOf(const Weights& weights, int row, bool there) {
  return kWeights == kI8 && there ? weights.scales[row] : 1.0f;
}

// out = residual + weights x, of operands that the kernel before has left in global memory.
template <int kCols, int kRows, int kSplit>
QWEN_DEVICE void Add(const AddArgs& a, unsigned char* shared) {
  const auto row = [](int group, int r) { return AtMost(group * kRows + r, kWidth - 1); };
  const auto ready = [&] {
    WaitForKernelBefore();
    return static_cast<const Operand*>(a.x);
  };
  struct Fetched {
    float residual, scale;
  };
  const auto fetch = [&](int group, int i) {
    const int r = group * kRows + i / kBatch, b = i % kBatch;
    const bool there = i < kRows * kBatch && r < kWidth;
    return Fetched{there ? a.residual[b * kWidth + r] : 0.0f, ScaleOf(a.weights, r, there)};
  };
  const auto finish = [&](int group, int i, float sum, const Fetched& fetched, bool mine) {
    const int r = group * kRows + i / kBatch, b = i % kBatch;
    if (mine && i < kRows * kBatch && r < kWidth) a.out[b * kWidth + r] = fetched.residual + sum * fetched.scale;
  };
  MultiplyRows<kCols, kRows, kSplit>(a.weights.values, CeilDiv(kWidth, kRows), reinterpret_cast<float*>(shared), row, ready,
                                     fetch, finish);
}

}  // namespace

constexpr int kProjectBlocks = Reading<kWidth, kProject.group_rows, 1>::kBlocks;
QWEN_KERNEL(qwen_project, ProjectArgs, kProjectBlocks) {
  QWEN_SHARED(shared);
  constexpr int kRows = kProject.group_rows;
  const auto row = [](int group, int r) { return AtMost(group * kRows + r, kProjected - 1); };
  const auto ready = [&] {
    const Operand* x = Stage<kWidth>(a.x, a.norm, a.eps, shared);
    if (Block() == 0 && Thread() < kBatch * kKeyHeads) a.arrived[Thread()] = 0;
    return x;
  };
  const auto fetch = [&](int group, int i) {
    const int r = group * kRows + i / kBatch;
    return ScaleOf(a.weights, r, i < kRows * kBatch && r < kProjected);
  };
  const auto finish = [&](int group, int i, float sum, float scale, bool mine) {
    const int r = group * kRows + i / kBatch, b = i % kBatch;
    if (mine && i < kRows * kBatch && r < kProjected) a.out[b * kProjected + r] = sum * scale;
  };
  MultiplyRows<kWidth, kRows, 1>(a.weights.values, kProject.groups(), nullptr, row, ready, fetch, finish);
}

QWEN_KERNEL(qwen_attend, AttendArgs, 2) {
  QWEN_SHARED(memory);
  const SharedResults shared(memory);
  LetKernelBehindStart();
  for (unsigned long long byte = 128ull * (Block() * kThreads + Thread()); byte < a.next_bytes;
       byte += 128ull * kThreads * Blocks()) {
    PrefetchLine(static_cast<const unsigned char*>(a.next) + byte);
  }
  const int pair = Block() / kSplits, split = Block() % kSplits, b = pair / kKeyHeads, key_head = pair % kKeyHeads;
  const int newest = AtMost(AtLeast(a.start[b], 0), a.slots - 1);  // as XLA does with indices outside
  const Share share(newest, split);
  if (split >= share.active) return;

  const int own_slot = Lane() / kSlotLanes, at = Lane() % kSlotLanes * kOwn;
  const long long cache_at = static_cast<long long>(pair) * a.slots * kHeadDim + at;
  auto* keys = static_cast<Cached*>(a.k_cache) + cache_at;
  auto* values = static_cast<Cached*>(a.v_cache) + cache_at;
  constexpr int kStride = kWarps * kTogether, kSpan = kStride * kUnrolled;
  int first = share.begin + Warp() * kTogether + own_slot;
  Slots now;
  now.Load(keys, values, first, kStride, share.end);
  float q_gain[kOwn], k_gain[kOwn];
  Rotation rotation;
  LoadOwn(a.q_norm + at, q_gain);
  LoadOwn(a.k_norm + at, k_gain);
  LoadOwn(a.cos + b * (kHeadDim / 2) + at % (kHeadDim / 2), rotation.cos);
  LoadOwn(a.sin + b * (kHeadDim / 2) + at % (kHeadDim / 2), rotation.sin);

  WaitForKernelBefore();
  const float* projected = a.projected + b * kProjected;
  const bool has_newest = share.newest_too && Warp() == 0;
  float query[kGroups][kOwn], key[kOwn] = {}, value[kOwn] = {};
#pragma unroll
  for (int g = 0; g < kGroups; ++g) LoadOwn(projected + (key_head * kGroups + g) * kHeadDim + at, query[g]);
  if (has_newest) {
    LoadOwn(projected + (kHeads + key_head) * kHeadDim + at, key);
    LoadOwn(projected + (kHeads + kKeyHeads + key_head) * kHeadDim + at, value);
  }
#pragma unroll
  for (int g = 0; g < kGroups; ++g) rotation.Apply(query[g], q_gain, at, a.eps);
  State state;
  state.Reset();
  if (has_newest) {
    rotation.Apply(key, k_gain, at, a.eps);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) value[i] = Rounded<kCache>(value[i]);
    if (own_slot == 0) {
      const long long to = static_cast<long long>(newest) * kHeadDim;
#pragma unroll
      for (int i = 0; i < kOwn; i += 4) {
        StoreFour<kCache>(keys + to + i, key[i], key[i + 1], key[i + 2], key[i + 3]);
        StoreFour<kCache>(values + to + i, value[i], value[i + 1], value[i + 2], value[i + 3]);
      }
    }
    state.Begin(query, key, value, own_slot == 0);
  }
  for (int base = share.begin; base < share.end; base += kSpan) {
    Slots next;
    next.Load(keys, values, first + kSpan, kStride, share.end);
    now.Attend(query, first, kStride, share.end, state);
    now = next;
    first += kSpan;
  }
#pragma unroll
  for (int mask = kSlotLanes; mask < kLanes; mask *= 2) state.Merge(mask);
  if (own_slot == 0) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) shared.sums[(Warp() * kGroups + g) * kHeadDim + at + i] = state.sum[g][i];
      if (at == 0) {
        shared.tops[Warp() * kGroups + g] = state.top[g];
        shared.totals[Warp() * kGroups + g] = state.total[g];
      }
    }
  }
  __syncthreads();

  auto* out = static_cast<Operand*>(a.out) + b * kAttended + key_head * kHeadOut;
  const auto write = [&](int i, float sum) { out[i] = RoundTo<kOperand>(sum / shared.total[i / kHeadDim]); };
  const auto plain = [](const float* from) { return *from; };
  if (share.active == 1) {
    MergeResults(kWarps, shared.tops, shared.totals, shared.sums, shared, plain, write);
    return;
  }
  const int of_pair = pair * kSplits;
  MergeResults(kWarps, shared.tops, shared.totals, shared.sums, shared, plain, [&](int i, float sum) {
    a.sums[static_cast<long long>(of_pair + split) * kHeadOut + i] = sum;
  });
  if (Thread() < kGroups) {
    a.tops[(of_pair + split) * kGroups + Thread()] = shared.top[Thread()];
    a.totals[(of_pair + split) * kGroups + Thread()] = shared.total[Thread()];
  }
  // Everything of this block is written before it counts itself, and the last one reads only after counting.
  __threadfence();
  __syncthreads();
  if (Thread() == 0) *shared.flag = atomicAdd(a.arrived + pair, 1u) + 1 == static_cast<unsigned>(share.active);
  __syncthreads();
  if (*shared.flag == 0) return;
  __threadfence();
  MergeResults(share.active, a.tops + of_pair * kGroups, a.totals + of_pair * kGroups,
               a.sums + static_cast<long long>(of_pair) * kHeadOut, shared, [](const float* from) { return __ldcg(from); }, write);
}

constexpr int kOutputBlocks = Reading<kAttended, kOutput.group_rows, kOutput.split>::kBlocks;
QWEN_KERNEL(qwen_output, AddArgs, kOutputBlocks) {
  QWEN_SHARED(shared);
  Add<kAttended, kOutput.group_rows, kOutput.split>(a, shared);
}

constexpr int kGateBlocks = Reading<kWidth, 2 * kGate.group_rows, 1>::kBlocks;
QWEN_KERNEL(qwen_gate, GateArgs, kGateBlocks) {
  QWEN_SHARED(shared);
  constexpr int kPairs = kGate.group_rows;
  // Gate's rows of the group, then up's.
  const auto row = [](int group, int r) {
    return AtMost(group * kPairs + r % kPairs, kInner - 1) + (r < kPairs ? 0 : kInner);
  };
  const auto ready = [&] { return Stage<kWidth>(a.x, a.norm, a.eps, shared); };
  struct Scales {
    float gate, up;
  };
  const auto fetch = [&](int group, int i) {
    const int f = group * kPairs + i / kBatch;
    const bool there = i < kPairs * kBatch && f < kInner;
    return Scales{ScaleOf(a.weights, f, there), ScaleOf(a.weights, f + kInner, there)};
  };
  const auto finish = [&](int group, int i, float sum, const Scales& scales, bool mine) {
    const int f = group * kPairs + i / kBatch, b = i % kBatch;
    // The lane where the same vector's sum of up's row is.
    constexpr int kSame = kLanes / PowerOfTwoFrom(2 * kPairs * kBatch);
    const float up = __shfl_sync(kAllLanes, sum, (i + kPairs * kBatch) % (kLanes / kSame) * kSame);
    if (!mine || i >= kPairs * kBatch || f >= kInner) return;
    const float gate = sum * scales.gate;
    const float gated = gate / (1.0f + expf(-gate)) * (up * scales.up);
    static_cast<Operand*>(a.out)[b * kInner + f] = RoundTo<kOperand>(gated);
  };
  MultiplyRows<kWidth, 2 * kPairs, 1>(a.weights.values, kGate.groups(), nullptr, row, ready, fetch, finish);
}

constexpr int kDownBlocks = Reading<kInner, kDown.group_rows, kDown.split>::kBlocks;
QWEN_KERNEL(qwen_down, AddArgs, kDownBlocks) {
  QWEN_SHARED(shared);
  Add<kInner, kDown.group_rows, kDown.split>(a, shared);
}

}  // namespace qwen_asr_gpu
