// gpu_tests [--case WORDS] [--quick]: all cases of the emulated CUDA kernels, or those with these words in their name.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "emulated_programs.h"

namespace native {

namespace {

std::string running;
int failures = 0, in_case = 0;

constexpr int kPrinted = 3;  // failures of one case

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
  std::string words;
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--case") == 0 && i + 1 < argc) {
      words = argv[++i];
    } else if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else {
      std::fprintf(stderr, "usage: %s [--case WORDS] [--quick]\n", argv[0]);
      return 2;
    }
  }
  native::Cases cases;
  native::AddLaunchCases(cases, quick);
  native::AddEmulatedHeadCases(cases, quick);
  native::AddEmulatedDecoderCases(cases, quick);
  int ran = 0;
  for (const native::Case& test : cases.all()) {
    if (test.name.find(words) == std::string::npos) continue;
    ++ran;
    native::running = test.name;
    native::in_case = 0;
    test.prepare()();
    if (native::in_case > native::kPrinted) {
      std::printf("FAILED %s: and %d more\n", native::running.c_str(), native::in_case - native::kPrinted);
    }
  }
  std::printf("%d cases of %zu programs, %d failures\n", ran, native::Programs().size(), native::failures);
  return native::failures == 0 && ran > 0 ? 0 : 1;
}
