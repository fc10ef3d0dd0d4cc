// native_tests [--isa NAME] [--case WORDS] [--quick]: all cases, or those with these words in their name, on every instruction set
// that runs here, or on one. A line per failure.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "testing.h"

namespace native {

namespace {

std::string running;
int failures = 0, in_case = 0;

constexpr int kPrinted = 3;  // failures of one case

using Sets = std::vector<const qwen_asr::Kernels*>;

void Run(const Sets& sets, const Cases& cases, const std::string& words) {
  int ran = 0;
  for (const Case& test : cases.all()) {
    if (test.name.find(words) == std::string::npos) continue;
    ++ran;
    const Check check = test.prepare();
    for (const qwen_asr::Kernels* set : sets) {
      qwen_asr::UseKernels(set);
      running = Join(set->name, " ", test.name);
      in_case = 0;
      check();
      if (in_case > kPrinted) std::printf("FAILED %s: and %d more\n", running.c_str(), in_case - kPrinted);
    }
  }
  std::printf("%d cases on %s", ran, sets.front()->name);
  for (size_t i = 1; i < sets.size(); ++i) std::printf(", %s", sets[i]->name);
  std::printf("\n");
}

// A kernel left its memory; which case it was is all that can still be said.
[[maybe_unused]] void Stop(int) {
  std::printf("FAILED %s: memory that is not its own\n", running.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

}  // namespace

void Fail(const std::string& what) {
  ++failures;
  if (++in_case <= kPrinted) std::printf("FAILED %s: %s\n", running.c_str(), what.c_str());
}

}  // namespace native

int main(int argc, char** argv) {
#if !defined(QWEN_SANITIZED)  // who say more
  std::signal(SIGSEGV, native::Stop);
#endif
  const char* only = nullptr;
  std::string words;
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--isa") == 0 && i + 1 < argc) {
      only = argv[++i];
    } else if (std::strcmp(argv[i], "--case") == 0 && i + 1 < argc) {
      words = argv[++i];
    } else if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else {
      std::fprintf(stderr, "usage: %s [--isa NAME] [--case WORDS] [--quick]\n", argv[0]);
      return 2;
    }
  }
  native::Sets sets;
  for (const qwen_asr::Kernels* const* each = qwen_asr::RunnableKernels(); *each != nullptr; ++each) {
    if (only == nullptr || std::strcmp(only, (*each)->name) == 0) sets.push_back(*each);
  }
  if (sets.empty()) {
    std::fprintf(stderr, "no instruction set %s here\n", only);
    return 2;
  }
  native::Cases once, cases;
  native::AddConversionCases(once, quick);
  native::AddScratchCases(once, quick);
  native::AddRowCases(cases, quick);
  native::AddElementCases(cases, quick);
  native::AddLinearCases(cases, quick);
  native::AddHeadCases(cases, quick);
  native::AddScreenCases(cases, quick);
  native::AddAttentionCases(cases, quick);
  native::AddDecoderCases(cases, quick);
  native::AddEncoderCases(cases, quick);
  native::AddConvCases(cases, quick);
  native::Run({sets.front()}, once, words);
  native::Run(sets, cases, words);
  std::printf("%d failures\n", native::failures);
  return native::failures == 0 ? 0 : 1;
}
