// What all case tables share: cases and their failures, random numbers, weights of every type with what they stand for.

#ifndef QWEN_ASR_JAX_TESTS_NATIVE_TESTING_H_
#define QWEN_ASR_JAX_TESTS_NATIVE_TESTING_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "tight.h"

namespace native {

using qwen_asr::Type;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

// ---- Cases -------------------------------------------------------------------------------------------------------------------

using Check = std::function<void()>;

// `prepare` makes the problem and its reference, once; what it returns runs on every instruction set.
struct Case {
  std::string name;
  std::function<Check()> prepare;
};

class Cases {
 public:
  void Add(std::string name, Check check) {
    all_.push_back({std::move(name), [check = std::move(check)] { return check; }});
  }
  void AddPrepared(std::string name, std::function<Check()> prepare) { all_.push_back({std::move(name), std::move(prepare)}); }
  const std::vector<Case>& all() const { return all_; }

 private:
  std::vector<Case> all_;
};

// Groups of cases, a file for each; main.cc runs those of conversions and scratch once and the others on every instruction set.
// `quick` leaves out sizes and repetitions, for builds that run slowly.
void AddConversionCases(Cases& cases, bool quick);
void AddScratchCases(Cases& cases, bool quick);
void AddRowCases(Cases& cases, bool quick);
void AddElementCases(Cases& cases, bool quick);
void AddLinearCases(Cases& cases, bool quick);
void AddHeadCases(Cases& cases, bool quick);
void AddScreenCases(Cases& cases, bool quick);
void AddAttentionCases(Cases& cases, bool quick);
void AddDecoderCases(Cases& cases, bool quick);
void AddEncoderCases(Cases& cases, bool quick);
void AddConvCases(Cases& cases, bool quick);

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

template <typename List>
void ExpectSame(const std::string& what, const List& got, const List& want) {
  if (got.size() == want.size() && (got.empty() || std::memcmp(got.data(), want.data(), got.size() * sizeof got[0]) == 0)) return;
  Fail(what + ": not the same bits");
}

// ---- Numbers -----------------------------------------------------------------------------------------------------------------

// The same on every platform, which those of <random> are not.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t Bits();
  int64_t Below(int64_t n) { return static_cast<int64_t>(Bits() % static_cast<uint64_t>(n)); }
  double Uniform() { return static_cast<double>(Bits() >> 11) / 9007199254740992.0; }
  float Normal();
  Floats Normals(int64_t n, double scale = 1.0);
  Floats AroundOne(int64_t n);

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

// A matrix or cache in one type.
struct Packed {
  Type type;
  Bytes bytes;
  Floats scales;               // of int8 rows
  std::vector<double> values;  // what the bytes stand for, without the scales

  double At(int64_t i) const { return values[i]; }
};

// `x` rounded to the type; for int8, rows of `cols` values with a scale each.
Packed Pack(Type type, const Floats& x, int64_t cols);

// What the bytes stand for, now that a kernel has written some.
std::vector<double> Unpack(Type type, const Bytes& bytes);

}  // namespace native

#endif
