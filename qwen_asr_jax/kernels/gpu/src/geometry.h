// How work is cut: the one place from which both the kernels, compiled for one shape, and the host, which launches them, know
// it.
//
// Plain C++17 without any header, because the kernels are compiled where the package runs and nothing but these files is
// there.

#ifndef QWEN_ASR_JAX_KERNELS_GPU_GEOMETRY_H_
#define QWEN_ASR_JAX_KERNELS_GPU_GEOMETRY_H_

#if defined(__CUDACC__)
#define QWEN_BOTH __host__ __device__
#else
#define QWEN_BOTH
#endif

namespace qwen_asr_gpu {

enum Type { kF32 = 0, kBF16 = 1, kF16 = 2, kI8 = 3 };

QWEN_BOTH constexpr int SizeOf(Type type) { return type == kF32 ? 4 : type == kI8 ? 1 : 2; }

// What operands of such weights are rounded to.
QWEN_BOTH constexpr Type OperandOf(Type weights) { return weights == kI8 ? kBF16 : weights; }

QWEN_BOTH constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }
QWEN_BOTH constexpr int AtMost(int a, int most) { return a < most ? a : most; }
QWEN_BOTH constexpr int AtLeast(int a, int least) { return a > least ? a : least; }
QWEN_BOTH constexpr int PowerOfTwoFrom(int a) {
  int power = 1;
  while (power < a) power *= 2;
  return power;
}

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;

constexpr int kMaxBatch = 8;

// ---- Products of a weight matrix [rows, cols] with B vectors ----------------------------------------------------------------
//
// Some rows are a group; a group is done by one warp, or by several that share its columns. A lane reads 16 bytes of a row at
// a time, a chunk; neighbours read neighbouring chunks.

struct Product {
  int rows, cols;
  int group_rows;  // of one group: vectors are read from shared memory once for all of them
  int split;       // warps per group
  QWEN_BOTH constexpr int teams() const { return kWarps / split; }  // groups that a block works on at once
  QWEN_BOTH constexpr int groups() const { return CeilDiv(rows, group_rows); }
  QWEN_BOTH constexpr int blocks() const { return CeilDiv(groups(), teams()); }
};

// Blocks with which every multiprocessor of a large GPU has two.
constexpr int kManyBlocks = 256;

QWEN_BOTH constexpr int GroupRows(Type weights, int batch) { return batch > 4 ? 4 : batch > 1 || weights == kI8 ? 2 : 1; }

QWEN_BOTH constexpr Product WholeRows(Type weights, int batch, int rows, int cols) {
  return {rows, cols, GroupRows(weights, batch), 1};
}

// As many warps to a group as fill the GPU, while each lane still has two chunks of a row.
QWEN_BOTH constexpr Product SplitRows(Type weights, int batch, int rows, int cols) {
  Product p = WholeRows(weights, batch, rows, cols);
  const int chunks = cols * SizeOf(weights) / 16;
  while (p.split < kWarps / 2 && CeilDiv(CeilDiv(rows, p.group_rows) * p.split, kWarps) < kManyBlocks &&
         chunks >= 4 * kLanes * p.split) {
    p.split *= 2;
  }
  return p;
}

// Pairs of a gate's row and the same row of `up`, which lies `inner` rows further; groups are counted in pairs.
QWEN_BOTH constexpr Product PairedRows(Type weights, int batch, int inner, int cols) {
  return {inner, cols, AtLeast(GroupRows(weights, batch) / 2, 1), 1};
}

// Bytes of shared memory: B vectors of `cols` operands, and a sum per warp and vector.
QWEN_BOTH constexpr int StagedBytes(Type weights, int batch, int cols) {
  return batch * cols * SizeOf(OperandOf(weights)) + kWarps * batch * 4;
}
// Of partial sums, where warps share rows.
QWEN_BOTH constexpr int SplitBytes(int batch, int group_rows) { return kWarps * PowerOfTwoFrom(batch * group_rows) * 4; }

// ---- Attention over the cache ------------------------------------------------------------------------------------------------

// Blocks per key head of a row at most, each with its own slots; as many as lanes, since one warp merges their results.
QWEN_BOTH constexpr int Splits(int batch, int key_heads) {
  return AtLeast(AtMost(kManyBlocks / (batch * key_heads), kLanes), 1);
}

// Slots that are worth a block.
constexpr int kBlockSlots = 32;

constexpr int kMaxGroups = kWarps;

// Per warp and query head: its largest score, its sum of weights, its weighted sum. Per query head: a factor for each of as
// many results as there are lanes, and score and sum of all. Then a flag.
QWEN_BOTH constexpr int AttendBytes(int groups, int head_dim) {
  return (kWarps * groups * (head_dim + 2) + groups * (kLanes + 2) + 1) * 4;
}

// ---- Head ----------------------------------------------------------------------------------------------------------------------

// Most blocks of the head: every one leaves its best logits, which one more block compares.
constexpr int kMaxHeadBlocks = 1024;

// The vectors, and later every thread's best logit and token.
QWEN_BOTH constexpr int LogitsBytes(Type weights, int batch, int cols) {
  return AtLeast(StagedBytes(weights, batch, cols), kThreads * 8);
}

}  // namespace qwen_asr_gpu

#endif
