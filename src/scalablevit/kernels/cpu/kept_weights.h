// Weights that stay packed from call to call, where they were said not to change.

#pragma once

#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "packing.h"

namespace scalablevit {

// What one weight is packed as, by each policy that it was wanted for. Threads may ask at once.
class KeptWeight {
 public:
  // A weight of (lines, length) as a right side: from the last time, unless some of a few numbers have changed since.
  template <typename Products, typename W>
  const typename Products::Number* packed(const W* weight, int64_t lines, int64_t length, int threads) {
    using Number = typename Products::Number;
    const int64_t groups = groups_of(lines), size = Products::right_size(length);
    const std::lock_guard<std::mutex> lock(mutex_);
    Form& form = form_of(&kName<Products, W>, lines, length, groups * size * sizeof(Number));
    Number* to = (Number*)form.memory.get();
    if (!sample(weight, lines, length, form.samples)) return to;
    // In place, although another call may still read it: who changes weights meanwhile gets a mixture in any case.
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t g = 0; g < groups; ++g)
      Products::pack_right(Side<W>{weight, length, 1}, g * kGroup, at_most(kGroup, lines, g * kGroup), 0, length,
                           to + g * size);
    return to;
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Form {
    const char* name;
    int64_t lines, length;
    std::unique_ptr<void, Free> memory;
    std::vector<char> samples;
  };

  // Whose address names a form.
  template <typename Products, typename W>
  static constexpr char kName = 0;

  Form& form_of(const char* name, int64_t lines, int64_t length, int64_t bytes) {
    for (Form& form : forms_)
      if (form.name == name && form.lines == lines && form.length == length) return form;
    constexpr int64_t line = 64;  // of a cache
    void* memory = std::aligned_alloc(line, std::max(divided_up(bytes, line), (int64_t)1) * line);
    if (!memory) std::abort();
    return forms_.emplace_back(Form{name, lines, length, std::unique_ptr<void, Free>(memory), {}});
  }

  // Reads a few numbers, side by side, of four lines, in each further along, and says whether any is not what it was. What
  // changes weights as a whole, such as a step of training, changes these. No more of them: where memory is virtual twice, the
  // way to a page that was not used for a while can take microseconds (docs/log.md).
  template <typename W>
  static bool sample(const W* weight, int64_t lines, int64_t length, std::vector<char>& samples) {
    constexpr int64_t places = 4, most_numbers = 64 / sizeof(W);  // a line of a cache
    const int64_t numbers = std::min(length, most_numbers);
    const size_t bytes = numbers * sizeof(W);
    bool differs = samples.size() != places * bytes;
    samples.resize(places * bytes);
    for (int64_t i = 0; i < places; ++i) {
      const int64_t line = (2 * i + 1) * lines / (2 * places);
      const int64_t number = i * (length - numbers) / (places - 1) / most_numbers * most_numbers;
      const W* found = weight + line * length + number;
      char* before = &samples[i * bytes];
      if (std::memcmp(before, found, bytes) != 0) differs = true, std::memcpy(before, found, bytes);
    }
    return differs;
  }

  std::mutex mutex_;
  std::list<Form> forms_;  // which stay where they are
};

// A weight of a layer, (columns, width) of some type, and what keeps it packed, or null.
struct LayerWeight {
  const void* data;
  KeptWeight* kept;

  // Null where it is to be packed at each call.
  template <typename Products, typename W>
  const typename Products::Number* packed(int64_t lines, int64_t length, int threads) const {
    return kept ? kept->packed<Products>((const W*)data, lines, length, threads) : nullptr;
  }
};

}  // namespace scalablevit
