// Values of every type in registers: 16 bytes at a time to floats, single floats back.

#ifndef QWEN_ASR_JAX_KERNELS_GPU_TYPES_CUH_
#define QWEN_ASR_JAX_KERNELS_GPU_TYPES_CUH_

#include "device.cuh"

namespace qwen_asr_gpu {

template <Type kType>
struct Stored;
template <>
struct Stored<kF32> {
  using T = float;
};
template <>
struct Stored<kBF16> {
  using T = unsigned short;
};
template <>
struct Stored<kF16> {
  using T = unsigned short;
};
template <>
struct Stored<kI8> {
  using T = signed char;
};

template <int kIndex>
QWEN_DEVICE unsigned Word(const uint4& v) {
  static_assert(kIndex >= 0 && kIndex < 4, "a chunk has four words");
  return kIndex == 0 ? v.x : kIndex == 1 ? v.y : kIndex == 2 ? v.z : v.w;
}

// The values of one word.
template <Type kType>
QWEN_DEVICE void UnpackWord(unsigned word, float* out) {
  if constexpr (kType == kF32) {
    out[0] = __uint_as_float(word);
  } else if constexpr (kType == kBF16) {
    out[0] = __uint_as_float(word << 16);
    out[1] = __uint_as_float(word & 0xffff0000u);
  } else if constexpr (kType == kF16) {
    out[0] = FloatOfF16(word & 0xffffu);
    out[1] = FloatOfF16(word >> 16);
  } else {
    // Converting integers has a quarter of the speed that this needs. A byte as the last one of 2^23 is a float: 2^23 + byte.
    const unsigned biased = word ^ 0x80808080u;
    constexpr unsigned kTwo23 = 0x4b000000u;
    out[0] = __uint_as_float(__byte_perm(biased, kTwo23, 0x7440)) - 8388736.0f;
    out[1] = __uint_as_float(__byte_perm(biased, kTwo23, 0x7441)) - 8388736.0f;
    out[2] = __uint_as_float(__byte_perm(biased, kTwo23, 0x7442)) - 8388736.0f;
    out[3] = __uint_as_float(__byte_perm(biased, kTwo23, 0x7443)) - 8388736.0f;
  }
}

// Words [kWord, kWord + kWords) of a chunk.
template <Type kType, int kWord, int kWords>
QWEN_DEVICE void Unpack(const uint4& chunk, float* out) {
  if constexpr (kWords > 0) {
    UnpackWord<kType>(Word<kWord>(chunk), out);
    Unpack<kType, kWord + 1, kWords - 1>(chunk, out + 4 / SizeOf(kType));
  }
}

template <Type kType>
QWEN_DEVICE void UnpackAll(const uint4& chunk, float (&out)[16 / SizeOf(kType)]) {
  Unpack<kType, 0, 4>(chunk, out);
}

// To nearest even. float16 saturates where the policy does; a NaN stays one.
template <Type kType>
QWEN_DEVICE typename Stored<kType>::T RoundTo(float x) {
  if constexpr (kType == kF32) {
    return x;
  } else if constexpr (kType == kBF16) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<unsigned short>((bits >> 16) | 0x40u);
    return static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  } else {
    static_assert(kType == kF16, "nothing is rounded to int8");
    constexpr float kLimit = 64504.0f;
    return F16OfFloat(x != x ? x : fminf(fmaxf(x, -kLimit), kLimit));
  }
}

template <Type kType>
QWEN_DEVICE float Rounded(float x) {
  if constexpr (kType == kF32) {
    return x;
  } else if constexpr (kType == kBF16) {
    return __uint_as_float(static_cast<unsigned>(RoundTo<kBF16>(x)) << 16);
  } else {
    return FloatOfF16(RoundTo<kF16>(x));
  }
}

// Several neighbouring values at once, as wide as they are together.
template <Type kType>
QWEN_DEVICE void StoreFour(typename Stored<kType>::T* to, float a, float b, float c, float d) {
  if constexpr (kType == kF32) {
    *reinterpret_cast<float4*>(to) = make_float4(a, b, c, d);
  } else {
    const unsigned low = RoundTo<kType>(a) | (static_cast<unsigned>(RoundTo<kType>(b)) << 16);
    const unsigned high = RoundTo<kType>(c) | (static_cast<unsigned>(RoundTo<kType>(d)) << 16);
    *reinterpret_cast<uint2*>(to) = make_uint2(low, high);
  }
}

}  // namespace qwen_asr_gpu

#endif
