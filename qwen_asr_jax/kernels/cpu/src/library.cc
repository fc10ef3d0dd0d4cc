// What the loader asks before it hands a handler to XLA.

#include <string>

#include "kernels.h"

#pragma GCC visibility push(default)

extern "C" {

// Raised with every change of a handler's arguments or results, here and in kernels/cpu/__init__.py: it is part of the names under
// which handlers are registered, so that a compiled program kept from before never calls a handler of after.
int qwen_asr_abi() { return 1; }

// Names of the sets that this processor can run, from the best on, separated by spaces.
const char* qwen_asr_isa_names() {
  static const std::string names = [] {
    std::string all;
    for (const qwen_asr::Kernels* const* each = qwen_asr::RunnableKernels(); *each != nullptr; ++each) {
      all += all.empty() ? "" : " ";
      all += (*each)->name;
    }
    return all;
  }();
  return names.c_str();
}
}

#pragma GCC visibility pop
