// Work shared by XLA's own threads: phases one after another, each cut into pieces that are taken, not handed out.
//
// The thread that calls a kernel works itself and needs nobody else: helpers that the pool starts late find less to do, or
// nothing, and one that is interrupted holds up no more than the piece it has in hand.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_TEAM_H_
#define QWEN_ASR_JAX_KERNELS_CPU_TEAM_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qwen_asr {

inline void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kMaxThreads = 256;

// One phase: `pieces` calls of `work(piece)`, each exactly once, on any thread.
//
// Every thread has a stretch of its own, which it takes from the front, so that it reads memory in one stream; one that has
// finished goes on with what is left of the others' stretches.
class Phase {
 public:
  void Init(int64_t pieces, int threads) {
    threads_ = threads;
    pieces_ = pieces;
    next_ = std::make_unique<Counter[]>(threads);
    for (int t = 0; t < threads; ++t) next_[t].value.store(Begin(t), std::memory_order_relaxed);
  }

  template <typename Work>
  void Run(int thread, const Work& work) {
    for (int i = 0; i < threads_; ++i) {
      const int owner = (thread + i) % threads_;
      const int64_t end = Begin(owner + 1);
      while (next_[owner].value.load(std::memory_order_relaxed) < end) {
        const int64_t piece = next_[owner].value.fetch_add(1, std::memory_order_relaxed);
        if (piece >= end) break;
        work(piece);
        done_.value.fetch_add(1, std::memory_order_release);
      }
    }
  }

  // Waits until all pieces are done, on whatever thread.
  void Wait() const {
    int spins = 0;
    while (done_.value.load(std::memory_order_acquire) < pieces_) {
      if (spins < 4096) {
        ++spins;
        Pause();
      } else {
        std::this_thread::yield();  // whoever has the last piece may be waiting for this core
      }
    }
  }

 private:
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };

  int64_t Begin(int thread) const { return pieces_ * thread / threads_; }

  int threads_ = 1;
  int64_t pieces_ = 0;
  std::unique_ptr<Counter[]> next_;
  Counter done_;
};

// One thread's way through phases: works on each of them, and waits until all threads are done with it.
class PhaseWalk {
 public:
  PhaseWalk(Phase* first, int thread) : next_(first), thread_(thread) {}

  template <typename Work>
  void operator()(const Work& work) {
    next_->Run(thread_, work);
    (next_++)->Wait();
  }

 private:
  Phase* next_;
  int thread_;
};

// Other threads that may help.
class Pool {
 public:
  virtual ~Pool() = default;
  virtual int Threads() const = 0;
  // Runs `task(data)` on another thread, now or later.
  virtual void Start(void (*task)(void*), void* data) = 0;
};

inline int ThreadsOf(const Pool& pool) { return std::clamp(pool.Threads(), 1, kMaxThreads); }

// Runs `job->Work(thread)` on the calling thread and on those that the pool lends. The job lives until the last of them is
// done with it; one that comes after the work is finished finds nothing to do.
//
// Nothing may be thrown from here on: others would wait for the piece that it was thrown from, and read buffers that the caller
// has freed. What a job allocates before, in its constructor, may fail.
template <typename Job>
void RunOnTeam(std::shared_ptr<Job> job, Pool& pool, int threads) noexcept {
  struct Late {
    std::shared_ptr<Job> job;
    int thread;
  };
  for (int t = 1; t < threads; ++t) {
    pool.Start(
        [](void* data) noexcept {
          std::unique_ptr<Late> late(static_cast<Late*>(data));
          late->job->Work(late->thread);
        },
        new Late{job, t});
  }
  job->Work(0);
}

}  // namespace qwen_asr

#endif
