#include "scratch.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace qwen_asr {

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMostKeptBytes = size_t{64} << 20;
constexpr size_t kMostKeptBlocks = 256;

// In front of every block: how large it is.
struct alignas(kAlignment) Header {
  size_t bytes;
};

struct Kept {
  Kept() { blocks.reserve(kMostKeptBlocks); }  // giving back, in destructors, must not allocate
  std::mutex mutex;
  std::vector<Header*> blocks;
  size_t bytes = 0;
};

// Never destroyed: threads of the pool may still be in a kernel when the process ends.
Kept& KeptBlocks() {
  static Kept& kept = *new Kept;
  return kept;
}

}  // namespace

void* TakeScratch(size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  Kept& kept = KeptBlocks();
  {
    std::lock_guard<std::mutex> lock(kept.mutex);
    // The smallest that is large enough, but not one so large that another caller will miss it.
    size_t best = kept.blocks.size();
    for (size_t i = 0; i < kept.blocks.size(); ++i) {
      const size_t size = kept.blocks[i]->bytes;
      if (size < bytes || size > 4 * bytes + 4096) continue;
      if (best == kept.blocks.size() || size < kept.blocks[best]->bytes) best = i;
    }
    if (best < kept.blocks.size()) {
      Header* block = kept.blocks[best];
      kept.blocks[best] = kept.blocks.back();
      kept.blocks.pop_back();
      kept.bytes -= block->bytes;
      return block + 1;
    }
  }
  void* memory = std::aligned_alloc(kAlignment, sizeof(Header) + bytes);
  if (memory == nullptr) throw std::bad_alloc();
  auto* block = new (memory) Header{bytes};
  return block + 1;
}

void GiveBackScratch(void* data) {
  if (data == nullptr) return;
  Header* block = static_cast<Header*>(data) - 1;
  Kept& kept = KeptBlocks();
  {
    std::lock_guard<std::mutex> lock(kept.mutex);
    if (kept.bytes + block->bytes <= kMostKeptBytes && kept.blocks.size() < kMostKeptBlocks) {
      kept.blocks.push_back(block);
      kept.bytes += block->bytes;
      return;
    }
  }
  std::free(block);
}

}  // namespace qwen_asr
