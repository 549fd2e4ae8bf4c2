// The feed-forward on tiles: norm, product, bias, GELU, product, bias and residual stream, while a few rows are in the cache.
//
// Axes: rows positions, c channels, f channels of the hidden layer.

#pragma once

#include "linear.h"

#if SCALABLEVIT_TILES

namespace scalablevit {

constexpr int64_t kFeedForwardRows = 256;  // at once
constexpr int64_t kHiddenGroups = 8;       // of the hidden layer at once

// out = gelu(norm(x) @ weight1^T + bias1) @ weight2^T + bias2, plus x if kept.
template <typename T, typename W>
void feed_forward(const T* x, const float* norm_weight, const float* norm_bias, float eps, const W* weight1,
                  const float* bias1, const W* weight2, const float* bias2, T* out, int64_t rows, int width, int hidden,
                  bool residual, int threads) {
  constexpr int kParts = kPartsOf<T>;
  static thread_local Scratch of_weights;
  const int64_t steps = steps_of(width), hidden_steps = steps_of(hidden);
  const int64_t groups = groups_of(width), hidden_groups = groups_of(hidden);
  const int64_t size = group_size<kParts>(steps), hidden_size = group_size<kParts>(hidden_steps);
  const int64_t chunk_size = group_size<kParts>(kHiddenGroups), step_size = group_size<kParts>(1);
  BFloat16* first = of_weights.take<BFloat16>(hidden_groups * (size + 2 * kGroup) + groups * hidden_size);
  BFloat16* second = first + hidden_groups * size;
  float* padded = (float*)(second + groups * hidden_size);  // bias1, and zeros after it
  std::memset(padded, 0, hidden_groups * kGroup * sizeof(float));
  std::memcpy(padded, bias1, hidden * sizeof(float));
  const int64_t some = rows_at_once(rows, threads, kFeedForwardRows), row_groups = groups_of(some);
  const int64_t stride = groups * kGroup;
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const Tiles tiles;
    float* normed = scratch.take<float>(kGroup * width + row_groups * kGroup * stride + row_groups * (size + chunk_size) / 2);
    float* result = normed + kGroup * width;  // (rows, stride)
    BFloat16* left = (BFloat16*)(result + row_groups * kGroup * stride);
    BFloat16* chunk = left + row_groups * size;
#pragma omp for schedule(static) nowait
    for (int64_t g = 0; g < hidden_groups; ++g)
      pack_group<kParts, true>(Side<W>{weight1, width, 1}, g * kGroup, at_most(kGroup, hidden, g * kGroup), 0, width,
                               first + g * size);
#pragma omp for schedule(static)
    for (int64_t g = 0; g < groups; ++g)
      pack_group<kParts, true>(Side<W>{weight2, hidden, 1}, g * kGroup, at_most(kGroup, width, g * kGroup), 0, hidden,
                               second + g * hidden_size);
#pragma omp for schedule(static)
    for (int64_t start = 0; start < rows; start += some) {
      const int64_t count = std::min(some, rows - start), now = groups_of(count);
      const T* from = x + start * width;
      for (int64_t r = 0; r < now; ++r)
        pack_normed<kParts>(from + r * kGroup * width, norm_weight, norm_bias, eps, at_most(kGroup, count, r * kGroup), width,
                            normed, left + r * size);
      for (int64_t i = 0; i < count; ++i)
        for_each_vector(width, [&](int j, int some_columns) {
          Vector begin = load_some(bias2 + j, some_columns);
          if (residual) begin += load_some(from + i * width + j, some_columns);
          store(result + i * stride + j, begin);
        });
      for (int64_t h = 0; h < hidden_groups; h += kHiddenGroups) {
        const int64_t chunk_groups = std::min(kHiddenGroups, hidden_groups - h);
        for (int64_t g = h; g < h + chunk_groups; ++g) {
          const int columns = at_most(kGroup, hidden, g * kGroup);
          const float* bias = padded + g * kGroup;
          BFloat16* target = chunk + (g - h) * step_size;
          multiply_rows<kParts>(left, size, count, first + g * size, columns, steps, [&](int64_t row, const float* sums) {
            Vector numbers[kStep / kLanes];
            for (int v = 0; v < kStep / kLanes; ++v)
              numbers[v] = gelu<T>(load(sums + v * kLanes) + load(bias + v * kLanes));
            cut<kParts>(numbers, row_of_group(target + row / kGroup * chunk_size, row % kGroup), 2 * kTileSize);
          });
        }
        for (int64_t g = 0; g < groups; ++g) {
          const int columns = at_most(kGroup, width, g * kGroup);
          float* target = result + g * kGroup;
          multiply_rows<kParts>(chunk, chunk_size, count, second + g * hidden_size + h * step_size, columns, chunk_groups,
                                [&](int64_t row, const float* sums) {
                                  float* p = target + row * stride;
                                  for (int j = 0; j < kGroup; j += kLanes) store(p + j, load(p + j) + load(sums + j));
                                });
        }
      }
      for (int64_t i = 0; i < count; ++i)
        for_each_vector(width, [&](int j, int some_columns) {
          store_some(out + (start + i) * width + j, load(result + i * stride + j), some_columns);
        });
    }
  }
}

}  // namespace scalablevit

#endif
