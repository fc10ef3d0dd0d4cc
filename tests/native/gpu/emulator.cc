#include "emulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "fiber.h"
#include "testing.h"

namespace emulator {

namespace {

constexpr int kThreads = qwen_asr_gpu::kThreads, kLanes = qwen_asr_gpu::kLanes, kWarps = kThreads / kLanes;
constexpr int kResident = 3;  // blocks that run together
constexpr int kEarly = 2;     // blocks that start before the grid before them

[[noreturn]] void Broken(const char* what) {
  std::printf("FAILED emulated kernel: %s\n", what);
  std::fflush(stdout);
  std::_Exit(1);
}

enum class State { kReady, kBarrier, kExchange, kGrid, kDone };

struct Block;

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  int index = 0;
  State state = State::kReady;
};

struct Warp {
  uint32_t in[kLanes], out[kLanes];
  int arrived = 0;
};

struct FreeAligned {
  void operator()(unsigned char* p) const { ::operator delete[](p, std::align_val_t(16)); }
};

struct Block {
  int index = -1;  // -1: none
  int alive = 0, at_barrier = 0;
  Thread threads[kThreads];
  Warp warps[kWarps];
  std::unique_ptr<unsigned char[], FreeAligned> shared;
};

Thread* running = nullptr;
Fiber scheduler;

// Blocks of earlier grids, whose stacks are used again.
std::vector<std::unique_ptr<Block>>& Unused() {
  static std::vector<std::unique_ptr<Block>> all;
  return all;
}

}  // namespace

class Grid::Run {
 public:
  Run(Kernel kernel, int blocks, int shared_bytes, const void* arguments, size_t argument_bytes, uint64_t seed)
      : kernel_(kernel), shared_bytes_(shared_bytes), random_(seed), order_(blocks) {
    arguments_.resize((argument_bytes + 15) / 16);
    std::memcpy(arguments_.data(), arguments, argument_bytes);
    for (int i = 0; i < blocks; ++i) order_[i] = i;
    for (int i = blocks; i > 1; --i) std::swap(order_[i - 1], order_[random_.Below(i)]);
  }

  ~Run() {
    for (auto& block : resident_) Unused().push_back(std::move(block));
  }

  void StartEarly() {
    waits_ = true;
    Go(kEarly);
  }

  void Finish() {
    waits_ = false;
    for (auto& block : resident_) {
      if (block->index < 0) continue;
      for (Thread& t : block->threads) {
        if (t.state == State::kGrid) Wake(t);
      }
    }
    Go(static_cast<int>(order_.size()));
    for (auto& block : resident_) {
      if (block->index >= 0) Broken("threads wait for others that never come");
    }
  }

  bool waits() const { return waits_; }
  unsigned blocks() const { return static_cast<unsigned>(order_.size()); }
  void Call() const { kernel_(arguments_.data()); }

  void Wake(Thread& t) {
    t.state = State::kReady;
    ready_.push_back(&t);
  }

  // The running fiber stops here until somebody wakes it.
  void Stop(State state) {
    Thread* own = running;
    own->state = state;
    Fiber::Switch(own->fiber, scheduler);
  }

  void Ended(Thread& t) {
    Block& block = *t.block;
    t.state = State::kDone;
    if (--block.alive == 0) {
      block.index = -1;
    } else {
      OpenBarrier(block);
    }
  }

  void OpenBarrier(Block& block) {
    if (block.at_barrier == 0 || block.at_barrier < block.alive) return;
    block.at_barrier = 0;
    for (Thread& t : block.threads) {
      if (t.state == State::kBarrier) Wake(t);
    }
  }

 private:
  // Runs until nobody can; starts blocks while fewer than `started` have been.
  void Go(int started) {
    const auto start = [&] {
      while (next_ < started && next_ < static_cast<int>(order_.size())) {
        Block* free = nullptr;
        for (auto& each : resident_) {
          if (each->index < 0) free = each.get();
        }
        if (free == nullptr && resident_.size() < kResident) {
          if (Unused().empty()) Unused().push_back(std::make_unique<Block>());
          resident_.push_back(std::move(Unused().back()));
          Unused().pop_back();
          free = resident_.back().get();
        }
        if (free == nullptr) return;
        Start(*free, order_[next_++]);
      }
    };
    start();
    while (!ready_.empty()) {
      std::swap(ready_[random_.Below(static_cast<int64_t>(ready_.size()))], ready_.back());
      running = ready_.back();
      ready_.pop_back();
      Fiber::Switch(scheduler, running->fiber);
      if (running->state == State::kDone) {
        Ended(*running);
        start();
      }
    }
  }

  void Start(Block& block, int index) {
    block.index = index;
    block.alive = kThreads;
    block.at_barrier = 0;
    const size_t bytes = std::max(shared_bytes_, 1);
    block.shared.reset(static_cast<unsigned char*>(::operator new[](bytes, std::align_val_t(16))));
    std::memset(block.shared.get(), 0xff, bytes);
    for (Warp& warp : block.warps) warp.arrived = 0;
    for (int i = 0; i < kThreads; ++i) {
      Thread& t = block.threads[i];
      t.block = &block;
      t.index = i;
      t.fiber.Start(Main, this);
      Wake(t);
    }
  }

  static void Main(void* run) {
    static_cast<Run*>(run)->Call();
    running->state = State::kDone;
    Fiber::Leave(running->fiber, scheduler);
  }

  Kernel kernel_;
  int shared_bytes_;
  native::Random random_;
  std::vector<int> order_;
  struct alignas(16) Sixteen {
    unsigned char bytes[16];
  };
  std::vector<Sixteen> arguments_;
  std::vector<std::unique_ptr<Block>> resident_;
  std::vector<Thread*> ready_;
  int next_ = 0;
  bool waits_ = false;

  friend class Grid;
};

namespace {

Grid::Run* run = nullptr;

}  // namespace

Grid::Grid(Kernel kernel, int blocks, int shared_bytes, const void* arguments, size_t argument_bytes, uint64_t seed)
    : run_(std::make_unique<Run>(kernel, blocks, shared_bytes, arguments, argument_bytes, seed)) {}
Grid::~Grid() = default;

void Grid::StartEarly() {
  run = run_.get();
  run_->StartEarly();
}

void Grid::Finish() {
  run = run_.get();
  run_->Finish();
}

Index ThreadIndex() { return {static_cast<unsigned>(running->index)}; }
Index BlockIndex() { return {static_cast<unsigned>(running->block->index)}; }
Index GridSize() { return {run->blocks()}; }
unsigned char* SharedMemory() { return running->block->shared.get(); }

void Barrier() {
  Block& block = *running->block;
  Thread* own = running;
  ++block.at_barrier;
  own->state = State::kBarrier;
  run->OpenBarrier(block);
  Fiber::Switch(own->fiber, scheduler);  // woken already, if this was the last one
}

uint32_t Exchange(uint32_t bits, int from, uint32_t mask) {
  if (mask != 0xffffffffu) Broken("an exchange of some lanes only");
  if (from < 0 || from >= kLanes) Broken("an exchange with no lane");
  Thread* own = running;
  Warp& warp = own->block->warps[own->index / kLanes];
  warp.in[own->index % kLanes] = bits;
  own->state = State::kExchange;
  if (++warp.arrived == kLanes) {
    warp.arrived = 0;
    std::memcpy(warp.out, warp.in, sizeof warp.in);
    Thread* lanes = own->block->threads + own->index / kLanes * kLanes;
    for (int i = 0; i < kLanes; ++i) {
      if (lanes[i].state != State::kExchange) Broken("lanes of a warp wait at different places");
      run->Wake(lanes[i]);
    }
  }
  Fiber::Switch(own->fiber, scheduler);
  return warp.out[from];
}

void WaitForGridBefore() {
  if (run->waits()) run->Stop(State::kGrid);
}

void Yield() {
  run->Wake(*running);
  Fiber::Switch(running->fiber, scheduler);
}

}  // namespace emulator
