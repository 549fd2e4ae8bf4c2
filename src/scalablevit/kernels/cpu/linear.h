// Linear layers on tiles, with the norm before them and the residual stream behind, and products of any two matrices.

#pragma once

#include "products.h"

#if SCALABLEVIT_TILES

namespace scalablevit {

constexpr int64_t kLinearRows = 256;    // of the left side, packed at once
constexpr int64_t kLongestSum = 1024;   // numbers along k, packed at once
constexpr int64_t kWidestRight = 2048;  // columns of the right side, packed at once

// LayerNorm of a row, in float32.
template <typename T>
inline void read_row(const T* x, const float* weight, const float* bias, float eps, int width, float* out) {
  const Moments of = moments(x, width, eps);
  for_each_vector(width, [&](int i, int count) {
    const Vector centred = (load_some(x + i, count) - of.mean) * of.factor;
    store_some(out + i, centred * load_some(weight + i, count) + load_some(bias + i, count), count);
  });
}

// Up to kGroup rows of x, each through the norm if there is one, as a packed group. `normed` holds (kGroup, width).
template <int kParts, typename T>
inline void pack_normed(const T* x, const float* weight, const float* bias, float eps, int rows, int width, float* normed,
                        BFloat16* target) {
  if (!weight) return pack_group<kParts, false>(Side<T>{x, width, 1}, 0, rows, 0, width, target);
  for (int i = 0; i < rows; ++i) read_row(x + (int64_t)i * width, weight, bias, eps, width, normed + (int64_t)i * width);
  pack_group<kParts, false>(Side<float>{normed, width, 1}, 0, rows, 0, width, target);
}

// out = norm(x) @ weight^T, plus bias and residual where they are given. The columns from `first_columns` on, a multiple of
// kGroup, go to `second`, in rows of their own.
template <typename T, typename W>
void linear(const T* x, const float* norm_weight, const float* norm_bias, float eps, const W* weight, const float* bias,
            const T* residual, T* out, T* second, int64_t rows, int width, int columns, int first_columns, int threads) {
  constexpr int kParts = kPartsOf<T>;
  static thread_local Scratch of_weights;
  const int64_t steps = steps_of(width), groups = groups_of(columns), size = group_size<kParts>(steps);
  BFloat16* right = of_weights.take<BFloat16>(groups * size);
  const int64_t some = rows_at_once(rows, threads, kLinearRows);
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const Tiles tiles;
    float* normed = scratch.take<float>(kGroup * width + groups_of(some) * size / 2);
    BFloat16* left = (BFloat16*)(normed + kGroup * width);
#pragma omp for schedule(static)
    for (int64_t g = 0; g < groups; ++g)
      pack_group<kParts, true>(Side<W>{weight, width, 1}, g * kGroup, at_most(kGroup, columns, g * kGroup), 0, width,
                               right + g * size);
#pragma omp for schedule(static)
    for (int64_t start = 0; start < rows; start += some) {
      const int64_t count = std::min(some, rows - start);
      for (int64_t r = 0; r < groups_of(count); ++r)
        pack_normed<kParts>(x + (start + r * kGroup) * width, norm_weight, norm_bias, eps, at_most(kGroup, count, r * kGroup),
                            width, normed, left + r * size);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t column = g * kGroup;
        const bool is_first = column < first_columns;
        const int64_t stride = is_first ? first_columns : columns - first_columns;
        const int64_t offset = start * stride + column - (is_first ? 0 : first_columns);
        T* target = (is_first ? out : second) + offset;
        const int wide = at_most(kGroup, columns, column);
        Vector of_bias[kGroup / kLanes] = {};
        for (int v = 0; bias && v * kLanes < wide; ++v) of_bias[v] = load_some(bias + column + v * kLanes, wide - v * kLanes);
        const T* kept = residual ? residual + offset : nullptr;
        multiply_rows<kParts>(left, size, count, right + g * size, wide, steps, [&](int64_t row, const float* sums) {
          for_each_column(wide, [&](int j, int some_columns) {
            Vector sum = load(sums + j) + of_bias[j / kLanes];
            if (kept) sum += load_some(kept + row * stride + j, some_columns);
            store_some(target + row * stride + j, sum, some_columns);
          });
        });
      }
    }
  }
}

// out = left @ right, or that added to it: (rows, columns), rows `out_stride` apart; sums over `length`. In
// float32 sums of more than kLongestSum are made in parts.
template <typename T, typename W, typename Out>
void multiply_matrices(Side<T> left_side, Side<W> right_side, Out* out, int64_t out_stride, int64_t rows, int64_t columns,
                       int64_t length, bool adds, int threads) {
  constexpr int kParts = kPartsOf<T>;
  constexpr bool in_parts = sizeof(Out) == sizeof(float);
  static thread_local Scratch of_right;
  const int64_t longest = in_parts ? std::min(length, kLongestSum) : length;
  const int64_t size = group_size<kParts>(steps_of(longest));
  BFloat16* right = of_right.take<BFloat16>(groups_of(std::min(columns, kWidestRight)) * size);
  const int64_t some = rows_at_once(rows, threads, std::max<int64_t>(kTile, kLinearRows * 256 / longest / kTile * kTile));
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const Tiles tiles;
    BFloat16* left = scratch.take<BFloat16>(groups_of(some) * size);
    for (int64_t first = 0; first < columns; first += kWidestRight)
      for (int64_t k = 0; k < length; k += longest) {
        const int64_t wide = std::min(kWidestRight, columns - first), now = std::min(longest, length - k);
        const int64_t steps = steps_of(now);
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups_of(wide); ++g)
          pack_group<kParts, true>(right_side, first + g * kGroup, at_most(kGroup, wide, g * kGroup), k, now,
                                   right + g * size);
#pragma omp for schedule(static)
        for (int64_t start = 0; start < rows; start += some) {
          const int64_t count = std::min(some, rows - start);
          for (int64_t r = 0; r < groups_of(count); ++r)
            pack_group<kParts, false>(left_side, start + r * kGroup, at_most(kGroup, count, r * kGroup), k, now,
                                      left + r * size);
          for (int64_t g = 0; g < groups_of(wide); ++g) {
            const int some_columns = at_most(kGroup, wide, g * kGroup);
            Out* target = out + start * out_stride + first + g * kGroup;
            multiply_rows<kParts>(left, size, count, right + g * size, some_columns, steps,
                                  [&](int64_t row, const float* sums) {
                                    for_each_column(some_columns, [&](int j, int count) {
                                      Out* p = target + row * out_stride + j;
                                      Vector sum = load(sums + j);
                                      if (adds || k > 0) sum += load_some(p, count);
                                      store_some(p, sum, count);
                                    });
                                  });
          }
        }
      }
  }
}

}  // namespace scalablevit

#endif
