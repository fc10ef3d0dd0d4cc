// Single functions of the table of kernels, and the conversions of single values.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"
#include "kernels.h"
#include "testing.h"

namespace native {

namespace {

void CheckFromF16() {
  for (int bits = 0; bits < 65536; ++bits) {
    ExpectNear(qwen_asr::FromF16(static_cast<uint16_t>(bits)), ValueF16(static_cast<uint16_t>(bits)), 0.0, "float16 ", bits);
  }
}

// Every sign and exponent, with mantissas at and beside the ties of both types.
void CheckRounding(int step) {
  for (uint32_t high = 0; high < 512; high += step) {
    for (uint32_t mantissa = 0; mantissa < (1u << 23); mantissa += 1u << 12) {
      for (uint32_t low : {0u, 1u, 0xfffu}) {
        const float x = qwen_asr::FloatOf(high << 23 | mantissa | low);
        if (std::isnan(x)) {
          if (!std::isnan(ValueBF16(qwen_asr::ToBF16(x)))) Fail("a NaN became a bfloat16 that is none");
          if (!std::isnan(ValueF16(qwen_asr::ToF16(x)))) Fail("a NaN became a float16 that is none");
          continue;
        }
        ExpectNear(ValueBF16(qwen_asr::ToBF16(x)), RoundBF16(x), 0.0, "to bfloat16");
        ExpectNear(ValueF16(qwen_asr::ToF16(x)), RoundF16(x), 0.0, "to float16");
      }
    }
  }
}

void CheckStore(Type cache, int64_t n) {
  Random random(static_cast<uint64_t>(n));
  const Floats x = random.Normals(n);
  Bytes out(n * SizeOf(cache));
  qwen_asr::BestKernels().store(cache, x.data(), n, out.data());
  const std::vector<double> got = Unpack(cache, out);
  for (int64_t i = 0; i < n; ++i) ExpectNear(got[i], RoundAs(cache, x[i]), 0.0, "stored");
}

void CheckScores(Type cache, int64_t slots, int64_t width, int64_t groups) {
  Random random(static_cast<uint64_t>(slots * 100 + width));
  const Packed keys = Pack(cache, random.Normals(slots * width), width);
  Floats q = random.Normals(groups * width);
  for (float& each : q) each = static_cast<float>(RoundAs(cache, each));
  const int64_t stride = slots + 3;
  Floats out(groups * stride, 7.0f);
  qwen_asr::BestKernels().scores(cache, keys.bytes.data(), slots, width, q.data(), groups, out.data(), stride);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t s = 0; s < stride; ++s) {
      double want = s < slots ? 0.0 : 7.0, magnitude = 0.0;
      for (int64_t i = 0; i < width && s < slots; ++i) {
        want += keys.At(s * width + i) * q[g * width + i];
        magnitude += std::fabs(keys.At(s * width + i) * q[g * width + i]);
      }
      ExpectNear(out[g * stride + s], want, 1e-6 * magnitude, "score");
    }
  }
}

void CheckWeightedSum(Type cache, int64_t slots, int64_t width, int64_t groups) {
  Random random(static_cast<uint64_t>(slots * 100 + width));
  const Packed values = Pack(cache, random.Normals(slots * width), width);
  const Floats p = random.Normals(groups * slots), before = random.Normals(groups * width);
  Floats out = before;
  qwen_asr::BestKernels().weighted_sum(cache, values.bytes.data(), slots, width, p.data(), groups, slots, out.data());
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t i = 0; i < width; ++i) {
      double want = before[g * width + i], magnitude = std::fabs(want);
      for (int64_t s = 0; s < slots; ++s) {
        want += p[g * slots + s] * values.At(s * width + i);
        magnitude += std::fabs(p[g * slots + s] * values.At(s * width + i));
      }
      ExpectNear(out[g * width + i], want, 3e-6 * magnitude, "weighted sum");
    }
  }
}

void CheckExponentials(int64_t n) {
  Random random(static_cast<uint64_t>(n));
  Floats p = random.Normals(n, 30.0);
  const float scale = 0.125f, largest = *std::max_element(p.begin(), p.end()) * scale;
  const Floats before = p;
  const float sum = qwen_asr::BestKernels().exponentials(p.data(), n, scale, largest);
  double want = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(before[i]) * scale - largest;
    ExpectNear(p[i], std::exp(x), 4e-7 * std::exp(x) * (1.0 + std::fabs(x)), "exponential");
    want += p[i];
  }
  ExpectNear(sum, want, 2e-6 * want, "their sum");
}

void CheckFarExponentials() {
  Floats p = {0.0f, -86.0f, -200.0f, -kInf, kNan, -0.0f, -1e30f};
  qwen_asr::BestKernels().exponentials(p.data(), static_cast<int64_t>(p.size()), 1.0f, 0.0f);
  ExpectNear(p[0], 1.0, 0.0, "exp(0)");
  ExpectNear(p[1], std::exp(-86.0), 1e-6 * std::exp(-86.0), "exp(-86)");
  for (size_t i : {2, 3, 6}) ExpectNear(p[i], 0.0, 1e-37, "exp(far below)");
  ExpectNear(p[4], kNan, 0.0, "exp(NaN)");
  ExpectNear(p[5], 1.0, 0.0, "exp(-0)");
}

void CheckLargest(int64_t n) {
  Random random(static_cast<uint64_t>(n));
  const auto& largest = qwen_asr::BestKernels().largest;
  Floats p = random.Normals(n);
  for (float& each : p) each -= 9.0f;
  ExpectNear(largest(p.data(), n), *std::max_element(p.begin(), p.end()), 0.0, "of some");
  for (int64_t at = 0; at < n; ++at) {
    Floats q = p;
    q[at] = 5.0f;
    ExpectNear(largest(q.data(), n), 5.0, 0.0, "in place ", at);
    q[at] = kNan;
    ExpectNear(largest(q.data(), n), kNan, 0.0, "NaN in place ", at);
    q[at] = kInf;
    q[n - 1 - at] = n - 1 - at == at ? kInf : -kInf;
    ExpectNear(largest(q.data(), n), kInf, 0.0, "infinities");
  }
  std::fill(p.begin(), p.end(), -kInf);
  ExpectNear(largest(p.data(), n), -kInf, 0.0, "of negative infinities");
  std::fill(p.begin(), p.end(), 3e38f);
  p[n / 2] = -3e38f;
  ExpectNear(largest(p.data(), n), n == 1 ? -3e38f : 3e38f, 0.0, "of a sum that overflows");
}

}  // namespace

void AddConversionCases(Cases& cases, bool quick) {
  cases.Add("from float16", CheckFromF16);
  cases.Add("rounding", [=] { CheckRounding(quick ? 7 : 1); });
}

void AddRowCases(Cases& cases, bool quick) {
  for (int64_t n : {1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 100, 257}) {
    cases.Add("exponentials of " + std::to_string(n), [=] { CheckExponentials(n); });
    cases.Add("largest of " + std::to_string(n), [=] { CheckLargest(n); });
  }
  cases.Add("exponentials far below", CheckFarExponentials);
  for (Type cache : kCacheTypes) {
    for (int64_t width : {2, 10, 16, 64, 80, 128, 130}) {
      if (quick && width % 5 != 0) continue;
      for (int64_t groups : {1, 2, 3}) {
        const std::string size = Join(NameOf(cache), ", ", width, " wide, ", groups, " groups");
        for (int64_t slots : {1, 5, 256}) {
          cases.Add(Join("scores, ", slots, " slots of ", size),
                           [=] { CheckScores(cache, slots, width, groups); });
          cases.Add(Join("weighted sum, ", slots, " slots of ", size),
                           [=] { CheckWeightedSum(cache, slots, width, groups); });
        }
      }
      cases.Add(Join("store ", NameOf(cache), " ", width), [=] { CheckStore(cache, width); });
    }
  }
}

}  // namespace native
