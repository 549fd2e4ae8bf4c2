// Products of matrices on tiles, with what comes before and after them.
//
// out = left @ right; axes: i rows, j columns, k what is summed over. Both sides are packed first: groups of 32 rows (of
// `right`, of 32 columns), of each its steps of 32 numbers along k, of each step its parts, of each part two tiles. So
// that all that the tiles load lies one after the other, and rows, columns and numbers that are missing are zeros.
//
// Numbers of bfloat16 have one part. A number of float32 is cut into three of bfloat16, x = a + b + c, of 8 bits each:
// exactly, as its 24 bits are what the three hold, down to 1e-33, below which the last ones are lost. Of the nine products
// of two such numbers the six largest are computed; the others are below 2^-24 of the whole. Tiles add 32 products up
// before they add to a sum, so that fewer roundings come together than in sums one by one. What is infinite, or above
// 3.39e38, comes out as no number.

#pragma once

#include <algorithm>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "rows.h"
#include "tiles.h"

#if SCALABLEVIT_TILES

namespace scalablevit {

constexpr int kGroup = 2 * kTile;  // rows or columns of a group

template <typename T>
constexpr int kPartsOf = sizeof(T) == sizeof(float) ? 3 : 1;

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

inline int64_t groups_of(int64_t count) { return (count + kGroup - 1) / kGroup; }
inline int64_t steps_of(int64_t length) { return (length + kStep - 1) / kStep; }

// Numbers of bfloat16 that a packed group takes.
template <int kParts>
inline int64_t group_size(int64_t steps) {
  return steps * kParts * 2 * kTileSize;
}

// A row of a packed group, at its first step and part.
inline BFloat16* row_of_group(BFloat16* group, int64_t row) { return group + row / kTile * kTileSize + row % kTile * kStep; }

// `for_each_vector` for the columns of a group, nearly always kGroup: then nothing is asked in the loop.
template <typename Body>
inline void for_each_column(int columns, Body body) {
  if (columns == kGroup)
    for_each_vector(kGroup, body);
  else
    for_each_vector(columns, body);
}

// What is nearest to x in bfloat16.
inline Vector nearest(Vector x) {
  BFloat16 halves[kLanes];
  store(halves, x);
  return load(halves);
}

// kStep numbers, as so many parts, each a row of a tile; parts lie `apart`.
template <int kParts>
inline void cut(Vector* numbers, BFloat16* target, int64_t apart) {
  for (int part = 0; part < kParts; ++part)
    for (int v = 0; v < kStep / kLanes; ++v) {
      BFloat16* p = target + part * apart + v * kLanes;
      store(p, numbers[v]);
      if (part + 1 < kParts) numbers[v] -= load(p);
    }
}

// kTile pairs of numbers, of each its first and its second, as so many parts of a row of a tile of `right`.
template <int kParts>
inline void cut_pairs(Vector* first, Vector* second, BFloat16* target, int64_t apart) {
  for (int part = 0; part < kParts; ++part)
    for (int v = 0; v < kTile / kLanes; ++v) {
      const Vector low = nearest(first[v]), high = nearest(second[v]);
      typedef uint32_t Bits __attribute__((vector_size(kLanes * sizeof(uint32_t))));
      const Bits pairs = ((Bits)low >> 16) | (Bits)high;
      std::memcpy(target + part * apart + 2 * v * kLanes, &pairs, sizeof pairs);
      first[v] -= low, second[v] -= high;
    }
}

// `count` of up to kStep numbers, and zeros after them.
inline void copy_numbers(const BFloat16* from, int count, BFloat16* to) {
#if defined(__AVX512BW__)
  const __mmask32 wanted = count >= kStep ? ~0u : (1u << count) - 1;
  _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(wanted, from));
#else
  for (int i = 0; i < kStep; ++i) to[i] = i < count ? from[i] : BFloat16{0};
#endif
}

// A tile of pairs, turned: its rows become columns.
inline void turn(const BFloat16* from, BFloat16* to) {
  if constexpr (kLanes == kTile) {
    Vector rows[kLanes];
    for (int i = 0; i < kTile; ++i) std::memcpy(&rows[i], from + i * kStep, sizeof rows[i]);
    transpose(rows);
    for (int i = 0; i < kTile; ++i) std::memcpy(to + i * kStep, &rows[i], sizeof rows[i]);
  } else {
    for (int i = 0; i < kTile; ++i)
      for (int j = 0; j < kTile; ++j) std::memcpy(to + i * kStep + 2 * j, from + j * kStep + 2 * i, 2 * sizeof(BFloat16));
  }
}

// One side of a product: lines (rows of `left`, columns of `right`) of `length` numbers. Either the numbers of a line lie
// side by side (number_stride 1), or the lines do.
template <typename T>
struct Side {
  const T* data;
  int64_t line_stride, number_stride;

  const T* at(int64_t line, int64_t number) const { return data + line * line_stride + number * number_stride; }
};

// Numbers of up to kTile lines from `line` on, kStep of each from `number` on, as a tile for each part.
template <int kParts, bool kRight, typename T>
inline void pack_tile(Side<T> side, int64_t line, int lines, int64_t number, int numbers, BFloat16* target) {
  constexpr int64_t apart = 2 * kTileSize;
  alignas(64) BFloat16 unturned[kParts * kTileSize];
  const bool by_line = side.number_stride == 1;
  BFloat16* made = by_line == kRight ? unturned : target;
  const int64_t made_apart = by_line == kRight ? kTileSize : apart;
  if (by_line) {
    for (int i = 0; i < kTile; ++i) {
      const T* from = side.at(line + i, number);
      if constexpr (kParts == 1 && sizeof(T) == sizeof(BFloat16)) {
        copy_numbers(from, i < lines ? numbers : 0, made + i * kStep);
        continue;
      }
      Vector some[kStep / kLanes] = {};
      if (i < lines)
        for_each_column(numbers, [&](int j, int count) { some[j / kLanes] = load_some(from + j, count); });
      cut<kParts>(some, made + i * kStep, made_apart);
    }
  } else {
    for (int i = 0; i < kTile; ++i) {
      Vector first[kTile / kLanes] = {}, second[kTile / kLanes] = {};
      for (int v = 0; v * kLanes < lines; ++v) {
        if (2 * i < numbers) first[v] = load_some(side.at(line + v * kLanes, number + 2 * i), lines - v * kLanes);
        if (2 * i + 1 < numbers) second[v] = load_some(side.at(line + v * kLanes, number + 2 * i + 1), lines - v * kLanes);
      }
      cut_pairs<kParts>(first, second, made + i * kStep, made_apart);
    }
  }
  if (by_line == kRight)
    for (int part = 0; part < kParts; ++part) turn(unturned + part * kTileSize, target + part * apart);
}

// A group of up to kGroup lines from `line` on, `length` numbers of each from `number` on.
template <int kParts, bool kRight, typename T>
inline void pack_group(Side<T> side, int64_t line, int lines, int64_t number, int64_t length, BFloat16* target) {
  for (int64_t k = 0; k < length; k += kStep, target += kParts * 2 * kTileSize)
    for (int half = 0; half * kTile < lines; ++half)
      pack_tile<kParts, kRight>(side, line + half * kTile, std::min(kTile, lines - half * kTile), number + k,
                                (int)std::min<int64_t>(kStep, length - k), target + half * kTileSize);
}

// Two tiles of `left` (4, 5) times two of `right` (6, 7), added to four of sums (0 to 3), or fewer where a group is
// smaller.
template <bool kTwoRows, bool kTwoColumns>
struct Block {
  static void clear() {
    tile_zero(0);
    if (kTwoColumns) tile_zero(1);
    if (kTwoRows) tile_zero(2);
    if (kTwoRows && kTwoColumns) tile_zero(3);
  }
  static void load_left(const BFloat16* p) {
    tile_load(4, p);
    if (kTwoRows) tile_load(5, p + kTileSize);
  }
  static void load_right(const BFloat16* p) {
    tile_load(6, p);
    if (kTwoColumns) tile_load(7, p + kTileSize);
  }
  static void multiply() {
    tile_multiply(0, 4, 6);
    if (kTwoColumns) tile_multiply(1, 4, 7);
    if (kTwoRows) tile_multiply(2, 5, 6);
    if (kTwoRows && kTwoColumns) tile_multiply(3, 5, 7);
  }
  static void keep(float* sums) {  // (kGroup, kGroup)
    tile_store(0, sums, kGroup * 4);
    if (kTwoColumns) tile_store(1, sums + kTile, kGroup * 4);
    if (kTwoRows) tile_store(2, sums + kTile * kGroup, kGroup * 4);
    if (kTwoRows && kTwoColumns) tile_store(3, sums + kTile * kGroup + kTile, kGroup * 4);
  }

  template <int kParts>
  static void sum(const BFloat16* left, const BFloat16* right, int64_t steps, float* sums) {
    constexpr int64_t part = 2 * kTileSize;
    asm volatile("" ::: "memory");  // what is packed is in memory: compilers do not know that tiles read it
    clear();
    for (int64_t step = 0; step < steps; ++step, left += kParts * part, right += kParts * part) {
      if constexpr (kParts == 3) {  // the smallest first
        load_left(left + 2 * part), load_right(right), multiply();
        load_left(left + part), multiply();
        load_right(right + part), multiply();
        load_left(left), multiply();
        load_right(right + 2 * part), multiply();
        load_right(right), multiply();
      } else {
        load_left(left), load_right(right), multiply();
      }
    }
    keep(sums);
    asm volatile("" ::: "memory");
  }
};

// The product of two packed groups, (kGroup, kGroup).
template <int kParts>
inline void multiply_groups(const BFloat16* left, int rows, const BFloat16* right, int columns, int64_t steps, float* sums) {
  if (rows > kTile && columns > kTile)
    Block<true, true>::sum<kParts>(left, right, steps, sums);
  else if (rows > kTile)
    Block<true, false>::sum<kParts>(left, right, steps, sums);
  else if (columns > kTile)
    Block<false, true>::sum<kParts>(left, right, steps, sums);
  else
    Block<false, false>::sum<kParts>(left, right, steps, sums);
}

// The products of `rows` packed rows, (groups, group_size), with a packed group of `columns` columns. `finish(row, sums)` is
// told the sums of each row, (kGroup), which are zeros beyond the columns.
template <int kParts, typename Finish>
inline void multiply_rows(const BFloat16* left, int64_t left_size, int64_t rows, const BFloat16* right, int columns,
                          int64_t steps, Finish finish) {
  alignas(64) float sums[kGroup * kGroup];
  if (columns <= kTile) std::memset(sums, 0, sizeof sums);
  for (int64_t first = 0; first < rows; first += kGroup, left += left_size) {
    const int some = at_most(kGroup, rows, first);
    multiply_groups<kParts>(left, some, right, columns, steps, sums);
    for (int i = 0; i < some; ++i) finish(first + i, sums + i * kGroup);
  }
}

// Rows of a thread's part: a multiple of kTile, so that all threads have about as many, and no more than `most`, if that
// is a tile.
inline int64_t rows_at_once(int64_t rows, int threads, int64_t most) {
  const int64_t share = (rows + threads - 1) / threads;
  const int64_t parts = std::max<int64_t>(1, (share + most - 1) / most);
  const int64_t some = (share + parts - 1) / parts;
  return std::max<int64_t>(kTile, (some + kTile - 1) / kTile * kTile);
}

}  // namespace scalablevit

#endif
