// Attention of one new token per row over its cache, with everything that happens to a head before: norm, rotation, the new
// slot.
//
// Every key head of every row has `kSplits` blocks; as many of them as its valid slots are worth share these slots, and the
// last one to be done merges what all have found. What lies behind the newest slot is never read.
//
// A slot's key or value is read 16 bytes per lane, so that `kSlotLanes` lanes hold it and a warp `kTogether` slots at once. A
// lane has the same columns of queries, keys, values and sums.

#ifndef QWEN_ASR_JAX_KERNELS_GPU_ATTENTION_CUH_
#define QWEN_ASR_JAX_KERNELS_GPU_ATTENTION_CUH_

#include "product.cuh"

namespace qwen_asr_gpu {

namespace {

constexpr Type kCache = static_cast<Type>(QWEN_CACHE);
using Cached = Stored<kCache>::T;

constexpr int kHeads = QWEN_HEADS;
constexpr int kKeyHeads = QWEN_KEY_HEADS;
constexpr int kHeadDim = QWEN_HEAD_DIM;
constexpr int kGroups = kHeads / kKeyHeads;
constexpr int kProjected = (kHeads + 2 * kKeyHeads) * kHeadDim;

constexpr int kOwn = 16 / SizeOf(kCache);  // columns of a lane
constexpr int kSlotLanes = kHeadDim / kOwn;
constexpr int kTogether = kLanes / kSlotLanes;
constexpr int kUnrolled = 4;  // slots of a lane on their way
constexpr int kSplits = Splits(kBatch, kKeyHeads);
constexpr int kHeadOut = kGroups * kHeadDim;

static_assert(kHeads % kKeyHeads == 0 && kGroups <= kMaxGroups, "whole groups of few query heads");
static_assert((kHeadDim & (kHeadDim - 1)) == 0 && kHeadDim >= 16 && kHeadDim <= 128, "a slot's lanes are a power of two");

// sqrt(kHeadDim).
constexpr float kRootHeadDim = kHeadDim == 16   ? 4.0f
                               : kHeadDim == 32 ? 5.656854249492381f
                               : kHeadDim == 64 ? 8.0f
                                                : 11.313708498984761f;

// Less than any score, and finite: exp of a difference of two of them is 1, not NaN.
constexpr float kLowest = -3.0e38f;

QWEN_DEVICE float SumOverSlot(float x) {
#pragma unroll
  for (int mask = kSlotLanes / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}

QWEN_DEVICE void LoadOwn(const float* from, float (&out)[kOwn]) {
#pragma unroll
  for (int i = 0; i < kOwn; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(from + i);
    out[i] = v.x;
    out[i + 1] = v.y;
    out[i + 2] = v.z;
    out[i + 3] = v.w;
  }
}

// Norm, rotation and rounding of one head's columns from `at` on, in place: first half * cos - second * sin, second * cos +
// first * sin.
struct Rotation {
  float cos[kOwn], sin[kOwn];

  QWEN_DEVICE void Apply(float (&x)[kOwn], const float (&gain)[kOwn], int at, float eps) const {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) squares += x[i] * x[i];
    const float scale = rsqrtf(SumOverSlot(squares) / static_cast<float>(kHeadDim) + eps);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float own = x[i] * scale * gain[i];
      const float other = __shfl_xor_sync(kAllLanes, own, kSlotLanes / 2);
      x[i] = Rounded<kCache>(own * cos[i] + (at < kHeadDim / 2 ? -other : other) * sin[i]);
    }
  }
};

// Softmax so far over the slots that a lane's neighbours have seen: the largest score, sum of weights, weighted sum of values.
struct State {
  float top[kGroups], total[kGroups], sum[kGroups][kOwn];

  QWEN_DEVICE void Reset() {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      top[g] = kLowest;
      total[g] = 0.0f;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) sum[g][i] = 0.0f;
    }
  }

  // One slot is all there is so far, for those lanes that `have` it.
  QWEN_DEVICE void Begin(const float (&query)[kGroups][kOwn], const float (&key)[kOwn], const float (&value)[kOwn], bool have) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float part = 0.0f;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) part = fmaf(query[g][i], key[i], part);
      const float score = SumOverSlot(part) / kRootHeadDim;
      if (!have) continue;
      top[g] = score;
      total[g] = 1.0f;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) sum[g][i] = value[i];
    }
  }

  // Takes in what lanes `mask` further have.
  QWEN_DEVICE void Merge(int mask) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const float other = __shfl_xor_sync(kAllLanes, top[g], mask), both = fmaxf(top[g], other);
      const float keep = FastExp(top[g] - both), take = FastExp(other - both);
      total[g] = keep * total[g] + take * __shfl_xor_sync(kAllLanes, total[g], mask);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        sum[g][i] = keep * sum[g][i] + take * __shfl_xor_sync(kAllLanes, sum[g][i], mask);
      }
      top[g] = both;
    }
  }
};

// Keys and values of some slots, a lane's columns of them.
struct Slots {
  uint4 key[kUnrolled], value[kUnrolled];

  // Slots first, first + stride, ..., as far as they are below `end`.
  QWEN_DEVICE void Load(const Cached* keys, const Cached* values, int first, int stride, int end) {
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int slot = first + u * stride;
      key[u] = value[u] = make_uint4(0, 0, 0, 0);
      if (slot >= end) continue;
      key[u] = LoadCached(keys + static_cast<long long>(slot) * kHeadDim);
      value[u] = LoadCached(values + static_cast<long long>(slot) * kHeadDim);
    }
  }

  QWEN_DEVICE void Attend(const float (&query)[kGroups][kOwn], int first, int stride, int end, State& state) const {
    float score[kGroups][kUnrolled];
    float top[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) top[g] = state.top[g];
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      float keys[kOwn];
      UnpackAll<kCache>(key[u], keys);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        float part = 0.0f;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) part = fmaf(query[g][i], keys[i], part);
        score[g][u] = SumOverSlot(part) * (1.0f / kRootHeadDim);
        if (first + u * stride < end) top[g] = fmaxf(top[g], score[g][u]);
      }
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const float keep = FastExp(state.top[g] - top[g]);
      state.top[g] = top[g];
      state.total[g] *= keep;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) state.sum[g][i] *= keep;
    }
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      if (first + u * stride >= end) continue;
      float values[kOwn];
      UnpackAll<kCache>(value[u], values);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const float weight = FastExp(score[g][u] - top[g]);
        state.total[g] += weight;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) state.sum[g][i] = fmaf(weight, values[i], state.sum[g][i]);
      }
    }
  }
};

// A block's shared memory, AttendBytes() of it.
struct SharedResults {
  float *tops, *totals, *sums;  // of every warp: [warps, G], [warps, G], [warps, G, H]
  float *factors, *top, *total;  // of a merge: [G, lanes], [G], [G]
  unsigned* flag;

  QWEN_DEVICE explicit SharedResults(unsigned char* memory)
      : tops(reinterpret_cast<float*>(memory)),
        totals(tops + kWarps * kGroups),
        sums(totals + kWarps * kGroups),
        factors(sums + kWarps * kHeadOut),
        top(factors + kGroups * kLanes),
        total(top + kGroups),
        flag(reinterpret_cast<unsigned*>(total + kGroups)) {}
};

// The slots of one of `active` blocks: old ones from `begin` up to `end`, and for the last block the newest one.
struct Share {
  int active, begin, end;
  bool newest_too;

  QWEN_DEVICE Share(int newest, int split) {
    const int valid = newest + 1;
    const int each = CeilDiv(valid, AtMost(kSplits, CeilDiv(valid, kBlockSlots)));
    active = CeilDiv(valid, each);
    begin = split * each;
    end = AtMost(begin + each, newest);
    newest_too = split == active - 1;
  }
};

// Merges `count` results, at most as many as lanes, of [G] tops and totals and [G, H] sums each: leaves `top` and `total` in
// shared memory and calls `write(i, sum)` for every i of [G, H]. `read` is how the results are to be read.
template <typename Read, typename Write>
QWEN_DEVICE void MergeResults(int count, const float* tops, const float* totals, const float* sums, const SharedResults& shared,
                              const Read& read, const Write& write) {
  if (Warp() < kGroups) {
    const int g = Warp();
    const bool there = Lane() < count;
    const float own = there ? read(tops + Lane() * kGroups + g) : kLowest;
    float top = own;
#pragma unroll
    for (int mask = kLanes / 2; mask > 0; mask /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, mask));
    const float factor = FastExp(own - top);
    float total = there ? factor * read(totals + Lane() * kGroups + g) : 0.0f;
#pragma unroll
    for (int mask = kLanes / 2; mask > 0; mask /= 2) total += __shfl_xor_sync(kAllLanes, total, mask);
    shared.factors[g * kLanes + Lane()] = factor;
    if (Lane() == 0) {
      shared.top[g] = top;
      shared.total[g] = total;
    }
  }
  __syncthreads();
  for (int i = Thread(); i < kHeadOut; i += kThreads) {
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < count; ++s) sum = fmaf(shared.factors[i / kHeadDim * kLanes + s], read(sums + s * kHeadOut + i), sum);
    write(i, sum);
  }
}

}  // namespace

}  // namespace qwen_asr_gpu

#endif
