// The head: the largest logit of each vector and which token it is of, without the logits. Two kernels: logits, choose.
//
// Compiled for one shape and type of weights: QWEN_WEIGHTS (a number of Type), QWEN_BATCH, QWEN_WIDTH, QWEN_VOCAB.

#include "product.cuh"

namespace qwen_asr_gpu {

namespace {

constexpr int kWidth = QWEN_WIDTH;
constexpr int kVocab = QWEN_VOCAB;

// The best logit so far. A NaN is better than any number; of equal ones, or of NaNs, the first token is better: a total
// order, so that results do not depend on who compares with whom first.
struct Best {
  float top;
  int token;

  QWEN_DEVICE void Take(float other_top, int other_token) {
    const bool is_nan = top != top, other_is_nan = other_top != other_top;
    const bool equal = other_top == top || (is_nan && other_is_nan);
    const bool better = equal ? other_token < token : is_nan ? false : other_is_nan || other_top > top;
    top = better ? other_top : top;
    token = better ? other_token : token;
  }

  // The best of all lanes that differ in bits of `mask` and those above, up to the lanes.
  QWEN_DEVICE void TakeFrom(int mask) {
    for (; mask < kLanes; mask *= 2) {
      const float other_top = __shfl_xor_sync(kAllLanes, top, mask);
      const int other_token = __shfl_xor_sync(kAllLanes, token, mask);
      Take(other_top, other_token);
    }
  }
};

// No token: any other is better.
constexpr int kNoToken = 0x7fffffff;
QWEN_DEVICE Best Nothing() { return {-__uint_as_float(0x7f800000u), kNoToken}; }

}  // namespace

constexpr Product kLogits = WholeRows(kWeights, kBatch, kVocab, kWidth);
constexpr int kLogitsBlocks = Reading<kWidth, kLogits.group_rows, 1>::kBlocks;

QWEN_KERNEL(qwen_logits, LogitsArgs, kLogitsBlocks) {
  QWEN_SHARED(shared);
  constexpr int kRows = kLogits.group_rows;
  Best best = Nothing();  // of this lane's vector
  const auto row = [](int group, int r) { return AtMost(group * kRows + r, kVocab - 1); };
  const auto ready = [&] { return Stage<kWidth>(a.x, nullptr, 0.0f, shared); };
  const auto fetch = [&](int group, int i) {
    const int token = group * kRows + i / kBatch;
    return kWeights == kI8 && i < kRows * kBatch && token < kVocab ? a.weights.scales[token] : 1.0f;
  };
  const auto finish = [&](int group, int i, float sum, float scale, bool mine) {
    const int token = group * kRows + i / kBatch;
    if (mine && i < kRows * kBatch && token < kVocab) best.Take(sum * scale, token);
  };
  MultiplyRows<kWidth, kRows, 1>(a.weights.values, kLogits.groups(), nullptr, row, ready, fetch, finish);
  // Lanes hold sum i of kRows * B: those of one vector are anywhere, so every lane's best goes through shared memory.
  auto* tops = reinterpret_cast<float*>(shared);  // [threads]; the vectors are no longer needed
  auto* tokens = reinterpret_cast<int*>(tops + kThreads);
  __syncthreads();
  tops[Thread()] = best.top;
  tokens[Thread()] = best.token;
  __syncthreads();
  constexpr int kSame = kLanes / PowerOfTwoFrom(kRows * kBatch);
  if (Warp() < kBatch) {
    const int b = Warp();
    best = Nothing();
    for (int t = Lane(); t < kThreads; t += kLanes) {
      if (Lane() / kSame % kBatch == b) best.Take(tops[t], tokens[t]);
    }
    best.TakeFrom(1);
    if (Lane() == 0) {
      a.tops[Block() * kBatch + b] = best.top;
      a.tokens[Block() * kBatch + b] = best.token;
    }
  }
}

QWEN_KERNEL(qwen_choose, ChooseArgs, 1) {
  LetKernelBehindStart();
  WaitForKernelBefore();
  if (Warp() >= kBatch) return;
  const int b = Warp();
  Best best = Nothing();
  for (int block = Lane(); block < a.blocks; block += kLanes) best.Take(a.tops[block * kBatch + b], a.tokens[block * kBatch + b]);
  best.TakeFrom(1);
  if (Lane() == 0) {
    a.top[b] = best.top;
    a.token[b] = best.token;
  }
}

}  // namespace qwen_asr_gpu
