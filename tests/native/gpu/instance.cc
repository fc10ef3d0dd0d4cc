// One program, emulated. The macros that name its shape come from build.py.

#include "emulated_programs.h"

#if defined(QWEN_VOCAB)
#include "head.cu"
#else
#include "decoder.cu"
#endif

namespace qwen_asr_gpu {

namespace {

template <typename Args, void (*kKernel)(const Args&)>
native::EmulatedKernel Emulated() {
  return {[](const void* arguments) { kKernel(*static_cast<const Args*>(arguments)); }, sizeof(Args)};
}

const bool registered = [] {
#if defined(QWEN_VOCAB)
  const HeadShape shape{kWeights, kBatch, kWidth, kVocab};
  native::Programs().push_back({KeyOf(shape), {Emulated<LogitsArgs, qwen_logits>(), Emulated<ChooseArgs, qwen_choose>()}});
#else
  const DecoderShape shape{kWeights, kCache, kBatch, kWidth, kInner, kHeads, kKeyHeads, kHeadDim};
  native::Programs().push_back({KeyOf(shape),
                                {Emulated<ProjectArgs, qwen_project>(), Emulated<AttendArgs, qwen_attend>(),
                                 Emulated<AddArgs, qwen_output>(), Emulated<GateArgs, qwen_gate>(),
                                 Emulated<AddArgs, qwen_down>()}});
#endif
  return true;
}();

}  // namespace

}  // namespace qwen_asr_gpu
