// Products of matrices on tiles: a policy of `packing.h`.
//
// Packed groups are their steps of 32 numbers along k, of each step its parts, of each part two tiles, so that all that the
// tiles load lies one after the other.
//
// Numbers of bfloat16 have one part. A number of float32 is cut into three of bfloat16, x = a + b + c, of 8 bits each:
// exactly, as its 24 bits are what the three hold, down to 1e-31, below which the last ones are lost. Of the nine products
// of two such numbers the six largest are computed; the others are below 2^-24 of the whole. Tiles add 32 products up
// before they add to a sum, so that fewer roundings come together than in sums one by one. What is infinite, or above
// 3.39e38, comes out as no number.

#pragma once

#include "packing.h"
#include "tiles.h"

#if SCALABLEVIT_TILES

namespace scalablevit {

// A row of a packed group, at its first step and part.
inline BFloat16* row_of_group(BFloat16* group, unsigned row) { return group + row / kTile * kTileSize + row % kTile * kStep; }

// The parts of a vector of numbers, the largest first, in the upper halves of the lanes. The last of three has no more bits
// than it may have, and is not rounded: what is no number is none there.
template <int kParts>
struct Parts {
  static_assert(kParts == 3);
  Vector of[kParts];

  Parts() = default;
  explicit Parts(Vector x) {
    of[0] = rounded(x);
    of[1] = rounded(x - of[0]);
    of[2] = (x - of[0]) - of[1];
  }

 private:
  // To 8 bits, halves away from zero, in two operations: the processor's own instruction takes four to be float32 again.
  static Vector rounded(Vector x) { return (Vector)(((Bits)x + 0x8000u) & 0xffff0000u); }
};

// kStep numbers, as so many parts, each a row of a tile; parts lie `apart`.
template <int kParts>
SCALABLEVIT_INLINED void store_parts(const Parts<kParts>* numbers, BFloat16* target, int64_t apart) {
  for (int part = 0; part < kParts; ++part) {
    if constexpr (kLanes == kTile) {
      const Vector both = upper_halves(numbers[0].of[part], numbers[1].of[part]);
      std::memcpy(target + part * apart, &both, sizeof both);
    } else {
      for (int v = 0; v < kStep / kLanes; ++v) store(target + part * apart + v * kLanes, numbers[v].of[part]);
    }
  }
}

template <int kParts>
SCALABLEVIT_INLINED void cut(const Vector* numbers, BFloat16* target, int64_t apart) {
  if constexpr (kParts == 1) {
    store_nearest(target, numbers);
  } else {
    Parts<kParts> parts[kStep / kLanes];
    for (int v = 0; v < kStep / kLanes; ++v) parts[v] = Parts<kParts>(numbers[v]);
    store_parts(parts, target, apart);
  }
}

// kTile pairs of numbers, of each its first and its second, as so many parts of a row of a tile of `right`.
template <int kParts>
SCALABLEVIT_INLINED void store_pairs(const Parts<kParts>* first, const Parts<kParts>* second, BFloat16* target,
                                     int64_t apart) {
  for (int part = 0; part < kParts; ++part)
    for (int v = 0; v < kTile / kLanes; ++v) {
      const Vector pairs = pairs_of(first[v].of[part], second[v].of[part]);
      std::memcpy(target + part * apart + 2 * v * kLanes, &pairs, sizeof pairs);
    }
}

template <int kParts>
SCALABLEVIT_INLINED void cut_pairs(const Vector* first, const Vector* second, BFloat16* target, int64_t apart) {
  constexpr int wide = kTile / kLanes;
  if constexpr (kParts == 1) {
    for (int v = 0; v < wide; ++v) {
      const Vector pairs = pairs_nearest(first[v], second[v]);
      std::memcpy(target + 2 * v * kLanes, &pairs, sizeof pairs);
    }
  } else {
    Parts<kParts> low[wide], high[wide];
    for (int v = 0; v < wide; ++v) low[v] = Parts<kParts>(first[v]), high[v] = Parts<kParts>(second[v]);
    store_pairs(low, high, target, apart);
  }
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

// So many numbers of each of up to kTile lines, `stride` apart, as tiles whose rows are lines: parts lie `apart`, each kStep
// numbers `step_apart`. Line by line, as processors fetch ahead what is read in order. A function of its own, and so is the
// next: loops that cut have registers for all that they need.
template <int kParts, typename T>
__attribute__((noinline)) void pack_lines(const T* from, int64_t stride, int lines, int64_t numbers, BFloat16* target,
                                          int64_t apart, int64_t step_apart) {
  constexpr bool is_copied = kParts == 1 && sizeof(T) == sizeof(BFloat16);
  for (int i = 0; i < kTile; ++i, from += stride, target += kStep) {
    BFloat16* to = target;
    for (int64_t k = 0; k < numbers; k += kStep, to += step_apart) {
      const int some = i < lines ? at_most(kStep, numbers, k) : 0;
      if constexpr (is_copied) {
        copy_numbers(from + k, some, to);
      } else {
        Vector found[kStep / kLanes] = {};
        if (some == kStep)
          for (int v = 0; v < kStep / kLanes; ++v) found[v] = load(from + k + v * kLanes);
        else
          for_each_vector(some, [&](int j, int count) { found[j / kLanes] = load_some(from + k + j, count); });
        cut<kParts>(found, to, apart);
      }
    }
  }
}

// The same of lines that lie side by side, their numbers `stride` apart: pairs of numbers are its rows.
template <int kParts, typename T>
__attribute__((noinline)) void pack_numbers(const T* from, int64_t stride, int lines, int numbers, BFloat16* target,
                                            int64_t apart) {
  constexpr int wide = kTile / kLanes;
  if (lines == kTile && numbers == kStep) {
    for (int i = 0; i < kTile; ++i, from += 2 * stride) {
      Vector first[wide], second[wide];
      for (int v = 0; v < wide; ++v) first[v] = load(from + v * kLanes), second[v] = load(from + stride + v * kLanes);
      cut_pairs<kParts>(first, second, target + i * kStep, apart);
    }
    return;
  }
  for (int i = 0; i < kStep; i += 2, from += 2 * stride) {
    Vector first[wide] = {}, second[wide] = {};
    for (int v = 0; v * kLanes < lines; ++v) {
      if (i < numbers) first[v] = load_some(from + v * kLanes, lines - v * kLanes);
      if (i + 1 < numbers) second[v] = load_some(from + stride + v * kLanes, lines - v * kLanes);
    }
    cut_pairs<kParts>(first, second, target + i / 2 * kStep, apart);
  }
}

// A group of up to kGroup lines from `line` on, `length` numbers of each from `number` on.
template <int kParts, bool kRight, typename T>
inline void pack_group(Side<T> side, int64_t line, int lines, int64_t number, int64_t length, BFloat16* target) {
  constexpr int64_t apart = 2 * kTileSize, step_apart = kParts * apart;
  constexpr int64_t at_once = 8 * kStep;  // numbers of a line
  const bool by_line = side.number_stride == 1, turns = by_line == kRight;
  alignas(64) BFloat16 unturned[kParts * at_once / kStep * kTileSize];
  for (int half = 0; half * kTile < lines; ++half, target += kTileSize) {
    const int some = std::min(kTile, lines - half * kTile);
    for (int64_t k = 0; k < length; k += at_once) {
      const int64_t numbers = std::min(at_once, length - k);
      const T* from = side.at(line + half * kTile, number + k);
      BFloat16* to = target + k / kStep * step_apart;
      BFloat16* made = turns ? unturned : to;
      const int64_t made_apart = turns ? kTileSize : apart, made_step = turns ? kParts * kTileSize : step_apart;
      if (by_line)
        pack_lines<kParts>(from, side.line_stride, some, numbers, made, made_apart, made_step);
      else
        for (int64_t i = 0; i * kStep < numbers; ++i)
          pack_numbers<kParts>(from + i * kStep * side.number_stride, side.number_stride, some,
                               at_most(kStep, numbers, i * kStep), made + i * made_step, made_apart);
      if (turns)
        for (int64_t i = 0; i * kStep < numbers; ++i)
          for (int part = 0; part < kParts; ++part)
            turn(unturned + (i * kParts + part) * kTileSize, to + i * step_apart + part * apart);
    }
  }
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

  // `between` is called after each four products.
  template <int kParts, typename Between>
  static SCALABLEVIT_INLINED void sum(const BFloat16* left, const BFloat16* right, int64_t steps, float* sums,
                                      Between between) {
    constexpr int64_t part = 2 * kTileSize;
    asm volatile("" ::: "memory");  // what is packed is in memory: compilers do not know that tiles read it
    clear();
    for (int64_t step = 0; step < steps; ++step, left += kParts * part, right += kParts * part) {
      if constexpr (kParts == 3) {  // the smallest first
        load_left(left + 2 * part), load_right(right), multiply(), between();
        load_left(left + part), multiply(), between();
        load_right(right + part), multiply(), between();
        load_left(left), multiply(), between();
        load_right(right + 2 * part), multiply(), between();
        load_right(right), multiply(), between();
      } else {
        load_left(left), load_right(right), multiply(), between();
      }
    }
    keep(sums);
    asm volatile("" ::: "memory");
  }
};

// The product of two packed groups, (kGroup, kGroup).
template <int kParts, typename Between>
SCALABLEVIT_INLINED void multiply_groups(const BFloat16* left, int rows, const BFloat16* right, int columns, int64_t steps,
                                         float* sums, Between between) {
  if (rows > kTile && columns > kTile)
    Block<true, true>::sum<kParts>(left, right, steps, sums, between);
  else if (rows > kTile)
    Block<true, false>::sum<kParts>(left, right, steps, sums, between);
  else if (columns > kTile)
    Block<false, true>::sum<kParts>(left, right, steps, sums, between);
  else
    Block<false, false>::sum<kParts>(left, right, steps, sums, between);
}

// A function of its own: it leaves the registers of loops around it alone.
template <int kParts>
__attribute__((noinline)) void multiply_groups(const BFloat16* left, int rows, const BFloat16* right, int columns,
                                               int64_t steps, float* sums) {
  multiply_groups<kParts>(left, rows, right, columns, steps, sums, [] {});
}

template <typename T>
struct TileProducts {
  static constexpr int kParts = sizeof(T) == sizeof(float) ? 3 : 1;
  static constexpr int64_t kRows = kTile, kMostRows = 256, kBlockRows = kMostRows;
  static constexpr int64_t kLongest = 1024, kSpareRows = 0, kTurns = 1;
  static constexpr bool kAnyRows = true, kIsCut = kParts > 1;
  static constexpr int kTurnedRows = kGroup;
  using Number = BFloat16;
  using Session = Tiles;

  static constexpr int64_t left_size(int64_t length) { return steps_of(length) * kParts * 2 * kTileSize; }
  static constexpr int64_t right_size(int64_t length) { return left_size(length); }

  template <typename From>
  static void pack_left(Side<From> side, int64_t line, int lines, int64_t number, int64_t length, BFloat16* target,
                        int = 0) {
    for (int i = 0; i < lines; i += kGroup, target += left_size(length))
      pack_group<kParts, false>(side, line + i, at_most(kGroup, lines, i), number, length, target);
  }

  template <typename From>
  static void pack_right(Side<From> side, int64_t line, int lines, int64_t number, int64_t length, BFloat16* target) {
    pack_group<kParts, true>(side, line, lines, number, length, target);
  }

  // `numbers` are kStep, at `step` of a row of packed groups of so many numbers.
  static void set(BFloat16* left, int64_t size, int64_t row, int64_t step, const Vector* numbers) {
    BFloat16* group = left + (unsigned)row / kGroup * size + step * left_size(kStep);
    cut<kParts>(numbers, row_of_group(group, (unsigned)row % kGroup), 2 * kTileSize);
  }

  // `first` and `second` are numbers `k`, which is even, and k + 1 of the columns of a packed group, (kGroup) each.
  static void set_right(BFloat16* right, int64_t k, const Vector* first, const Vector* second) {
    BFloat16* target = right + k / kStep * right_size(kStep) + k % kStep / 2 * kStep;
    for (int half = 0; half < 2; ++half) {
      const int at = half * (kTile / kLanes);
      cut_pairs<kParts>(first + at, second + at, target + half * kTileSize, 2 * kTileSize);
    }
  }

  // `set` for rows `row`, which is even, and row + 1, and `set_right` for the same numbers.
  static void set_both(BFloat16* left, int64_t size, int64_t row, int64_t step, BFloat16* right, const Vector* first,
                       const Vector* second) {
    if constexpr (kParts == 1) {
      set(left, size, row, step, first), set(left, size, row + 1, step, second);
      set_right(right, row, first, second);
    } else {
      constexpr int wide = kStep / kLanes, half = wide / 2;
      Parts<kParts> parts[2][wide];
      for (int v = 0; v < wide; ++v) parts[0][v] = Parts<kParts>(first[v]), parts[1][v] = Parts<kParts>(second[v]);
      BFloat16* group = left + (unsigned)row / kGroup * size + step * left_size(kStep);
      for (int i = 0; i < 2; ++i)
        store_parts(parts[i], row_of_group(group, (unsigned)row % kGroup + i), 2 * kTileSize);
      BFloat16* target = right + row / kStep * right_size(kStep) + row % kStep / 2 * kStep;
      store_pairs(parts[0], parts[1], target, 2 * kTileSize);
      store_pairs(parts[0] + half, parts[1] + half, target + kTileSize, 2 * kTileSize);
    }
  }

  // The products of `rows` packed rows, in groups of `size` numbers, with a packed group of `columns` columns.
  // `finish(row, sums)` is told the sums of each row, (kGroup), which are zeros beyond the columns.
  template <typename Finish>
  static void multiply_rows(const BFloat16* left, int64_t size, int rows, const BFloat16* right, int columns,
                            int64_t length, Finish finish, int = 0) {
    alignas(64) float sums[kGroup * kGroup];
    if (columns <= kTile) std::memset(sums, 0, sizeof sums);
    for (int first = 0; first < rows; first += kGroup, left += size) {
      const int some = at_most(kGroup, rows, first);
      multiply_groups<kParts>(left, some, right, columns, steps_of(length), sums);
      for (int i = 0; i < some; ++i) finish(first + i, sums + i * kGroup);
    }
  }

  // The same where there is much to finish. Tiles multiply beside the vectors: unless products are short, a group of rows is
  // finished between those of the next one, a few rows at a time.
  template <typename Finish>
  static void multiply_rows_beside(const BFloat16* left, int64_t size, int rows, const BFloat16* right, int columns,
                                   int64_t length, Finish finish) {
    const int64_t steps = steps_of(length), calls = steps * (kParts == 3 ? 6 : 1);  // of what is done between
    alignas(64) float sums[2][kGroup * kGroup];
    if (columns <= kTile) std::memset(sums, 0, sizeof sums);
    const unsigned share = calls < kFewestCalls ? 0 : divided_up(kGroup, calls);
    unsigned done = 0, ready = 0;  // rows that are finished, and that have sums
    for (int first = 0; first < rows; first += kGroup, left += size) {
      const int some = at_most(kGroup, rows, first);
      const unsigned turn = first / kGroup % 2;
      const float* before = sums[1 - turn];
      multiply_groups<kParts>(left, some, right, columns, steps, sums[turn], [&] {
        for (const unsigned end = std::min(done + share, ready); done < end; ++done)
          finish(done, before + done % kGroup * kGroup);
      });
      ready = first + some;
      if (share == 0 || first + kGroup >= rows)
        for (; done < ready; ++done) finish(done, sums[done / kGroup % 2] + done % kGroup * kGroup);
    }
  }

 private:
  static constexpr int64_t kFewestCalls = 8;
};

}  // namespace scalablevit

#endif
