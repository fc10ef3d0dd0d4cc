// Numbers in double precision, each with the standard deviation that float32 arithmetic may add to it.
//
// Roundings of operands, which the policy asks for, happen here as in the kernels, so nothing is allowed for them. What is left are
// the sums in float32, of an order that every instruction set chooses for itself: every addition is wrong by up to half a unit of the
// sum so far, in a direction that nobody knows. Such errors add up by their squares, and pass on to later results by the derivative.
// Where a number lies so near to the middle between two of a 16-bit type that its error decides the rounding, the distance of the
// two is weighed by the chance of it. A kernel's result may be kDeviations from a reference's value.

#ifndef QWEN_ASR_JAX_TESTS_NATIVE_VALUES_H_
#define QWEN_ASR_JAX_TESTS_NATIVE_VALUES_H_

#include <cstdint>
#include <vector>

#include "testing.h"

namespace native {

constexpr double kDeviations = 8.0;
constexpr double kUnit = 5.9604644775390625e-8;  // half a unit of float32 in the last place, of 1

struct Value {
  double value = 0.0;
  double deviation = 0.0;
};

using Values = std::vector<Value>;

Values Exactly(const float* x, int64_t n);
Values Exactly(const std::vector<double>& x);

Value RoundValue(Type type, Value x);
void RoundValues(Type type, Values& x);

// A sum in float32: the deviation that its additions cause, and the products in it.
class Sum {
 public:
  void Add(double product);
  void AddDeviation(double deviation) { squares_ += deviation * deviation; }
  Value Get() const;

 private:
  int64_t n_ = 0;
  double value_ = 0.0, largest_ = 0.0, products_ = 0.0, squares_ = 0.0;
};

// How a product takes its operands: few vectors beside the weights as they are, or many packed ones.
enum class Rows { kFew, kMany };

// The weights times x, which is rounded as the policy asks, and scaled; plus the bias, if any.
Values Times(const Packed& weights, Values x, Rows rows, const Floats& bias = {});

Values RmsNormOf(const Values& x, const float* weight, double eps);
Values LayerNormOf(const Values& x, const float* weight, const float* bias, double eps);
Value GeluOf(Value x);
Value SwiGluOf(Value gate, Value up);
Value SumOf(Value a, Value b);

// softmax(q . keys / sqrt(h)) values, over the slots; q rounded to the cache's type, weights too where `rounded`.
struct Slots {
  std::vector<const Value*> keys, values;
};
Values AttentionOf(Type cache, Values q, const Slots& slots, bool rounded);

template <typename... Parts>
void ExpectValue(double got, const Value& want, const Parts&... what) {
  ExpectNear(got, want.value, kDeviations * want.deviation, what...);
}

// A value that was stored: any that rounding allows, from so many deviations below to as many above.
template <typename... Parts>
void ExpectStored(Type type, double got, const Value& want, const Parts&... what) {
  const double off = kDeviations * want.deviation;
  if (got >= RoundAs(type, want.value - off) && got <= RoundAs(type, want.value + off)) return;
  if (std::isnan(want.value) && std::isnan(got)) return;
  ExpectNear(got, RoundAs(type, want.value), off, what..., ", rounded");
}

}  // namespace native

#endif
