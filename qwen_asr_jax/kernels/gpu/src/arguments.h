// What each kernel is given: one struct, the same for the host and the device. `Operand` stands for the type that
// operands of the weights are rounded to.

#ifndef QWEN_ASR_JAX_KERNELS_GPU_ARGUMENTS_H_
#define QWEN_ASR_JAX_KERNELS_GPU_ARGUMENTS_H_

namespace qwen_asr_gpu {

// [rows, cols], and of int8 rows a scale each.
struct Weights {
  const void* values;
  const float* scales;
};

// q|k|v of the normed hidden state.
struct ProjectArgs {
  const float* x;     // [B, D]
  const float* norm;  // [D]
  Weights weights;    // [(N + 2 K) H, D]
  float* out;         // [B, (N + 2 K) H]
  unsigned* arrived;  // [B, K], set to zero for `attend`
  float eps;
};

// Head norms, rotation, the new slot of the caches, attention over the slots up to it.
struct AttendArgs {
  const float* projected;         // [B, (N + 2 K) H]
  const float *q_norm, *k_norm;   // [H]
  const float *cos, *sin;         // [B, H / 2]
  const int* start;               // [B], the new slots
  void *k_cache, *v_cache;        // [B * K, slots, H]
  float* sums;                    // [B, K, splits, N / K, H], a split's weighted sums
  float* tops;                    // [B, K, splits, N / K], its largest scores
  float* totals;                  // [B, K, splits, N / K], its sums of weights
  unsigned* arrived;              // [B, K], splits that are done
  void* out;                      // [B, N * H] Operand
  const void* next;               // what is read after this kernel, to be brought into the second cache
  unsigned long long next_bytes;  // 0 for nothing
  int slots;
  float eps;
};

// out = residual + weights x, where x is [B, cols] Operand and the others are [B, D].
struct AddArgs {
  const void* x;
  Weights weights;
  const float* residual;
  float* out;
};

// silu(gate) * up of the normed hidden state.
struct GateArgs {
  const float* x;     // [B, D]
  const float* norm;  // [D]
  Weights weights;    // [2 F, D], gate first
  void* out;          // [B, F] Operand
  float eps;
};

// Every block's largest logits.
struct LogitsArgs {
  const float* x;   // [B, D], normed
  Weights weights;  // [V, D]
  float* tops;      // [blocks, B]
  int* tokens;      // [blocks, B]
};

// The largest of those.
struct ChooseArgs {
  const float* tops;
  const int* tokens;
  float* top;  // [B]
  int* token;  // [B]
  int blocks;
};

}  // namespace qwen_asr_gpu

#endif
