// What products of matrices share, whatever multiplies: sides, packed groups, the memory that they lie in.
//
// out = left @ right; axes: i rows, j columns, k what is summed over. Both sides are packed first, in groups of 32 rows (of
// `right`, of 32 columns), so that all that is read again and again lies one after the other, and rows, columns and numbers
// that are missing are zeros. What packs and multiplies is a policy: `TileProducts` or `VectorProducts`, which have
//
//   Number, Session                 of what is packed; what a thread holds while it multiplies
//   kRows                           parts of threads are multiples of so many rows
//   kTurns                          parts that a thread takes one after the other, where there are rows enough
//   kMostRows, kLongest             rows of the left side, and numbers along k, that are best packed at once
//   kBlockRows                      rows that best meet all columns of a block of the right side before the next rows do;
//                                   more are not multiplied at once
//   kSpareRows                      rows that room is wanted for behind those that are packed at once
//   left_size, right_size           numbers that a packed group takes, by its length along k
//   pack_left, pack_right           pack lines of the left side, and a group of the right one
//   set                             puts kStep numbers into a row of a packed group of the left side
//   set_right                       puts two numbers of each column into a packed group of the right side
//   set_both                        puts two rows into both: one after the other into the left side, in pairs into the right
//   multiply_rows                   multiplies packed rows with a packed group of columns; `turned` is 0, or, if rows of the
//                                   left side did not have their numbers side by side, how many were packed as a block
//   multiply_rows_beside            likewise, for where there is much to do with the sums
//   kAnyRows                        whether these take any number of rows
//   kIsCut                          whether numbers come apart as they are packed
//   kTurnedRows                     rows of a block, of a packed group whose numbers did not lie side by side

#pragma once

#include <algorithm>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "rows.h"
#include "shared_parts.h"
#include "words.h"

namespace scalablevit {

constexpr int kGroup = 32;  // rows or columns of a group

// Memory that a thread keeps, as new memory is slow.
struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;

  template <typename T>
  T* take(int64_t count) {
    constexpr size_t page = 1 << 21;  // a large page, where there are such
    const size_t wanted = ((size_t)count * sizeof(T) + page - 1) / page * page;
    if (wanted > bytes) {
      std::free(memory);
      memory = std::aligned_alloc(page, wanted);
      bytes = memory ? wanted : 0;
      if (!memory) std::abort();
#if defined(__linux__)
      madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    }
    return (T*)memory;
  }
  ~Scratch() { std::free(memory); }
};

// A part of `count`, from `start` on, of no more than `most`.
inline int at_most(int64_t most, int64_t count, int64_t start) { return (int)std::min(most, count - start); }

constexpr int64_t groups_of(int64_t count) { return (count + kGroup - 1) / kGroup; }
constexpr int64_t steps_of(int64_t length) { return (length + kStep - 1) / kStep; }

// `for_each_vector` for the columns of a group, nearly always kGroup: then nothing is asked in the loop.
template <typename Body>
inline void for_each_column(int columns, Body body) {
  if (columns == kGroup)
    for_each_vector(kGroup, body);
  else
    for_each_vector(columns, body);
}

// One side of a product: lines (rows of `left`, columns of `right`) of `length` numbers. Either the numbers of a line lie
// side by side (number_stride 1), or the lines do.
template <typename T>
struct Side {
  const T* data;
  int64_t line_stride, number_stride;

  const T* at(int64_t line, int64_t number) const { return data + line * line_stride + number * number_stride; }
};

// Asks for so many bytes, which are read soon: meanwhile they come from memory to the second cache. They need not exist.
inline void fetch(const void* from, int bytes) {
  constexpr int line = 64;
  for (int i = 0; i < bytes; i += line) __builtin_prefetch((const char*)from + i, 0, 2);
}

// Likewise, into the first cache, for what is written soon.
inline void fetch_to_write(const void* to, int bytes) {
  constexpr int line = 64;
  for (int i = 0; i < bytes; i += line) __builtin_prefetch((const char*)to + i, 1, 3);
}

// kGroup numbers of each of some rows, `stride` numbers apart.
template <typename T>
inline void fetch_rows(const T* from, int64_t stride, int rows) {
  for (int i = 0; i < rows; ++i) fetch(from + i * stride, kGroup * sizeof(T));
}

template <typename T>
inline void fetch_rows_to_write(const T* to, int64_t stride, int rows) {
  for (int i = 0; i < rows; ++i) fetch_to_write(to + i * stride, kGroup * sizeof(T));
}

inline int64_t divided_up(int64_t count, int64_t by) { return (count + by - 1) / by; }

// How rows are divided: into parts, as many for each thread (`shared_parts.h`), and those into blocks, of about one size.
struct Division {
  int64_t part;
  int block;
};

// Parts have no more than `most` rows, if that is a multiple of kRows.
template <typename Products>
inline Division divide(int64_t rows, int threads, int64_t most) {
  constexpr int64_t unit = Products::kRows;
  constexpr int64_t fewest = 6 * Products::kBlockRows;  // that are worth a part of their own, for which all weights are read
  const int64_t turns = std::clamp<int64_t>(rows / (threads * fewest), 1, Products::kTurns);
  const int64_t share = divided_up(rows, threads * turns);
  const int64_t some = divided_up(share, std::max<int64_t>(1, divided_up(share, most)));
  const int64_t part = std::max(unit, divided_up(some, unit) * unit);
  return {part, unit > 1 ? (int)Products::kBlockRows : (int)divided_up(part, divided_up(part, Products::kBlockRows))};
}

// Asks for what is written and read behind the products of a block of rows, where that is a few rows: of tiles it would push
// out of the first cache what is multiplied.
template <typename Products, typename T>
inline void ask_for_rows(const T* to, const T* kept, int64_t stride, int rows) {
  if constexpr (!Products::kAnyRows) {
    fetch_rows_to_write(to, stride, rows);
    if (kept) fetch_rows(kept, stride, rows);
  }
}

struct AskForNothing {
  void operator()(int64_t, int) const {}
};

// `multiply_rows` for any number of packed rows, or `multiply_rows_beside`; groups of `turned` ones were packed in blocks of
// kTurnedRows. Rows that are finished one after the other begin with an even one. Where they are multiplied block by block,
// `ask(row, rows)` is called before each, to fetch what `finish` reads and writes.
template <typename Products, bool kBeside, typename Number, typename Finish, typename Ask = AskForNothing>
inline void multiply_many_rows(const Number* left, int64_t size, int64_t rows, const Number* right, int columns,
                               int64_t length, Finish finish, bool turned = false, Ask ask = {}) {
  if constexpr (Products::kAnyRows && kBeside) {
    Products::multiply_rows_beside(left, size, (int)rows, right, columns, length, finish);
  } else if constexpr (Products::kAnyRows) {
    Products::multiply_rows(left, size, (int)rows, right, columns, length, finish);
  } else {
    const int64_t block = turned ? Products::kTurnedRows : Products::kBlockRows / 2 * 2;
    for (int64_t i = 0; i < rows; i += block) {
      const int some = at_most(block, rows, i);
      ask(i, some);
      Products::multiply_rows(
          left + i * (size / kGroup), size, some, right, columns, length,
          [&](int64_t row, const float* sums) { finish(i + row, sums); }, turned ? (int)block : 0);
    }
  }
}

// Calls `body(row, rows, group)` for each block of rows and each packed group of the right side, as so many numbers as stay in
// the second cache allow.
template <typename Products, typename Body>
inline void for_each_block(int64_t rows, int block_rows, int64_t groups, int64_t group_size, Body body) {
  constexpr int64_t kept = (int64_t)1 << 19;  // bytes
  const int64_t at_once = std::max<int64_t>(1, kept / (group_size * (int64_t)sizeof(typename Products::Number)));
  for (int64_t block = 0; block < groups; block += at_once)
    for (int64_t row = 0; row < rows; row += block_rows)
      for (int64_t g = block; g < std::min(block + at_once, groups); ++g)
        body(row, at_most(block_rows, rows, row), g);
}

}  // namespace scalablevit
