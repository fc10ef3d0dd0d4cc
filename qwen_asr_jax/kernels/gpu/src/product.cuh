// The product of a weight matrix with up to eight vectors: weights pass once, as a stream, and everything else is arranged so
// that a lane always has some of them on their way, also while the vectors are not there yet.

#ifndef QWEN_ASR_JAX_KERNELS_GPU_PRODUCT_CUH_
#define QWEN_ASR_JAX_KERNELS_GPU_PRODUCT_CUH_

#include "arguments.h"
#include "types.cuh"

namespace qwen_asr_gpu {

namespace {

constexpr Type kWeights = static_cast<Type>(QWEN_WEIGHTS);
constexpr int kBatch = QWEN_BATCH;

constexpr Type kOperand = OperandOf(kWeights);
using Operand = Stored<kOperand>::T;

constexpr int kChunk = 16 / SizeOf(kWeights);  // values of 16 bytes of weights
constexpr int kPiece = 16 / SizeOf(kOperand);  // and of operands
constexpr int kPieces = kChunk / kPiece;

// Loads that a lane has on their way at most. With the blocks that fit on a multiprocessor they make 32 to 64 KB there, and
// those of the next stage as much again; a memory that answers after 0.8 us and gives each multiprocessor 30 GB/s wants 26
// KB.
constexpr int kMostLoads = kBatch == 1 || kBatch > 4 ? 4 : 8;

static_assert(kBatch >= 1 && kBatch <= kMaxBatch, "few vectors");

// How one group of rows is read: `kSteps` chunks of each row per lane, in stages of `kDepth`.
template <int kCols, int kRows, int kSplit>
struct Reading {
  static_assert(kCols % 16 == 0, "rows begin at multiples of 16 bytes in every type");
  static constexpr int kChunks = kCols / kChunk;
  static constexpr int kAcross = kLanes * kSplit;
  static constexpr int kSteps = CeilDiv(kChunks, kAcross);
  static constexpr int kDepth = CeilDiv(kSteps, CeilDiv(kSteps * kRows, kMostLoads));
  static constexpr int kStages = CeilDiv(kSteps, kDepth);
  static constexpr int kSums = PowerOfTwoFrom(kRows * kBatch);
  // Blocks for which a multiprocessor shall have registers.
  static constexpr int kBlocks = kBatch > 1 ? 2 : kStages > 1 ? 3 : 4;
  static constexpr bool kEven = kStages * kDepth * kAcross == kChunks;

  uint4 chunk[kRows][kDepth];

  // `row(r)` is the index of the group's row r; `at` is this lane's place among those of the group.
  template <typename RowOf>
  QWEN_DEVICE void Load(const void* values, const RowOf& row, int stage, int at) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const auto* from = static_cast<const uint4*>(values) + static_cast<long long>(row(r)) * kChunks;
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const int c = (stage * kDepth + d) * kAcross + at;
        if (kEven || c < kChunks) chunk[r][d] = LoadStream(from + c);
      }
    }
  }

  // sums[r][b] += this stage's part of row r times vector b.
  QWEN_DEVICE void MultiplyBy(const Operand* x, int stage, int at, float (&sums)[kRows][kBatch]) const {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int c = (stage * kDepth + d) * kAcross + at;
      if (!kEven && c >= kChunks) continue;
      MultiplyPiece<0>(x + c * kChunk, d, sums);
      if constexpr (kPieces == 2) MultiplyPiece<1>(x + c * kChunk + kPiece, d, sums);
    }
  }

  template <int kIndex>
  QWEN_DEVICE void MultiplyPiece(const Operand* x, int d, float (&sums)[kRows][kBatch]) const {
    constexpr int kWords = 4 / kPieces;
    float weights[kRows][kPiece];
#pragma unroll
    for (int r = 0; r < kRows; ++r) Unpack<kWeights, kIndex * kWords, kWords>(chunk[r][d], weights[r]);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      float operands[kPiece];
      UnpackAll<kOperand>(*reinterpret_cast<const uint4*>(x + b * kCols), operands);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < kPiece; ++i) sums[r][b] = fmaf(weights[r][i], operands[i], sums[r][b]);
      }
    }
  }
};

// Multiplies groups of rows, every block some of them.
//
// `row(group, r)`: index of a row of a group, one that there is. `ready()`: waits for the vectors and returns them, [B,
// kCols]; by then the first weights are on their way. Product i of a group is that of row i / B with vector i % B.
// `fetch(group, i)` is called early with a product that there may be, and what it returns comes back in `finish(group, i,
// sum, fetched, mine)`: by all lanes of a warp together where kSplit is 1, and those shall use it for which `mine` is true; i
// may be beyond the group's in both. `partial`: shared memory of SplitBytes(), where kSplit is more than 1.
template <int kCols, int kRows, int kSplit, typename RowOf, typename Ready, typename Fetch, typename Finish>
QWEN_DEVICE void MultiplyRows(const void* values, int groups, float* partial, const RowOf& row, const Ready& ready,
                              const Fetch& fetch, const Finish& finish) {
  using R = Reading<kCols, kRows, kSplit>;
  constexpr int kTeams = kWarps / kSplit;
  const int team = Warp() / kSplit, at = Warp() % kSplit * kLanes + Lane(), stride = Blocks() * kTeams;
  int base = Block() * kTeams;
  const auto load = [&](R& into, int group, int stage) {
    if (group < groups) into.Load(values, [&](int r) { return row(group, r); }, stage, at);
  };
  R now{};
  load(now, base + team, 0);
  LetKernelBehindStart();
  const Operand* x = ready();
  constexpr int kSame = kLanes / R::kSums;  // lanes with the same sum
  const bool mine = kSplit == 1 ? Lane() % kSame == 0 : Thread() < kTeams * R::kSums;
  const int of = kSplit == 1 ? team : Thread() / R::kSums, i = kSplit == 1 ? Lane() / kSame : Thread() % R::kSums;
  for (; base < groups; base += stride) {
    const int group = base + team;
    if (kSplit == 1 && group >= groups) break;  // nobody waits for this warp
    const auto fetched = fetch(mine ? base + of : groups, i);
    float sums[kRows][kBatch] = {};
#pragma unroll 1
    for (int stage = 0; stage < R::kStages; ++stage) {
      R next{};
      if (stage + 1 < R::kStages) {
        load(next, group, stage + 1);
      } else {
        load(next, group + stride, 0);
      }
      now.MultiplyBy(x, stage, at, sums);
      now = next;
    }
    float flat[R::kSums] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int b = 0; b < kBatch; ++b) flat[r * kBatch + b] = sums[r][b];
    }
    const float sum = SumOverWarp(flat);
    if constexpr (kSplit == 1) {
      finish(group, i, sum, fetched, mine);
    } else {
      if (Lane() % kSame == 0) partial[Warp() * R::kSums + Lane() / kSame] = sum;
      __syncthreads();
      if (mine) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < kSplit; ++w) total += partial[(of * kSplit + w) * R::kSums + i];
        finish(base + of, i, total, fetched, base + of < groups);
      }
      __syncthreads();
    }
  }
}

// Vectors into shared memory as operands: normed where there is a norm (RMSNorm: x / sqrt(mean of squares + eps) * norm),
// else as they are. Every block does it for itself, which costs less than a kernel. `staged`: StagedBytes() of shared memory.
template <int kCols>
QWEN_DEVICE const Operand* Stage(const float* x, const float* norm, float eps, unsigned char* staged) {
  constexpr int kQuads = kCols / 4, kSteps = CeilDiv(kQuads, kThreads);
  auto* out = reinterpret_cast<Operand*>(staged);
  auto* squares = reinterpret_cast<float*>(staged + kBatch * kCols * SizeOf(kOperand));  // [warps, B]
  float4 gain[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int q = s * kThreads + Thread();
    gain[s] = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    if (norm != nullptr && q < kQuads) gain[s] = reinterpret_cast<const float4*>(norm)[q];
  }
  WaitForKernelBefore();
  // A few values stay in registers for the second time; more come from the first cache.
  constexpr bool kStay = kBatch * kSteps <= 4;
  float4 kept[kStay ? kBatch : 1][kSteps];
  const auto load = [&](int b, int s) {
    const int q = s * kThreads + Thread();
    return q < kQuads ? reinterpret_cast<const float4*>(x + b * kCols)[q] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  };
  if constexpr (kStay) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) kept[b][s] = load(b, s);
    }
  }
  const auto value = [&](int b, int s) { return kStay ? kept[kStay ? b : 0][s] : load(b, s); };
  float scale[kBatch];
#pragma unroll
  for (int b = 0; b < kBatch; ++b) scale[b] = 1.0f;
  if (norm != nullptr) {
    float sums[PowerOfTwoFrom(kBatch)] = {};
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const float4 v = value(b, s);
        sums[b] += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
      }
    }
    constexpr int kSame = kLanes / PowerOfTwoFrom(kBatch);
    const float sum = SumOverWarp(sums);
    if (Lane() % kSame == 0 && Lane() / kSame < kBatch) squares[Warp() * kBatch + Lane() / kSame] = sum;
    __syncthreads();
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += squares[w * kBatch + b];
      scale[b] = rsqrtf(total / static_cast<float>(kCols) + eps);
    }
  }
#pragma unroll
  for (int b = 0; b < kBatch; ++b) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int q = s * kThreads + Thread();
      if (q >= kQuads) continue;
      const float4 v = value(b, s);
      StoreFour<kOperand>(out + b * kCols + 4 * q, v.x * scale[b] * gain[s].x, v.y * scale[b] * gain[s].y,
                          v.z * scale[b] * gain[s].z, v.w * scale[b] * gain[s].w);
    }
  }
  __syncthreads();
  return out;
}

}  // namespace

}  // namespace qwen_asr_gpu

#endif
