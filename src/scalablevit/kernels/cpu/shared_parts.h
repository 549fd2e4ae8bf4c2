// How threads share the parts of a map.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace scalablevit {

inline int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Parts, of which each thread has a run of its own: in each pass over a map the same, so that it finds in its caches what it
// left there. Who is done takes what others have left, as not all are as fast: others may use their cores, and some cores are
// slower. Made outside of a parallel region, for one pass; at its end nobody waits.
class SharedParts {
 public:
  SharedParts(int64_t parts, int threads) : queues_(std::clamp(threads, 1, kMost)) {
    for (int i = 0; i < queues_; ++i) {
      queue_[i].next.store(parts * i / queues_, std::memory_order_relaxed);
      queue_[i].end = parts * (i + 1) / queues_;
    }
  }

  // Calls `body(part)` for each part that falls to this thread.
  template <typename Body>
  void for_each(Body body) {
    const int first = thread_number() % queues_;
    for (int i = 0; i < queues_; ++i) {
      Queue& queue = queue_[(first + i) % queues_];
      for (;;) {
        const int64_t part = queue.next.fetch_add(1, std::memory_order_relaxed);
        if (part >= queue.end) break;
        body(part);
      }
    }
  }

 private:
  static constexpr int kMost = 64;
  struct alignas(64) Queue {
    std::atomic<int64_t> next;
    int64_t end;
  };
  Queue queue_[kMost];
  int queues_;
};

}  // namespace scalablevit
