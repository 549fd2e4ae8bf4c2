// Products of matrices on vectors: a policy of `packing.h`, for processors without tiles.
//
// What is packed is words (`words.h`); where the processor does not multiply pairs of bfloat16 they become float32. Of the left
// side each row has its words side by side; rows are a little more apart, so that those at work do not share lines of the
// cache. Of the right side the 32 columns of each word lie side by side. So a word of a row is broadcast, and multiplied with
// those of the columns.

#pragma once

#include "packing.h"

namespace scalablevit {

// Rows by vectors of columns whose sums lie in registers, beside the vectors and a broadcast; how many times so many rows
// meet a packed group before the next group; and how many words of each are one turn of the loop. With 16 registers a turn of
// one word is 12 multiplications in 25 instructions: too many where another program takes half of what the core can start.
#if defined(__AVX512F__) && !defined(SCALABLEVIT_FOUR_LANES)
constexpr int kVectorRows = 14, kVectorsBeside = 2, kTimes = 1, kWordsOfTurn = 1;  // of 32 registers
#elif defined(__aarch64__)
constexpr int kVectorRows = 6, kVectorsBeside = 4, kTimes = 8, kWordsOfTurn = 1;  // of 32
#else
constexpr int kVectorRows = 6, kVectorsBeside = 2, kTimes = 8, kWordsOfTurn = 4;  // of 16
#endif

template <typename T>
struct VectorProducts {
  static constexpr int kNumbers = kNumbersOfWord<T>;
  static constexpr int64_t kRows = kTimes > 1 ? kVectorRows : 1, kMostRows = 252;
  static constexpr int64_t kBlockRows = kTimes * kVectorRows, kTurns = 4;
  static constexpr int64_t kLongest = 512, kSpareRows = kBlockRows;
  static constexpr bool kAnyRows = false, kIsCut = false;
  // Of which a group holds a whole number. Six at a time take 16 as 6, 6 and 4, but 8 as 6 and 2, of which these are slow.
  static constexpr int kTurnedRows = kVectorRows < 8 ? 16 : 8;
  static_assert(kGroup % kTurnedRows == 0 && kTurnedRows <= kBlockRows);
  using Number = float;
  struct Session {};

  static constexpr int64_t padded_words_of(int64_t length) { return steps_of(length) * kStep / kNumbers; }
  static constexpr int64_t left_size(int64_t length) { return kGroup * (padded_words_of(length) + kBetweenRows); }
  static constexpr int64_t right_size(int64_t length) { return kGroup * padded_words_of(length); }

  // Where lines lie side by side they stay so, in blocks of so many: all lines are read number by number, as they lie in
  // memory, and nothing is transposed.
  template <typename From>
  static void pack_left(Side<From> side, int64_t line, int lines, int64_t number, int64_t length, float* target,
                        int block = kBlockRows) {
    const int64_t stride = left_size(length) / kGroup;
    if (is_turned(side)) {
      for (int64_t word = 0; word < padded_words_of(length); ++word)
        for (int i = 0; i < lines; i += block)
          for (int j = 0; j < block; j += kLanes) {  // what is written beyond a block is written over, or to spare rows
            fetch_word(side, line + i + j, number, word + kAhead);
            store(target + i * stride + word * block + j,
                  word_of_lines(side, line + i + j, lines - i - j, number, length, word));
          }
    } else {
      for (int i = 0; i < lines; ++i)
        for (int64_t word = 0; word < padded_words_of(length); word += kLanes)
          store(target + i * stride + word,
                load_words(side.at(line + i, number + word * kNumbers), length - word * kNumbers, T()));
    }
  }

  // Squares of kLanes lines by kLanes words.
  template <typename From>
  static void pack_right(Side<From> side, int64_t line, int lines, int64_t number, int64_t length, float* target) {
    for (int64_t word = 0; word < padded_words_of(length); word += kLanes)
      for (int i = 0; i < kGroup; i += kLanes) {
        Vector square[kLanes] = {};
        if (is_turned(side)) {
          for (int j = 0; j < kLanes; ++j) {
            fetch_word(side, line + i + kGroup, number, word + j);  // of the next group
            square[j] = word_of_lines(side, line + i, lines - i, number, length, word + j);
          }
        } else {
          for (int j = 0; j < std::min(kLanes, lines - i); ++j) {
            const From* from = side.at(line + i + j, number + word * kNumbers);
            fetch(from + kGroup * side.line_stride, kLanes * kNumbers * sizeof(From));  // of the next group
            square[j] = load_words(from, length - word * kNumbers, T());
          }
          transpose(square);
        }
        for (int j = 0; j < kLanes; ++j) store(target + (word + j) * kGroup + i, square[j]);
      }
  }

  // `numbers` are kStep, at `step` of a row of packed groups of so many words.
  static void set(float* left, int64_t size, int64_t row, int64_t step, const Vector* numbers) {
    T* target = (T*)place(left, size, row, step);
    for (int v = 0; v < kStep / kLanes; ++v) store(target + v * kLanes, numbers[v]);
  }

  static void fetch_to_set(float* left, int64_t size, int64_t row, int64_t step) {
    fetch_to_write(place(left, size, row, step), kStep * sizeof(T));
  }

  // `first` and `second` are numbers `k`, which is even, and k + 1 of the columns of a packed group, (kGroup) each.
  static void set_right(float* right, int64_t k, const Vector* first, const Vector* second) {
    float* target = right + k / kNumbers * kGroup;
    for (int v = 0; v < kGroup / kLanes; ++v) {
      if constexpr (kNumbers == 1) {
        store(target + v * kLanes, first[v]);
        store(target + kGroup + v * kLanes, second[v]);
      } else {
        store(target + v * kLanes, pairs_nearest(first[v], second[v]));
      }
    }
  }

  // `set` for rows `row`, which is even, and row + 1, and `set_right` for the same numbers.
  static void set_both(float* left, int64_t size, int64_t row, int64_t step, float* right, const Vector* first,
                       const Vector* second) {
    set(left, size, row, step, first), set(left, size, row + 1, step, second);
    set_right(right, row, first, second);
  }

  // The products of `rows` packed rows, in groups of `size` words, with a packed group of `columns` columns.
  // `finish(row, sums)` is told the sums of each row, (kGroup), which are zeros beyond the columns. No more than kBlockRows,
  // of a block of `turned` rows if their numbers did not lie side by side.
  template <typename Finish>
  static void multiply_rows(const float* left, int64_t size, int rows, const float* right, int columns, int64_t length,
                            Finish finish, int turned = 0) {
    constexpr int kWide = kVectorsBeside * kLanes, kHalf = kVectorsBeside / 2;
    const int64_t words = words_of<T>(length), row = turned ? 1 : size / kGroup, word = turned ? turned : 1;
    alignas(64) float sums[kBlockRows * kGroup];
    if (columns <= kGroup - kHalf * kLanes || words == 0) std::memset(sums, 0, sizeof sums);
    // What all rows meet of the right side stays in the first cache.
    for (int64_t begin = 0; begin < words; begin += kRunningSum)
      for (int i = 0; i < rows; i += kVectorRows)
        for (int j = 0; j < columns; j += kWide) {
          const auto run = columns - j > kHalf * kLanes ? multiply<kVectorRows, kVectorsBeside> : multiply<kVectorRows, kHalf>;
          run({left + i * row + begin * word, row, word}, std::min(kVectorRows, rows - i), right + begin * kGroup + j,
              std::min(kRunningSum, words - begin), sums + i * kGroup + j, begin > 0);
        }
    for (int i = 0; i < rows; ++i) finish(i, sums + i * kGroup);
  }

  // The same where there is much to finish: vectors do one after the other.
  template <typename Finish>
  static void multiply_rows_beside(const float* left, int64_t size, int rows, const float* right, int columns, int64_t length,
                                   Finish finish) {
    multiply_rows(left, size, rows, right, columns, length, finish);
  }

 private:
  static float* place(float* left, int64_t size, int64_t row, int64_t step) {
    return left + row * (size / kGroup) + step * (kStep / kNumbers);
  }

  static constexpr int kBetweenRows = 16;      // words between rows
  static constexpr int kAhead = 16;            // words from those that are packed to those that are asked for
  static constexpr int64_t kRunningSum = 128;  // words: longer sums are sums of such, which round less

  template <typename From>
  static bool is_turned(Side<From> side) {
    return side.number_stride != 1;
  }

  // Asks for a word of each of kLanes lines, which lie side by side.
  template <typename From>
  static void fetch_word(Side<From> side, int64_t line, int64_t number, int64_t word) {
    for (int part = 0; part < kNumbers; ++part)
      fetch(side.at(line, number + word * kNumbers + part), kLanes * sizeof(From));
  }

  // A word of each of kLanes lines, which lie side by side.
  template <typename From>
  static Vector word_of_lines(Side<From> side, int64_t line, int lines, int64_t number, int64_t length, int64_t word) {
    Vector parts[kNumbers] = {};
    for (int part = 0; part < kNumbers; ++part) {
      const int64_t at = word * kNumbers + part;
      if (lines > 0 && at < length) parts[part] = load_some(side.at(line, number + at), lines);
    }
    if constexpr (kNumbers == 1)
      return parts[0];
    else
      return pairs_nearest(parts[0], parts[1]);
  }

  struct Matrix {
    const float* data;
    int64_t row, word;  // how far apart
  };

  // A function of its own, whose loop has registers for all that it needs: two pointers and one distance lead to the rows.
  template <int kCount, int kWidth>
  __attribute__((noinline)) static void multiply(Matrix left, int count, const float* right, int64_t words, float* out,
                                                 bool adds) {
    if constexpr (kCount > 1)
      if (count < kCount) return multiply<kCount - 1, kWidth>(left, count, right, words, out, adds);
    constexpr int kNear = kCount > 3 ? kCount / 2 : kCount;
    Vector sums[kCount][kWidth] = {};
    const float *near = left.data, *far = near + kNear * left.row;
#pragma GCC unroll kWordsOfTurn
    for (int64_t i = 0; i < words; ++i) {
      Vector columns[kWidth];
      for (int v = 0; v < kWidth; ++v) columns[v] = load(right + v * kLanes);
      for (int r = 0; r < kCount; ++r) {
        const float number = r < kNear ? near[r * left.row] : far[(r - kNear) * left.row];
        for (int v = 0; v < kWidth; ++v) sums[r][v] = multiply_add(sums[r][v], number, columns[v], T());
      }
      right += kGroup, near += left.word, far += left.word;
    }
    // Without loops, for which the sums would need a place in memory.
    if (adds) {
#pragma GCC unroll 16
      for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kWidth; ++v) sums[r][v] += load(out + r * kGroup + v * kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kWidth; ++v) store(out + r * kGroup + v * kLanes, sums[r][v]);
  }
};

}  // namespace scalablevit
