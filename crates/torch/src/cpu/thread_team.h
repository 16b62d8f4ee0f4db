// Threads that run the steps of one operation together: woken once, with a barrier between steps.

#pragma once

#include "torch_op.h"

#include <atomic>
#include <omp.h>
#include <sched.h>
#include <utility>

namespace vlm_r1 {

class Barrier {
 public:
  void wait(int threads) {
    const int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    // Steps take microseconds; a longer wait means that a thread was descheduled.
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < SPINS) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int SPINS = 4000;

  static void pause() {
#ifdef VLM_R1_X86
    __builtin_ia32_pause();
#endif
  }

  std::atomic<int> arrived_{0};
  std::atomic<int> phase_{0};
};

// One thread of the team. Every thread makes every call.
class Team {
 public:
  Team(Barrier &barrier, int thread, int threads) : barrier_(barrier), thread_(thread), threads_(threads) {}

  int thread() const { return thread_; }

  void wait() {
    if (threads_ > 1) barrier_.wait(threads_);
  }

  // This thread's part of 0 .. n.
  std::pair<int64_t, int64_t> share(int64_t n) const { return {n * thread_ / threads_, n * (thread_ + 1) / threads_}; }

  // Arranges x for packed layers; returns when all threads are done.
  template <typename T>
  void arrange(const T *x, int64_t rows, int64_t in, float *arranged) {
    const auto [from, to] = share(even(in) / 2);
    typed<T>().arrange(x, rows, in, from, to, arranged);
    wait();
  }

  // `n` layers over the same input.
  template <typename T>
  void linears(const PackedLinear<T> *layers, size_t n, const float *arranged, int64_t rows) {
    int64_t all = 0;
    for (size_t i = 0; i < n; ++i) all += panels(layers[i].out);
    const auto [a, b] = share(all);
    int64_t start = 0;
    for (size_t i = 0; i < n; ++i) {
      const int64_t end = start + panels(layers[i].out);
      const int64_t first = std::max(a, start), last = std::min(b, end);
      if (first < last) typed<T>().packed_linear(layers[i], arranged, rows, first - start, last - start);
      start = end;
    }
  }

 private:
  Barrier &barrier_;
  int thread_, threads_;
};

// Fewer products than this run on one thread.
constexpr int64_t TEAM_WORK = 1 << 20;

// Runs `steps(team)` on all threads, or on this one for little work. `steps` must not throw.
template <typename F>
void together(int64_t products, F &&steps) {
  Barrier barrier;
  const int threads = products < TEAM_WORK || at::in_parallel_region() ? 1 : at::get_num_threads();
  if (threads == 1) {
    Team alone(barrier, 0, 1);
    steps(alone);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    Team team(barrier, omp_get_thread_num(), omp_get_num_threads());
    steps(team);
  }
}

}  // namespace vlm_r1
