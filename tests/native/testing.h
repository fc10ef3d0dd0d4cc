// What all case tables share: cases and their failures, random numbers, weights of every type with what they stand for.

#ifndef QWEN_ASR_JAX_TESTS_NATIVE_TESTING_H_
#define QWEN_ASR_JAX_TESTS_NATIVE_TESTING_H_

#include <cmath>
#include <cstdint>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "kernels.h"

namespace native {

using qwen_asr::Type;

// ---- Cases -------------------------------------------------------------------------------------------------------------------

struct Case {
  std::string name;
  std::function<void()> run;
};
using Cases = std::vector<Case>;

// Groups of cases, a file for each; main.cc runs conversions once and the others on every instruction set. `quick` leaves out
// sizes and repetitions, for builds that run slowly.
void AddConversionCases(Cases& cases, bool quick);
void AddRowCases(Cases& cases, bool quick);
void AddLinearCases(Cases& cases, bool quick);
void AddHeadCases(Cases& cases, bool quick);
void AddLayerCases(Cases& cases, bool quick);

// Records a failure of the case that runs; at most a few per case are printed.
void Fail(const std::string& what);

template <typename... Parts>
std::string Join(const Parts&... parts) {
  std::ostringstream all;
  (all << ... << parts);
  return all.str();
}

// NaN wants NaN, an infinity the same infinity.
bool IsNear(double got, double want, double tolerance);

// The parts of the name are joined only for a failure: there are millions of values.
template <typename... Parts>
void ExpectNear(double got, double want, double tolerance, const Parts&... what) {
  if (IsNear(got, want, tolerance)) return;
  Fail(Join(what..., ": ", got, ", expected ", want, ", off by ", std::fabs(got - want) / tolerance, " tolerances"));
}

template <typename Number>
void ExpectSame(const std::string& what, const std::vector<Number>& got, const std::vector<Number>& want);

// ---- Numbers -----------------------------------------------------------------------------------------------------------------

// The same on every platform, which those of <random> are not.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t Bits();
  int64_t Below(int64_t n) { return static_cast<int64_t>(Bits() % static_cast<uint64_t>(n)); }
  double Uniform() { return static_cast<double>(Bits() >> 11) / 9007199254740992.0; }
  float Normal();
  std::vector<float> Normals(int64_t n, double scale = 1.0);

 private:
  uint64_t state_;
};

// The nearest bfloat16 or float16, ties to even, from arithmetic on doubles. float16 saturates where the policy does.
double RoundBF16(double x);
double RoundF16(double x);
double RoundAs(Type type, double x);

// Bits of a number that is exactly one of the type's.
uint16_t BitsBF16(double x);
uint16_t BitsF16(double x);
double ValueBF16(uint16_t bits);
double ValueF16(uint16_t bits);

const char* NameOf(Type type);
inline constexpr Type kAllTypes[] = {Type::kF32, Type::kBF16, Type::kF16, Type::kI8};
inline constexpr Type kCacheTypes[] = {Type::kF32, Type::kBF16, Type::kF16};

// A matrix or cache in one type. The memory ends with the last value, so that a sanitizer sees a read behind it.
struct Packed {
  Type type;
  std::vector<uint8_t> bytes;
  std::vector<float> scales;   // of int8 rows
  std::vector<double> values;  // what the bytes stand for, without the scales

  double At(int64_t i) const { return values[i]; }
};

// `x` rounded to the type; for int8, rows of `cols` values with a scale each.
Packed Pack(Type type, const std::vector<float>& x, int64_t cols);

// What the bytes stand for, now that a kernel has written some.
std::vector<double> Values(Type type, const std::vector<uint8_t>& bytes);

}  // namespace native

#endif
