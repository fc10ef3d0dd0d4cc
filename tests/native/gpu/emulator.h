// CUDA's kernels on a CPU: each thread of a block is a fiber, and whoever waits for others gives way to one that chance picks.
//
// Blocks start in an order of chance, some at a time, so that results which depend on it show. Shared memory is as large as
// was asked for, and full of NaN at first. A kernel that may overlap the one before runs some of its blocks up to
// WaitForKernelBefore before that one has begun, so that what it reads too early is old. Deadlocks, divergent barriers and
// exchanges without all lanes end the program. Memory is checked by the sanitizers, alignment too.

#ifndef QWEN_ASR_JAX_TESTS_NATIVE_GPU_EMULATOR_H_
#define QWEN_ASR_JAX_TESTS_NATIVE_GPU_EMULATOR_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "geometry.h"
#include "half.h"

namespace emulator {

struct Index {
  unsigned x;
};

// Of the fiber that runs.
Index ThreadIndex();
Index BlockIndex();
Index GridSize();
unsigned char* SharedMemory();

void Barrier();
// Every lane gives `bits` and gets those of lane `from`.
uint32_t Exchange(uint32_t bits, int from, uint32_t mask);
void WaitForGridBefore();
// Another fiber may go first here.
void Yield();

using Kernel = void (*)(const void* arguments);

// One launch. Arguments are copied.
class Grid {
 public:
  Grid(Kernel kernel, int blocks, int shared_bytes, const void* arguments, size_t argument_bytes, uint64_t seed);
  ~Grid();
  // Runs some blocks up to where they wait for the grid before.
  void StartEarly();
  void Finish();

  class Run;

 private:
  std::unique_ptr<Run> run_;
};

template <typename T>
uint32_t BitsOf(T x) {
  static_assert(sizeof(T) == 4, "a lane exchanges 32 bits");
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <typename T>
T FromBits(uint32_t bits) {
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace emulator

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define threadIdx (::emulator::ThreadIndex())
#define blockIdx (::emulator::BlockIndex())
#define gridDim (::emulator::GridSize())

inline void __syncthreads() { ::emulator::Barrier(); }
inline void __threadfence() {}
template <typename T>
T __shfl_sync(unsigned mask, T x, int from) {
  return ::emulator::FromBits<T>(::emulator::Exchange(::emulator::BitsOf(x), from, mask));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int lanes) {
  return __shfl_sync(mask, x, static_cast<int>(::emulator::ThreadIndex().x % 32) ^ lanes);
}
inline unsigned atomicAdd(unsigned* at, unsigned more) {
  ::emulator::Yield();
  const unsigned before = *at;
  *at += more;
  return before;
}
inline float __ldcg(const float* from) { return *from; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __uint_as_float(unsigned bits) { return ::emulator::FromBits<float>(bits); }
inline unsigned __float_as_uint(float x) { return ::emulator::BitsOf(x); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t all = x | (static_cast<uint64_t>(y) << 32);
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<unsigned>((all >> (8 * ((selector >> (4 * i)) & 7))) & 0xff) << (8 * i);
  return out;
}

#define QWEN_DEVICE inline
#define QWEN_KERNEL(name, Args, blocks) \
  static_assert(blocks >= 1, "room for a block"); \
  static void name(const Args& a)
#define QWEN_SHARED(name) unsigned char* const name = ::emulator::SharedMemory()

namespace qwen_asr_gpu {

inline uint4 LoadStream(const void* from) { return *static_cast<const uint4*>(from); }
inline uint4 LoadCached(const void* from) { return *static_cast<const uint4*>(from); }
// Reads, so that the sanitizers see what is fetched.
inline void PrefetchLine(const void* at) { static_cast<void>(*static_cast<const volatile unsigned char*>(at)); }
inline void WaitForKernelBefore() { ::emulator::WaitForGridBefore(); }
inline void LetKernelBehindStart() {}
inline float FastExp(float x) { return std::exp(x); }
inline float FloatOfF16(unsigned bits) { return qwen_asr::FromF16(static_cast<uint16_t>(bits)); }
inline unsigned short F16OfFloat(float x) { return qwen_asr::ToF16(x); }

}  // namespace qwen_asr_gpu

#endif
