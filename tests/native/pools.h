// Pools of threads, with the manners that XLA's may have on a busy machine.

#ifndef QWEN_ASR_JAX_TESTS_NATIVE_POOLS_H_
#define QWEN_ASR_JAX_TESTS_NATIVE_POOLS_H_

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "team.h"

namespace native {

enum class Manners {
  kPrompt,
  kLate,   // each helper starts after a while, many when the work is done
  kNever,  // none starts before all work is done: the calling thread must be enough
  kAtOnce,  // every helper runs on the calling thread before it goes on: what XLA does when it cannot schedule
};

class TestPool final : public qwen_asr::Pool {
 public:
  TestPool(int threads, Manners manners) : threads_(threads), manners_(manners) {
    if (manners == Manners::kNever || manners == Manners::kAtOnce) return;
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { Serve(t); });
  }

  ~TestPool() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    for (const auto& [task, data] : waiting_) task(data);
  }

  int Threads() const override { return threads_; }

  void Start(void (*task)(void*), void* data) override {
    if (manners_ == Manners::kAtOnce) return task(data);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      waiting_.emplace_back(task, data);
    }
    changed_.notify_one();
  }

 private:
  void Serve(int thread) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (int served = 0;; ++served) {
      changed_.wait(lock, [this] { return closing_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      const auto [task, data] = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      if (manners_ == Manners::kLate) {
        std::this_thread::sleep_for(std::chrono::microseconds((served * 7 + thread * 13) % 5 * 20));
      }
      task(data);
      lock.lock();
    }
  }

  const int threads_;
  const Manners manners_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<void (*)(void*), void*>> waiting_;
  bool closing_ = false;
  std::vector<std::thread> workers_;
};

// Calls `run` with pools of 1 to 8 threads and all manners; `what` says which in a failure.
inline void ForPools(bool quick, const std::function<void(qwen_asr::Pool&, const std::string& what)>& run) {
  for (int threads : {1, 2, 3, 4, 5, 6, 7, 8}) {
    if (quick && threads > 1 && threads % 3 != 0) continue;
    TestPool prompt(threads, Manners::kPrompt), late(threads, Manners::kLate), never(threads, Manners::kNever);
    TestPool at_once(threads, Manners::kAtOnce);
    for (int repeat = 0; repeat < (quick ? 1 : 5); ++repeat) {
      run(prompt, std::to_string(threads) + " threads");
      run(late, std::to_string(threads) + " late threads");
      run(never, std::to_string(threads) + " absent threads");
      run(at_once, std::to_string(threads) + " threads at once");
    }
  }
}

}  // namespace native

#endif
