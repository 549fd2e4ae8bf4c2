// Linear layers, with the norm before them and the residual stream behind, and products of any two matrices, by a policy of
// `packing.h`.

#pragma once

#include "kept_weights.h"

namespace scalablevit {

constexpr int64_t kWidestRight = 2048;  // columns of the right side, packed at once

// Rows of a matrix, each through the norm if there is one, as a layer reads them.
template <typename T>
struct NormedRows {
  const T* x;
  const float *weight, *bias;
  float eps;
  int width;

  int64_t most(int64_t most) const { return most; }  // to pack at once, where so many would do
  int64_t room() const { return weight ? (int64_t)kGroup * width : 0; }  // floats

  // Calls `body` with up to kGroup rows from `start` on, as a side.
  template <typename Body>
  void with_side(int64_t start, int rows, float* room, Body body) const {
    const T* from = x + start * width;
    if (!weight) return body(Side<T>{from, width, 1});
    for (int i = 0; i < rows; ++i)
      normalise_row(from + (int64_t)i * width, weight, bias, room + (int64_t)i * width, width, eps);
    body(Side<float>{room, width, 1});
  }

  // Up to kGroup rows as a packed group of a left side: what the norm gives is packed as it comes, where that is soon done.
  template <typename Products>
  void pack_left(int64_t start, int rows, float* room, typename Products::Number* target) const {
    if (Products::kIsCut || !weight)
      return with_side(start, rows, room, [&](auto side) { Products::pack_left(side, 0, rows, 0, width, target); });
    const T* from = x + start * width;
    const int64_t size = Products::left_size(width);
    for (int i = 0; i < rows; ++i, from += width) {
      const Normed<T> row(from, weight, bias, width, eps);
      for (int step = 0; step < width / kStep; ++step) {
        Vector numbers[kStep / kLanes];
        for (int v = 0; v < kStep / kLanes; ++v) numbers[v] = row.at(step * kStep + v * kLanes, kLanes);
        Products::set(target, size, i, step, numbers);
      }
      if (width % kStep == 0) continue;
      Vector last[kStep / kLanes] = {};
      const int begin = width / kStep * kStep;
      for_each_vector(width - begin, [&](int j, int count) {
        float some[kLanes] = {};  // beyond the last number a norm may give anything
        store_some(some, row.at(begin + j, count), count);
        last[j / kLanes] = load(some);
      });
      Products::set(target, size, i, width / kStep, last);
    }
  }
};

// What happens to rows of a result that are done: nothing.
struct LeaveRows {
  void operator()(int64_t, int64_t) const {}
};

// Where the products of rows with a whole group of columns go: to `target`, in rows `stride` apart, plus a bias and what lies
// likewise at `kept`, of which either may be null.
template <typename T>
struct Destination {
  const float* bias;
  const T* kept;
  T* target;
  int64_t stride;
};

// A function of its own, whose loop has registers for all that it needs.
template <typename Products, bool kAdds, typename Number, typename T>
__attribute__((noinline)) void write_products(const Number* left, int64_t size, int rows, const Number* right, int64_t length,
                                              Destination<T> to) {
  Vector bias[kGroup / kLanes] = {};
  for (int v = 0; to.bias && v < kGroup / kLanes; ++v) bias[v] = load(to.bias + v * kLanes);
  Products::multiply_rows_beside(left, size, rows, right, kGroup, length, [=](int64_t i, const float* sums) {
    for (int v = 0; v < kGroup / kLanes; ++v) {
      Vector sum = load(sums + v * kLanes) + bias[v];
      if (kAdds) sum += load(to.kept + i * to.stride + v * kLanes);
      store(to.target + i * to.stride + v * kLanes, sum);
    }
  });
}

// Packs a weight of (lines, length) as a right side, by the threads of a team, which do not wait for each other.
template <typename Products, typename W>
void pack_layer(LayerWeight weight, int64_t lines, int64_t length, typename Products::Number* target) {
#pragma omp for schedule(dynamic) nowait
  for (int64_t g = 0; g < groups_of(lines); ++g)
    Products::pack_right(Side<W>{(const W*)weight.data, length, 1}, g * kGroup, at_most(kGroup, lines, g * kGroup), 0, length,
                         target + g * Products::right_size(length));
}

// out = x @ weight^T, plus bias and residual where they are given. The columns from `first_columns` on, a multiple of
// kGroup, go to `second`, in rows of their own. `finish(start, count)` is told which rows are done.
template <typename Products, typename Rows, typename T, typename W, typename Finish = LeaveRows>
void linear(const Rows& x, LayerWeight weight, const float* bias, const T* residual, T* out, T* second, int64_t rows,
            int columns, int first_columns, int threads, Finish finish = {}) {
  using Number = typename Products::Number;
  const int width = x.width;
  static thread_local Scratch of_weights;
  const int64_t groups = groups_of(columns), size = Products::left_size(width), right_size = Products::right_size(width);
  const Number* kept = weight.packed<Products, W>(columns, width, threads);
  Number* made = of_weights.take<Number>(kept ? 0 : groups * right_size);
  const Number* right = kept ? kept : made;
  const Division division = divide<Products>(rows, threads, std::max(Products::kRows, x.most(Products::kMostRows)));
  const int64_t some = division.part, room = x.room();
  SharedParts parts(divided_up(rows, some), threads);
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const typename Products::Session session;
    float* read = scratch.take<float>(room + groups_of(some) * size * sizeof(Number) / sizeof(float));
    Number* left = (Number*)(read + room);
    if (!kept) pack_layer<Products, W>(weight, columns, width, made);
#pragma omp barrier
    parts.for_each([&](int64_t part) {
      const int64_t start = part * some, count = std::min(some, rows - start);
      for (int64_t r = 0; r < groups_of(count); ++r)
        x.template pack_left<Products>(start + r * kGroup, at_most(kGroup, count, r * kGroup), read, left + r * size);
      for_each_block<Products>(count, division.block, groups, right_size, [&](int64_t row, int some_rows, int64_t g) {
        const int64_t column = g * kGroup;
        const bool is_first = column < first_columns;
        const int64_t stride = is_first ? first_columns : columns - first_columns;
        const int64_t offset = (start + row) * stride + column - (is_first ? 0 : first_columns);
        T* target = (is_first ? out : second) + offset;
        const int wide = at_most(kGroup, columns, column);
        const T* kept = residual ? residual + offset : nullptr;
        const Number *rows_now = left + row * (size / kGroup), *weights = right + g * right_size;
        ask_for_rows<Products>(target, kept, stride, some_rows);
        if constexpr (Products::kIsCut)  // of six products each, which leave time for what comes of those before
          if (wide == kGroup) {
            const auto run = kept ? write_products<Products, true, Number, T> : write_products<Products, false, Number, T>;
            return run(rows_now, size, some_rows, weights, width, {bias ? bias + column : nullptr, kept, target, stride});
          }
        Vector of_bias[kGroup / kLanes] = {};
        for (int v = 0; bias && v * kLanes < wide; ++v) of_bias[v] = load_some(bias + column + v * kLanes, wide - v * kLanes);
        Products::multiply_rows(rows_now, size, some_rows, weights, wide, width, [&](int64_t i, const float* sums) {
          for_each_column(wide, [&](int j, int some_columns) {
            Vector sum = load(sums + j) + of_bias[j / kLanes];
            if (kept) sum += load_some(kept + i * stride + j, some_columns);
            store_some(target + i * stride + j, sum, some_columns);
          });
        });
      });
      finish(start, count);
    });
  }
}

// The products of packed rows with a packed group of columns, put at `out`, in rows `stride` apart, or added to what is there.
template <typename Products, typename Number, typename Out>
inline void multiply_block(const Number* left, int64_t size, int rows, const Number* right, int columns, int64_t length,
                           Out* out, int64_t stride, bool adds, int turned) {
  ask_for_rows<Products>(out, (const Out*)nullptr, stride, rows);
  Products::multiply_rows(
      left, size, rows, right, columns, length,
      [=](int64_t i, const float* sums) {
        for_each_column(columns, [&](int j, int some) {
          Out* p = out + i * stride + j;
          Vector sum = load(sums + j);
          if (adds) sum += load_some(p, some);
          store_some(p, sum, some);
        });
      },
      turned);
}

// Parts of a long sum for a small result, such as the gradient of a weight, which threads make one by one: as many as its sizes
// say, and added up in order, so that the result does not depend on how many threads there are. No more threads than there are
// parts have something to do. 1 where other ways are better.
inline int64_t parts_of_sum(int64_t rows, int64_t columns, int64_t length) {
  constexpr int64_t shortest = 384, most = 16, largest = 1 << 17;  // a result of which each part has a copy
  if (rows == 0 || columns == 0 || rows * columns > largest || length < 2 * std::max(rows, columns)) return 1;
  return std::clamp<int64_t>(length / shortest, 1, most);
}

// `multiply_matrices` for a sum in so many parts.
template <typename Products, typename T, typename W>
void multiply_in_parts(Side<T> left_side, Side<W> right_side, float* out, int64_t out_stride, int64_t rows, int64_t columns,
                       int64_t length, bool adds, int64_t parts, int threads) {
  using Number = typename Products::Number;
  constexpr int64_t kept = (int64_t)3 << 18;  // bytes of both sides that stay in the second cache, beside the sums
  constexpr int64_t line_bytes = Products::right_size(kStep) * sizeof(Number) / kGroup;  // of kStep numbers
  static thread_local Scratch of_sums;
  const int64_t part = steps_of(divided_up(length, parts)) * kStep, groups = groups_of(columns), stride = groups * kGroup;
  const int64_t longest = std::min(part, Products::kLongest);
  const int64_t at_once = std::clamp(kept / (line_bytes * (rows + columns)) * kStep, (int64_t)kStep, longest);
  float* sums = of_sums.take<float>((parts - 1) * rows * stride);
  const int block = (int)std::min<int64_t>(Products::kBlockRows, rows);
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const typename Products::Session session;
    const int64_t of_left = groups_of(rows + Products::kSpareRows) * Products::left_size(at_once);
    Number* left = scratch.take<Number>(of_left + groups * Products::right_size(at_once));
    Number* right = left + of_left;
#pragma omp for schedule(dynamic)
    for (int64_t start = 0; start < length; start += part) {
      const int64_t end = std::min(start + part, length), number = start / part;
      float* target = start == 0 ? out : sums + (number - 1) * rows * stride;
      const int64_t target_stride = start == 0 ? out_stride : stride;
      for (int64_t k = start; k < end; k += at_once) {
        const int64_t now = std::min(at_once, end - k);
        const int64_t size = Products::left_size(now), right_size = Products::right_size(now);
        const bool adds_now = k > start || (start == 0 && adds);
        Products::pack_left(left_side, 0, (int)rows, k, now, left, block);
        for (int64_t g = 0; g < groups; ++g)
          Products::pack_right(right_side, g * kGroup, at_most(kGroup, columns, g * kGroup), k, now, right + g * right_size);
        for_each_block<Products>(rows, block, groups, right_size, [&](int64_t row, int some_rows, int64_t g) {
          multiply_block<Products>((const Number*)left + row * (size / kGroup), size, some_rows,
                                   (const Number*)right + g * right_size, at_most(kGroup, columns, g * kGroup), now,
                                   target + row * target_stride + g * kGroup, target_stride, adds_now,
                                   left_side.number_stride != 1 ? block : 0);
        });
      }
    }
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
      for_each_vector((int)columns, [&](int j, int some) {
        float* p = out + row * out_stride + j;
        Vector total = load_some(p, some);
        for (int64_t i = 1; i * part < length; ++i) total += load(sums + ((i - 1) * rows + row) * stride + j);
        store_some(p, total, some);
      });
  }
}

// out = left @ right, or that added to it: (rows, columns), rows `out_stride` apart; sums over `length`. In float32 long sums
// are made piece by piece, of Products::kLongest, or in parts.
template <typename Products, typename T, typename W, typename Out>
void multiply_matrices(Side<T> left_side, Side<W> right_side, Out* out, int64_t out_stride, int64_t rows, int64_t columns,
                       int64_t length, bool adds, int threads) {
  using Number = typename Products::Number;
  constexpr bool in_float32 = sizeof(Out) == sizeof(float);
  if constexpr (in_float32) {
    const int64_t parts = parts_of_sum(rows, columns, length);
    if (parts > 1)
      return multiply_in_parts<Products>(left_side, right_side, out, out_stride, rows, columns, length, adds, parts, threads);
  }
  static thread_local Scratch of_right;
  const int64_t longest = in_float32 ? std::min(length, Products::kLongest) : length;
  const int64_t size = Products::left_size(longest), right_size = Products::right_size(longest);
  Number* right = of_right.take<Number>(groups_of(std::min(columns, kWidestRight)) * right_size);
  const int64_t most = std::max(Products::kRows, Products::kMostRows * 256 / longest / Products::kRows * Products::kRows);
  const Division division = divide<Products>(rows, threads, most);
  const int64_t some = division.part;
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const typename Products::Session session;
    // With room for a whole block where the last has fewer rows: some policies write what they leave out of it.
    Number* left = scratch.take<Number>(groups_of(some + Products::kSpareRows) * size);
    for (int64_t first = 0; first < columns; first += kWidestRight)
      for (int64_t k = 0; k < length; k += longest) {
        const int64_t wide = std::min(kWidestRight, columns - first), now = std::min(longest, length - k);
        const int64_t now_size = Products::left_size(now);
#pragma omp for schedule(dynamic)
        for (int64_t g = 0; g < groups_of(wide); ++g)
          Products::pack_right(right_side, first + g * kGroup, at_most(kGroup, wide, g * kGroup), k, now,
                               right + g * right_size);
#pragma omp for schedule(dynamic)
        for (int64_t start = 0; start < rows; start += some) {
          const int64_t count = std::min(some, rows - start);
          Products::pack_left(left_side, start, (int)count, k, now, left, division.block);
          const int64_t wide_groups = groups_of(wide);
          for_each_block<Products>(count, division.block, wide_groups, right_size, [&](int64_t row, int some_rows, int64_t g) {
            multiply_block<Products>((const Number*)left + row * (now_size / kGroup), now_size, some_rows,
                                     (const Number*)right + g * right_size, at_most(kGroup, wide, g * kGroup), now,
                                     out + (start + row) * out_stride + first + g * kGroup, out_stride, adds || k > 0,
                                     left_side.number_stride != 1 ? division.block : 0);
          });
        }
      }
  }
}

}  // namespace scalablevit
