// What is launched without any kernel: blocks, shared memory, what is refused.

#include <algorithm>

#include "emulated_programs.h"

namespace native {

namespace {

using namespace qwen_asr_gpu;

const ::qwen_asr_gpu::DecoderShape kSmall{::qwen_asr_gpu::kBF16, ::qwen_asr_gpu::kBF16, 1, 1024, 3072, 16, 8, 128};

// Remembers what it is told to launch; refuses from the `left`-th on.
class Recorder final : public Device {
 public:
  Recorder(int at_once, int left) : at_once_(at_once), left_(left) {}
  int BlocksAtOnce(int) const override { return at_once_; }
  bool Launch(int kernel, int blocks, int, const void*, bool overlap) override {
    kernels.push_back(kernel);
    counts.push_back(blocks);
    overlaps += overlap ? 1 : 0;
    return --left_ > 0;
  }
  std::vector<int> kernels, counts;
  int overlaps = 0;

 private:
  int at_once_, left_;
};

void Expect(const char* what, int64_t got, int64_t want) {
  ExpectNear(static_cast<double>(got), static_cast<double>(want), 0.0, what);
}

void CheckCounts() {
  DecoderStep step{};
  step.shape = kSmall;
  step.layers.resize(28);
  step.overlap = true;
  Recorder all(528, 1000);
  if (!EnqueueDecoder(step, all)) Fail("not all was launched");
  Expect("kernels of a step", static_cast<int64_t>(all.kernels.size()), 28 * 5);
  Expect("kernels that overlap another", all.overlaps, 28 * 5 - 1);
  Expect("kernels after the first refusal", [&] {
    Recorder two(528, 3);
    if (EnqueueDecoder(step, two)) Fail("a refusal was not noticed");
    return static_cast<int64_t>(two.kernels.size());
  }(), 3);
  // One round on a large GPU; on a small one as many rounds as needed, each nearly full.
  Expect("blocks of q|k|v", all.counts[0], 512);
  Expect("blocks of attention", all.counts[1], 256);
  Recorder small(160, 1000);
  EnqueueDecoder(step, small);
  Expect("blocks of q|k|v on a small GPU", small.counts[0], 128);
}

void CheckRefused(const char* what, ::qwen_asr_gpu::DecoderShape s) {
  const std::string got = WhyNot(KeyOf(s));
  if (got.find(what) == std::string::npos) Fail(Join("expected '", what, "', got '", got, "'"));
}

void CheckRefusals() {
  for (const Program& program : Programs()) {
    if (const std::string why = WhyNot(program.key); !why.empty()) Fail("a program of the tests is refused: " + why);
  }
  auto s = kSmall;
  CheckRefused("", s);
  if (!WhyNot(KeyOf(s)).empty()) Fail("the small model is refused");
  s.batch = 9;
  CheckRefused("at most 8 rows", s);
  s = kSmall;
  s.width = 1000;
  CheckRefused("multiple of 16, got 1000", s);
  s = kSmall;
  s.inner = 3080;
  CheckRefused("multiple of 16, got 3080", s);
  s = kSmall;
  s.head_dim = 96;
  CheckRefused("16, 32, 64 or 128 wide, got 96", s);
  s = kSmall;
  s.key_heads = 3;
  CheckRefused("got 16 for 3", s);
  s = kSmall;
  s.key_heads = 1;
  CheckRefused("got 16 for 1", s);
  s = kSmall;
  s.cache = ::qwen_asr_gpu::kI8;
  CheckRefused("floating", s);
  s = kSmall;
  s.weights = ::qwen_asr_gpu::kF32;
  s.batch = 8;
  s.width = 4096;
  CheckRefused("shared memory", s);
}

}  // namespace

void AddLaunchCases(Cases& cases, bool) {
  cases.Add("launch, counts", CheckCounts);
  cases.Add("launch, refusals", CheckRefusals);
}

}  // namespace native
