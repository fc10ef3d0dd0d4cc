// Blocks of memory that are kept between calls.

#include <cstdint>
#include <cstring>
#include <new>
#include <set>
#include <thread>
#include <vector>

#include "scratch.h"
#include "testing.h"

namespace native {

namespace {

using qwen_asr::GiveBackScratch;
using qwen_asr::TakeScratch;

void CheckAlignment() {
  for (size_t bytes : {0, 1, 63, 64, 65, 4096, 100003}) {
    void* block = TakeScratch(bytes);
    if (reinterpret_cast<uintptr_t>(block) % 64 != 0) Fail(Join(bytes, " bytes are not on a boundary of 64"));
    std::memset(block, 0x5a, bytes);
    GiveBackScratch(block);
  }
  GiveBackScratch(nullptr);
}

void CheckReuse() {
  void* first = TakeScratch(1000003);
  GiveBackScratch(first);
  void* second = TakeScratch(1000003);
  if (second != first) Fail("a block that was given back is not taken again");
  void* third = TakeScratch(1000003);
  if (third == second) Fail("a block was taken twice");
  GiveBackScratch(third);
  GiveBackScratch(second);
  void* small = TakeScratch(1000);
  if (small == first || small == third) Fail("a small array took a large block");
  GiveBackScratch(small);
}

// More than is kept goes back to the system, and what is taken is never anybody else's.
void CheckMany(int count, size_t bytes) {
  std::vector<void*> blocks;
  for (int i = 0; i < count; ++i) blocks.push_back(TakeScratch(bytes + i));
  if (std::set<void*>(blocks.begin(), blocks.end()).size() != blocks.size()) Fail("a block was taken twice");
  for (void* each : blocks) GiveBackScratch(each);
}

void CheckBuffer() {
  qwen_asr::Buffer<double> buffer;
  if (!buffer.empty() || buffer.data() != nullptr) Fail("a new buffer is not empty");
  buffer.Reset(100);
  double* at = buffer.data();
  buffer.Reset(50);
  if (buffer.data() != at) Fail("a buffer moved that was large enough");
  buffer.Reset(5000);
  for (int64_t i = 0; i < 5000; ++i) buffer[i] = static_cast<double>(i);
  if (buffer[4999] != 4999.0) Fail("a buffer lost a value");
}

[[maybe_unused]] void CheckTooMuch() {
  void* block = nullptr;
  try {
    block = TakeScratch(size_t{1} << 60);
  } catch (const std::bad_alloc&) {
    return;
  }
  Fail(Join("there is no such memory, but a block at ", block));
}

void CheckThreads(int threads, int rounds) {
  std::vector<std::thread> all;
  std::vector<int> wrong(threads);
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([&wrong, t, rounds] {
      Random random(static_cast<uint64_t>(t));
      for (int round = 0; round < rounds; ++round) {
        qwen_asr::Buffer<int32_t> a(1 + random.Below(3000)), b(1 + random.Below(300));
        const int32_t mine = t * rounds + round;
        a[0] = mine;
        b[0] = -mine;
        std::this_thread::yield();
        wrong[t] += a[0] != mine || b[0] != -mine;
      }
    });
  }
  for (std::thread& each : all) each.join();
  for (int each : wrong) {
    if (each != 0) Fail("another thread wrote into a block");
  }
}

}  // namespace

void AddScratchCases(Cases& cases, bool quick) {
  cases.Add("scratch, alignment", CheckAlignment);
  cases.Add("scratch, reuse", CheckReuse);
  cases.Add("scratch, buffer", CheckBuffer);
  cases.Add("scratch, many small blocks", [] { CheckMany(400, 100); });
  cases.Add("scratch, many large blocks", [] { CheckMany(9, size_t{9} << 20); });
#if !defined(QWEN_SANITIZED)  // under which such a request ends the program
  cases.Add("scratch, too much", CheckTooMuch);
#endif
  cases.Add("scratch, threads, pools", [=] { CheckThreads(8, quick ? 300 : 3000); });
}

}  // namespace native
