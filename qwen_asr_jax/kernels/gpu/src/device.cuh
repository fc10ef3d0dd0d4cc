// What the kernels ask of a device beyond plain C++: loads that bypass caches, conversions, the order of kernels.
//
// Where QWEN_EMULATED is defined, tests run the same kernels on a CPU and bring their own versions of all this.

#ifndef QWEN_ASR_JAX_KERNELS_GPU_DEVICE_CUH_
#define QWEN_ASR_JAX_KERNELS_GPU_DEVICE_CUH_

#include "geometry.h"

#if defined(QWEN_EMULATED)

#include "emulator.h"

#else

#define QWEN_DEVICE __device__ __forceinline__
// `blocks`: of this kernel, how many shall fit on a multiprocessor, which bounds its registers.
#define QWEN_KERNEL(name, Args, blocks) extern "C" __global__ void __launch_bounds__(kThreads, blocks) name(const Args a)
#define QWEN_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace qwen_asr_gpu {

// 16 bytes of weights. Each is read once per token, so they shall not displace anything in the first cache. Volatile, so that
// the compiler leaves them where they stand: in front of the wait for the kernel before.
QWEN_DEVICE uint4 LoadStream(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// 16 bytes of a cache, which other kernels write.
QWEN_DEVICE uint4 LoadCached(const void* from) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

QWEN_DEVICE void PrefetchLine(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// With programmatic dependent launch a kernel may start while the one before it still runs. It waits here until that one has
// ended and what it wrote can be read; in front of this only weights and what was there before the call may be read, and
// nothing written.
QWEN_DEVICE void WaitForKernelBefore() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// From now on the kernel behind may start, as far as it finds room.
QWEN_DEVICE void LetKernelBehindStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" :::);
#endif
}

// exp, wrong by 2^-22 and |x| 2^-24: what rounding a score of that size does to it anyway.
QWEN_DEVICE float FastExp(float x) { return __expf(x); }

QWEN_DEVICE float FloatOfF16(unsigned bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<unsigned short>(bits)));
  return x;
}

QWEN_DEVICE unsigned short F16OfFloat(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

}  // namespace qwen_asr_gpu

#endif

namespace qwen_asr_gpu {

constexpr unsigned kAllLanes = 0xffffffffu;

QWEN_DEVICE int Lane() { return static_cast<int>(threadIdx.x % static_cast<unsigned>(kLanes)); }
QWEN_DEVICE int Warp() { return static_cast<int>(threadIdx.x / static_cast<unsigned>(kLanes)); }
QWEN_DEVICE int Thread() { return static_cast<int>(threadIdx.x); }
QWEN_DEVICE int Block() { return static_cast<int>(blockIdx.x); }
QWEN_DEVICE int Blocks() { return static_cast<int>(gridDim.x); }

// Half of the values of each lane go to the lane `kMask` away, and the other half of that lane's come back.
template <int kHalf, int kMask, int kCount>
QWEN_DEVICE void SumHalves(float (&values)[kCount]) {
  if constexpr (kHalf > 0) {
    const bool upper = (Lane() & kMask) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float kept = upper ? values[kHalf + i] : values[i];
      const float sent = upper ? values[i] : values[kHalf + i];
      values[i] = kept + __shfl_xor_sync(kAllLanes, sent, kMask);
    }
    SumHalves<kHalf / 2, kMask / 2>(values);
  }
}

// Sums each of kCount values, a power of two, over the warp. Lane l returns the sum of value l / (32 / kCount): at every step
// lanes keep one half of what they have left, which for 32 values takes 31 exchanges instead of 160.
template <int kCount>
QWEN_DEVICE float SumOverWarp(float (&values)[kCount]) {
  static_assert(kCount >= 1 && kCount <= kLanes && (kCount & (kCount - 1)) == 0, "a power of two up to the lanes");
  SumHalves<kCount / 2, kLanes / 2>(values);
  float sum = values[0];
#pragma unroll
  for (int mask = kLanes / kCount / 2; mask > 0; mask /= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
  return sum;
}

}  // namespace qwen_asr_gpu

#endif
