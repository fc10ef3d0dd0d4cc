#include "testing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace native {

uint64_t Random::Bits() {  // splitmix64
  uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

float Random::Normal() {  // from four uniform numbers of 16 bits: near enough, and bounded
  const uint64_t bits = Bits();
  const int64_t sum = static_cast<int64_t>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
  return static_cast<float>(static_cast<double>(sum - 131070) * (1.7320508 / 65536.0));
}

Floats Random::Normals(int64_t n, double scale) {
  Floats x(n);
  for (float& each : x) each = static_cast<float>(Normal() * scale);
  return x;
}

Floats Random::AroundOne(int64_t n) {
  Floats x = Normals(n, 0.2);
  for (float& each : x) each += 1.0f;
  return x;
}

namespace {

// To a multiple of 2^(exponent - bits), at least of 2^(lowest - bits).
double RoundTo(double x, int bits, int lowest) {
  if (!std::isfinite(x) || x == 0.0) return x;
  // Adding and taking away so many units leaves no bits for less than one.
  const double many = std::ldexp(1.5, std::max(std::ilogb(x), lowest) - bits + 52);
  return (x + many) - many;
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

double RoundBF16(double x) {
  const double rounded = RoundTo(x, 7, -126);
  return std::fabs(rounded) >= std::ldexp(1.0, 128) ? std::copysign(kInfinity, x) : rounded;
}

double RoundF16(double x) {
  if (std::isnan(x)) return x;
  return RoundTo(std::copysign(std::min(std::fabs(x), 64504.0), x), 10, -14);
}

double RoundAs(Type type, double x) {
  return type == Type::kBF16 ? RoundBF16(x) : type == Type::kF16 ? RoundF16(x) : x;
}

uint16_t BitsBF16(double x) {
  const float value = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>(bits >> 16);
}

uint16_t BitsF16(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000u : 0u;
  if (std::isnan(x)) return static_cast<uint16_t>(sign | 0x7e00u);
  if (std::isinf(x)) return static_cast<uint16_t>(sign | 0x7c00u);
  const double magnitude = std::fabs(x);
  if (magnitude < std::ldexp(1.0, -14)) return static_cast<uint16_t>(sign | static_cast<int>(std::ldexp(magnitude, 24)));
  const int exponent = std::ilogb(magnitude);
  const int mantissa = static_cast<int>(std::ldexp(magnitude, 10 - exponent)) - 1024;
  return static_cast<uint16_t>(sign | ((exponent + 15) << 10) | mantissa);
}

double ValueBF16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

double ValueF16(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  double value;
  if (exponent == 31) {
    value = mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : kInfinity;
  } else {
    value = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  }
  return (bits & 0x8000u) != 0 ? -value : value;
}

const char* NameOf(Type type) {
  switch (type) {
    case Type::kF32:
      return "f32";
    case Type::kBF16:
      return "bf16";
    case Type::kF16:
      return "f16";
    default:
      return "i8";
  }
}

Packed Pack(Type type, const Floats& x, int64_t cols) {
  Packed out{type, Bytes(x.size() * SizeOf(type)), {}, {}};
  auto put = [&out](size_t i, auto value) { std::memcpy(out.bytes.data() + i * sizeof value, &value, sizeof value); };
  if (type == Type::kI8) {
    for (size_t begin = 0; begin < x.size(); begin += cols) {
      float largest = 0.0f;
      for (int64_t i = 0; i < cols; ++i) largest = std::max(largest, std::fabs(x[begin + i]));
      const float scale = largest > 0.0f ? largest / 127.0f : 1.0f;
      for (int64_t i = 0; i < cols; ++i) put(begin + i, static_cast<int8_t>(std::lrint(x[begin + i] / scale)));
      out.scales.push_back(scale);
    }
  } else {
    for (size_t i = 0; i < x.size(); ++i) {
      if (type == Type::kF32) {
        put(i, x[i]);
      } else if (type == Type::kBF16) {
        put(i, std::isnan(x[i]) ? uint16_t{0x7fc0} : BitsBF16(RoundBF16(x[i])));
      } else {
        put(i, BitsF16(std::isinf(x[i]) ? x[i] : RoundF16(x[i])));
      }
    }
  }
  out.values = Unpack(type, out.bytes);
  return out;
}

std::vector<double> Unpack(Type type, const Bytes& bytes) {
  static const std::vector<double> of_f16 = [] {
    std::vector<double> all(65536);
    for (int bits = 0; bits < 65536; ++bits) all[bits] = ValueF16(static_cast<uint16_t>(bits));
    return all;
  }();
  std::vector<double> out(bytes.size() / SizeOf(type));
  auto get = [&bytes](size_t i, auto value) {
    std::memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
    return value;
  };
  for (size_t i = 0; i < out.size(); ++i) {
    switch (type) {
      case Type::kF32:
        out[i] = get(i, float{});
        break;
      case Type::kBF16:
        out[i] = ValueBF16(get(i, uint16_t{}));
        break;
      case Type::kF16:
        out[i] = of_f16[get(i, uint16_t{})];
        break;
      default:
        out[i] = get(i, int8_t{});
    }
  }
  return out;
}

bool IsNear(double got, double want, double tolerance) {
  if (std::isnan(want)) return std::isnan(got);
  return std::isinf(want) ? got == want : std::fabs(got - want) <= tolerance;
}

}  // namespace native
