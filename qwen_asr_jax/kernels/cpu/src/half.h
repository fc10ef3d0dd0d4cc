// Conversions of single values between float and the 16-bit types, rounding to nearest even.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_HALF_H_
#define QWEN_ASR_JAX_KERNELS_CPU_HALF_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace qwen_asr {

static inline uint32_t BitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float FloatOf(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

static inline float FromBF16(uint16_t x) { return FloatOf(static_cast<uint32_t>(x) << 16); }

static inline uint16_t ToBF16(float x) {
  const uint32_t bits = BitsOf(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // a NaN stays one
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float FromF16(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
  const uint32_t rest = x & 0x7fffu;
  if (rest >= 0x7c00u) return FloatOf(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest >= 0x0400u) return FloatOf(sign | ((rest << 13) + (112u << 23)));
  const float magnitude = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
  return FloatOf(sign | BitsOf(magnitude));
}

// Where float16 saturates: at the largest value that the reference lets through, finfo(float16).max - 1000.
constexpr float kF16Limit = 64504.0f;

// Values saturate instead of becoming infinite.
static inline uint16_t ToF16(float x) {
  const uint32_t bits = BitsOf(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (std::isnan(x)) return static_cast<uint16_t>(sign | 0x7e00u);
  const float magnitude = std::min(std::fabs(x), kF16Limit);
  if (magnitude < 6.103515625e-5f) {  // 2^-14: multiples of 2^-24 from here down
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::lrintf(magnitude * 16777216.0f)));
  }
  const uint32_t rest = BitsOf(magnitude) - (112u << 23);
  return static_cast<uint16_t>(sign | static_cast<uint16_t>((rest + 0xfffu + ((rest >> 13) & 1u)) >> 13));
}

}  // namespace qwen_asr

#endif
