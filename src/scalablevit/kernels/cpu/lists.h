// Attention of any number of queries to a short list of keys.
//
// Axes: b batch, n heads, q queries, k keys, d width of a query and key head, e of a value head. Strides are counted in
// elements; the channels of a head lie side by side. What is dropped from are rows of weights (b, n, q).

#pragma once

#include "shared_parts.h"
#include "units.h"

namespace scalablevit {

struct ListStrides {  // of (b, n, length, width)
  int64_t b, n, row;
};

template <typename Work, typename T>
void attend_to_list_in(const T* query, const T* key, const T* value, T* out, int b, int heads, int queries, int keys,
                       int key_width, int value_width, ListStrides query_strides, ListStrides key_strides,
                       ListStrides value_strides, float scale, Dropout dropout, int threads) {
  constexpr int kPiece = 4 * Work::kQueries;  // that a thread takes at once, so that few heads keep all threads busy
  const int pieces = (queries + kPiece - 1) / kPiece;
  const int64_t tasks = (int64_t)b * heads * pieces;
  SharedParts parts(tasks, threads);
#pragma omp parallel num_threads(threads)
  {
    Work work(keys, key_width, value_width);
    if constexpr (Work::kDrops) work.dropout = dropout;
    int64_t held = -1;  // whose keys and values the workspace has
    parts.for_each([&](int64_t task) {
      const int64_t pair = task / pieces, image = pair / heads, n = pair % heads;
      const T* first_key = key + image * key_strides.b + n * key_strides.n;
      const T* first_value = value + image * value_strides.b + n * value_strides.n;
      if (pair != held)
        work.set_keys(
            keys, [&](int k) { return first_key + k * key_strides.row; },
            [&](int k) { return first_value + k * value_strides.row; });
      held = pair;
      const int begin = (int)(task % pieces) * kPiece, end = std::min(queries, begin + kPiece);
      for (int first = begin; first < end; first += Work::kQueries) {
        const T* rows = query + image * query_strides.b + n * query_strides.n + first * query_strides.row;
        T* target = out + ((image * queries + first) * heads + n) * value_width;  // heads side by side
        if constexpr (Work::kDrops) work.set_rows(pair * queries + first);
        attend_block(
            work, std::min(Work::kQueries, end - first), scale, [&](int q) { return rows + q * query_strides.row; },
            [&](int q, int e, Vector found) {
              store_some(target + (int64_t)q * heads * value_width + e, found, value_width - e);
            });
      }
    });
  }
}

template <typename T>
void attend_to_list(const T* query, const T* key, const T* value, T* out, int b, int heads, int queries, int keys,
                    int key_width, int value_width, ListStrides query_strides, ListStrides key_strides,
                    ListStrides value_strides, float scale, Dropout dropout, int threads) {
  with_workspace<T>(keys, dropout.is_on(), [&](auto kind) {
    attend_to_list_in<typename decltype(kind)::Type>(query, key, value, out, b, heads, queries, keys, key_width, value_width,
                                                     query_strides, key_strides, value_strides, scale, dropout, threads);
  });
}

// Gradients lie in memory as results do: (b, length, n, width), heads side by side.
template <typename T>
void differentiate_list(const T* grad, const T* query, const T* key, const T* value, T* grad_query, T* grad_key,
                        T* grad_value, int b, int heads, int queries, int keys, int key_width, int value_width,
                        ListStrides grad_strides, ListStrides query_strides, ListStrides key_strides,
                        ListStrides value_strides, float scale, Dropout dropout, int threads) {
  SharedParts parts((int64_t)b * heads, threads);
#pragma omp parallel num_threads(threads)
  {
    GradientWorkspace work(keys, key_width, value_width);
    work.dropout = dropout;
    parts.for_each([&](int64_t pair) {
      const int64_t image = pair / heads, n = pair % heads;
      const T* first_key = key + image * key_strides.b + n * key_strides.n;
      const T* first_value = value + image * value_strides.b + n * value_strides.n;
      work.set_keys(
          keys, [&](int k) { return first_key + k * key_strides.row; },
          [&](int k) { return first_value + k * value_strides.row; });
      work.clear();
      for (int first = 0; first < queries; first += kBlock) {
        const T* rows = query + image * query_strides.b + n * query_strides.n + first * query_strides.row;
        const T* grads = grad + image * grad_strides.b + n * grad_strides.n + first * grad_strides.row;
        T* target = grad_query + ((image * queries + first) * heads + n) * key_width;
        work.set_rows(pair * queries + first);
        differentiate_block(
            work, std::min(kBlock, queries - first), scale, [&](int q) { return rows + q * query_strides.row; },
            [&](int q) { return grads + q * grad_strides.row; },
            [&](int q, int d, Vector found) {
              store_some(target + (int64_t)q * heads * key_width + d, found, key_width - d);
            });
      }
      for (int k = 0; k < keys; ++k) {
        const int64_t row = (image * keys + k) * heads + n;
        for (int d = 0; d < key_width; d += kLanes)
          store_some(grad_key + row * key_width + d, load(&work.grad_key[(size_t)k * work.key_stride + d]), key_width - d);
        for (int e = 0; e < value_width; e += kLanes)
          store_some(grad_value + row * value_width + e, load(&work.grad_value[(size_t)k * work.value_stride + e]),
                     value_width - e);
      }
    });
  }
}

}  // namespace scalablevit
