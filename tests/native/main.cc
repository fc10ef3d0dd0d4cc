// native_tests [--isa NAME] [--case WORDS] [--quick]: all cases, or those with these words in their name, on every instruction set
// that runs here, or on one. A line per failure.

#include <cstdio>
#include <cstring>
#include <string>

#include "testing.h"

namespace native {

namespace {

std::string running;
int failures = 0, in_case = 0;

constexpr int kPrinted = 3;  // failures of one case

void Run(const char* set, const Cases& cases, const std::string& words) {
  int ran = 0;
  for (const Case& test : cases) {
    if (test.name.find(words) == std::string::npos) continue;
    ++ran;
    running = Join(set, " ", test.name);
    in_case = 0;
    test.run();
    if (in_case > kPrinted) std::printf("FAILED %s: and %d more\n", running.c_str(), in_case - kPrinted);
  }
  std::printf("%s: %d cases\n", set, ran);
}

}  // namespace

void Fail(const std::string& what) {
  ++failures;
  if (++in_case <= kPrinted) std::printf("FAILED %s: %s\n", running.c_str(), what.c_str());
}

}  // namespace native

int main(int argc, char** argv) {
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
  native::Cases once, cases;
  native::AddConversionCases(once, quick);
  native::AddRowCases(cases, quick);
  native::AddLinearCases(cases, quick);
  native::AddHeadCases(cases, quick);
  native::AddLayerCases(cases, quick);
  native::Run("baseline", once, words);
  int sets = 0;
  for (const qwen_asr::Kernels* const* each = qwen_asr::RunnableKernels(); *each != nullptr; ++each) {
    if (only != nullptr && std::strcmp(only, (*each)->name) != 0) continue;
    ++sets;
    qwen_asr::UseKernels(*each);
    native::Run((*each)->name, cases, words);
  }
  if (sets == 0) {
    std::fprintf(stderr, "no instruction set %s here\n", only);
    return 2;
  }
  std::printf("%d failures\n", native::failures);
  return native::failures == 0 ? 0 : 1;
}
