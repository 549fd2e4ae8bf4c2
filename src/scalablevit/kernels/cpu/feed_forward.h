// The feed-forward: norm, product, bias, GELU, product, bias and residual stream, while a few rows are in the cache, by a
// policy of `packing.h`.
//
// Axes: rows positions, c channels, f channels of the hidden layer.

#pragma once

#include "linear.h"

namespace scalablevit {

constexpr int64_t kHiddenGroups = 8;  // of the hidden layer at once

// Where a step of a packed hidden layer, in groups of `size` numbers, comes from and goes to.
template <typename T, typename Number>
struct Activated {
  const float* bias;
  Number* hidden;
  int64_t size, step;
  T* kept;  // where it goes before the GELU, too: whole groups of columns, in rows `between` apart
  int64_t between;
};

// A function of its own, whose loop has registers for all that it needs.
template <typename Products, bool kKeeps, typename T, typename Number>
__attribute__((noinline)) void activate_products(const Number* left, int64_t size, int rows, const Number* right, int columns,
                                                 int64_t length, Activated<T, Number> to) {
  const Gelu<T> gelu;
  Vector bias[kStep / kLanes];
  for (int v = 0; v < kStep / kLanes; ++v) bias[v] = load(to.bias + v * kLanes);
  Products::multiply_rows_beside(left, size, rows, right, columns, length, [=](int64_t row, const float* sums) {
    Vector numbers[kStep / kLanes];
    for (int v = 0; v < kStep / kLanes; ++v) {
      const Vector sum = load(sums + v * kLanes) + bias[v];
      if (kKeeps) store_past_caches(to.kept + row * to.between + v * kLanes, sum);  // which the backward pass reads
      numbers[v] = sum;
    }
    gelu.activate(numbers);
    Products::set(to.hidden, to.size, row, to.step, numbers);
  });
}

// Adds the sums of a row to that of rows `stride` apart, or puts them there.
struct AddToRows {
  float* out;
  int64_t stride;
  bool adds = true;

  void operator()(int64_t row, const float* sums) const {
    float* p = out + row * stride;
    for (int j = 0; j < kGroup; j += kLanes) store(p + j, adds ? load(p + j) + load(sums + j) : load(sums + j));
  }
};

// Likewise: a function of its own.
template <typename Products, typename Number>
__attribute__((noinline)) void add_products(const Number* left, int64_t size, int rows, const Number* right, int columns,
                                            int64_t length, AddToRows add) {
  Products::multiply_rows_beside(left, size, rows, right, columns, length, add);
}

// out = of_result(of_hidden(gelu(norm(x) @ weight1^T + bias1)) @ weight2^T + bias2), plus x if `residual`. One drops from the
// hidden layer, (rows, f), the other from the result, (rows, c). What the first layer gives goes to `kept`, (rows, f), if that
// is there.
template <typename Products, typename T, typename W>
void feed_forward(const T* x, const float* norm_weight, const float* norm_bias, float eps, LayerWeight weight1,
                  const float* bias1, LayerWeight weight2, const float* bias2, T* out, T* kept, int64_t rows, int width,
                  int hidden, bool residual, Dropout of_hidden, Dropout of_result, int threads) {
  using Number = typename Products::Number;
  static thread_local Scratch of_weights;
  const int64_t groups = groups_of(width), hidden_groups = groups_of(hidden);
  const int64_t size = Products::left_size(width), chunk_size = Products::left_size(kHiddenGroups * kGroup);
  const int64_t right_size = Products::right_size(width), hidden_size = Products::right_size(hidden);
  const Number* kept_first = weight1.packed<Products, W>(hidden, width, threads);
  const Number* kept_second = weight2.packed<Products, W>(width, hidden, threads);
  const int64_t of_first = kept_first ? 0 : hidden_groups * right_size, of_second = kept_second ? 0 : groups * hidden_size;
  float* padded = of_weights.take<float>(hidden_groups * kGroup + (of_first + of_second) * sizeof(Number) / sizeof(float));
  Number* made_first = (Number*)(padded + hidden_groups * kGroup);  // after bias1, and zeros
  Number* made_second = made_first + of_first;
  const Number *first = kept_first ? kept_first : made_first, *second = kept_second ? kept_second : made_second;
  std::memset(padded, 0, hidden_groups * kGroup * sizeof(float));
  std::memcpy(padded, bias1, hidden * sizeof(float));
  const Division division = divide<Products>(rows, threads, Products::kMostRows);
  const int64_t some = division.part, row_groups = groups_of(some);
  const int64_t stride = groups * kGroup;
  SharedParts parts(divided_up(rows, some), threads);
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const typename Products::Session session;
    const int64_t of_left = (size + chunk_size) * sizeof(Number) / sizeof(float);
    const NormedRows<T> read{x, norm_weight, norm_bias, eps, width};
    float* room = scratch.take<float>(kGroup * width + row_groups * (kGroup * stride + of_left));
    float* result = room + kGroup * width;  // (rows, stride)
    Number* left = (Number*)(result + row_groups * kGroup * stride);
    Number* chunk = left + row_groups * size;
    if (!kept_first) pack_layer<Products, W>(weight1, hidden, width, made_first);
    if (!kept_second) pack_layer<Products, W>(weight2, width, hidden, made_second);
#pragma omp barrier
    const Gelu<T> gelu;
    parts.for_each([&](int64_t part) {
      const int64_t start = part * some, count = std::min(some, rows - start), now = groups_of(count);
      const T* from = x + start * width;
      for (int64_t r = 0; r < now; ++r)
        read.template pack_left<Products>(start + r * kGroup, at_most(kGroup, count, r * kGroup), room, left + r * size);
      for (int64_t i = 0; i < count; ++i)
        for_each_vector(width, [&](int j, int some_columns) {
          Vector begin = load_some(bias2 + j, some_columns);
          if (residual && !of_result.is_on()) begin += load_some(from + i * width + j, some_columns);
          store(result + i * stride + j, begin);
        });
      for (int64_t h = 0; h < hidden_groups; h += kHiddenGroups) {
        const int64_t chunk_groups = std::min(kHiddenGroups, hidden_groups - h);
        for (int64_t block = 0; block < count; block += division.block) {
          const int some_rows = at_most(division.block, count, block);
          for (int64_t g = h; g < h + chunk_groups; ++g) {
            const int columns = at_most(kGroup, hidden, g * kGroup);
            const float* bias = padded + g * kGroup;
            const Number *rows_now = left + block * (size / kGroup), *weights = first + g * right_size;
            T* keep = kept ? kept + (start + block) * hidden + g * kGroup : nullptr;
            const Activated<T, Number> to{bias, chunk, chunk_size, g - h, keep, hidden};
            if (!of_hidden.is_on() && (!keep || columns == kGroup)) {
              const auto run = keep ? activate_products<Products, true, T, Number>
                                    : activate_products<Products, false, T, Number>;
              run(rows_now, size, some_rows, weights, columns, width, to);
              continue;
            }
            const auto activate = [=](int64_t row, const float* sums) {
              Vector numbers[kStep / kLanes];
              for (int v = 0; v < kStep / kLanes; ++v) {
                const Vector sum = load(sums + v * kLanes) + load(bias + v * kLanes);
                if (keep && v * kLanes < columns) store_some(keep + row * hidden + v * kLanes, sum, columns - v * kLanes);
                numbers[v] = sum;
              }
              gelu.activate(numbers);
              if (of_hidden.is_on()) {
                const RowKeys keys = of_hidden.keys(start + block + row);
                for (int v = 0; v < kStep / kLanes; ++v) numbers[v] = of_hidden(numbers[v], keys, g * kGroup + v * kLanes);
              }
              Products::set(chunk, chunk_size, row, g - h, numbers);
            };
            Products::multiply_rows_beside(rows_now, size, some_rows, weights, columns, width, activate);
          }
          const int64_t length = chunk_groups * kGroup;
          for (int64_t g = 0; g < groups; ++g) {
            const int columns = at_most(kGroup, width, g * kGroup);
            float* target = result + block * stride + g * kGroup;
            const Number* weights = second + g * hidden_size + Products::right_size(h * kGroup);
            add_products<Products>((const Number*)chunk, chunk_size, some_rows, weights, columns, length, {target, stride});
          }
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        const RowKeys keys = of_result.keys(start + i);
        for_each_vector(width, [&](int j, int some_columns) {
          Vector found = load(result + i * stride + j);
          if (of_result.is_on()) {
            found = of_result(found, keys, j);
            if (residual) found += load_some(from + i * width + j, some_columns);
          }
          store_some(out + (start + i) * width + j, found, some_columns);
        });
      }
    });
    if (kept) finish_past_caches();
  }
}

}  // namespace scalablevit
