// The kernels of a decode step in their order, each with its arguments, blocks and shared memory. Knows nothing of CUDA or
// XLA: whoever launches is behind `Device`, which in the tests is an emulator.

#ifndef QWEN_ASR_JAX_KERNELS_GPU_LAUNCH_H_
#define QWEN_ASR_JAX_KERNELS_GPU_LAUNCH_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "arguments.h"
#include "geometry.h"

namespace qwen_asr_gpu {

// What a program, decoder.cu or head.cu, is compiled for; its fields are the macros of the .cu file, in the order of
// shapes.py.
struct DecoderShape {
  Type weights, cache;
  int batch, width, inner, heads, key_heads, head_dim;

  int projected() const { return (heads + 2 * key_heads) * head_dim; }
  int attended() const { return heads * head_dim; }
  int groups() const { return heads / key_heads; }
  int splits() const { return Splits(batch, key_heads); }
};

struct HeadShape {
  Type weights;
  int batch, width, vocab;
};

// The same as numbers, with which programs are found: which one it is, then the fields in their order, then zeros.
using ProgramKey = std::array<int, 9>;
ProgramKey KeyOf(const DecoderShape& s);
ProgramKey KeyOf(const HeadShape& s);
DecoderShape DecoderOf(const ProgramKey& key);
HeadShape HeadOf(const ProgramKey& key);

// A kernel of a program, and what a launch of it needs besides arguments.
struct KernelSpec {
  const char* name;
  int blocks;        // that have something to do
  int shared_bytes;  // of each
  bool loops;        // whether fewer blocks do, too
};

enum { kProjectKernel, kAttendKernel, kOutputKernel, kGateKernel, kDownKernel };
enum { kLogitsKernel, kChooseKernel };

// The kernels of a program in the order of these enumerations.
std::vector<KernelSpec> KernelsOf(const ProgramKey& key);

// Why no kernels can be compiled for a shape, in one line; empty if they can.
std::string WhyNot(const ProgramKey& key);

class Device {
 public:
  virtual ~Device() = default;
  // Blocks of the kernel that run at the same time.
  virtual int BlocksAtOnce(int kernel) const = 0;
  // Puts the kernel behind what was put there before; with `overlap` it may start before that has ended, see
  // WaitForKernelBefore. Returns whether that worked.
  virtual bool Launch(int kernel, int blocks, int shared_bytes, const void* arguments, bool overlap) = 0;
};

struct LayerWeights {
  const float *input_norm, *post_norm, *q_norm, *k_norm;
  Weights qkv, output, gate_up, down;
  void *k_cache, *v_cache;
};

struct DecoderStep {
  DecoderShape shape;
  std::vector<LayerWeights> layers;
  const float* x;           // [B, D]
  const float *cos, *sin;   // [B, H / 2]
  const int* start;         // [B]
  float* out;               // [B, D]
  unsigned char* scratch;   // ScratchBytes(shape)
  int slots;
  float eps;
  bool overlap;   // let a kernel start before the one in front of it has ended
  bool prefetch;  // bring the output projection into the second cache during attention, which leaves memory idle
};

// Where intermediate results lie in the scratch memory, in bytes; everything begins at a multiple of 256.
struct ScratchLayout {
  int64_t projected, attended, hidden, gated, sums, tops, totals, arrived, bytes;
};
ScratchLayout LayoutOf(const DecoderShape& s);

bool EnqueueDecoder(const DecoderStep& step, Device& device);

struct HeadStep {
  HeadShape shape;
  const float* x;  // [B, D]
  Weights weights;
  float* top;     // [B]
  int* token;     // [B]
  float* tops;    // [kMaxHeadBlocks, B]
  int* tokens;    // [kMaxHeadBlocks, B]
  bool overlap;
};

bool EnqueueHead(const HeadStep& step, Device& device);

}  // namespace qwen_asr_gpu

#endif
