// Branches of a block from the norm before them to the sum with the residual stream behind it: the attentions and the
// feed-forward.
//
// Axes: b batch, h height, w width, c channels, n heads, d width of a query and key head, d' of a value head, r positions
// along each side of a cell, f channels of a hidden layer. Maps are contiguous. Nothing here multiplies; what does is called
// one after the other, with what lies between in one workspace.

#pragma once

#include "few_rows.h"
#include "lists.h"
#include "shared_parts.h"
#include "windows.h"
#include "winograd.h"

namespace scalablevit {

// What comes from Python, as it lies in an array of 64-bit integers. Biases of projections may be null.
struct WindowBlock {
  const void* x;  // (b, h, w, c), of type T
  const float *norm_weight, *norm_bias;
  LayerWeight projection;  // (2nd + nd', c), of type W: queries and keys, then values
  const float* projection_bias;
  const float *lim_weight, *lim_bias;  // (nd', 9), or (nd', nd', 9) of a dense one, and (nd')
  LayerWeight to_out;                  // (c, nd'), of type W
  const float* out_bias;
  // Of the workspace Python reads what lies behind the taps, for the backward pass (`kernels/cpu/blocks.py`).
  void *workspace, *out;  // as large as Python has it, (b, h, w, c)
  int64_t b, height, width, channels, heads, key_width, value_width, window_height, window_width, adds, is_dense;
};

struct ListBlock {
  const void* x;  // (b, h, w, c), of type T
  const float *norm_weight, *norm_bias;
  LayerWeight to_query;  // (nd, c), of type W
  const float* query_bias;
  // Of a reduction by more than 1: the depthwise convolution over cells, (c, r, r) and (c), the layer that scales channels,
  // (nd, c) of type W and (nd), and the norm behind it. All null where the last layer reads the cells themselves.
  const float *cell_weight, *cell_bias;
  LayerWeight scaling;
  const float *scaling_bias, *inner_weight, *inner_bias;
  LayerWeight to_key_value;  // (nd + nd', nd, c or rrc), of type W
  const float* key_value_bias;
  LayerWeight to_out;  // (c, nd'), of type W
  const float* out_bias;
  void *workspace, *out;
  int64_t b, height, width, channels, heads, key_width, value_width, factor, adds;
};

struct FeedForwardBlock {
  const void* x;                         // (rows, c), of type T
  const float *norm_weight, *norm_bias;  // null for none
  LayerWeight weight1;                   // (f, c), of type W
  const float* bias1;
  LayerWeight weight2;  // (c, f), of type W
  const float* bias2;
  void *kept, *out;  // (rows, f), where what the first layer gives goes, or null; (rows, c)
  int64_t rows, channels, hidden, adds;
};

// A layer of rows, whichever way is faster.
template <typename T, typename W, typename Rows>
void apply_to_rows(const Rows& read, LayerWeight weight, const float* bias, const T* residual, T* out, T* second, int64_t rows,
                   int columns, int first_columns, int threads) {
  with_products<T>([&](auto kind) {
    using Products = typename decltype(kind)::Type;
    if (!weight.kept && are_few_for_linear(rows, read.width))  // weights that are packed already need not be spared
      return linear_of_few<Products>(read, (const W*)weight.data, bias, residual, out, second, rows, columns, first_columns,
                                     threads);
    linear<Products, Rows, T, W>(read, weight, bias, residual, out, second, rows, columns, first_columns, threads);
  });
}

// Likewise, of positions through a norm, if there is one.
template <typename T, typename W>
void apply_linear(const T* x, const float* norm_weight, const float* norm_bias, float eps, LayerWeight weight,
                  const float* bias, const T* residual, T* out, T* second, int64_t rows, int width, int columns,
                  int first_columns, int threads) {
  if (rows <= kFewest)
    return linear_of_fewest<T, W>(x, norm_weight, norm_bias, eps, (const W*)weight.data, bias, residual, out, second, rows,
                                  width, columns, first_columns, threads);
  const NormedRows<T> read{x, norm_weight, norm_bias, eps, width};
  apply_to_rows<T, W>(read, weight, bias, residual, out, second, rows, columns, first_columns, threads);
}

template <typename T, typename W>
void apply_linear(const T* x, LayerWeight weight, const float* bias, const T* residual, T* out, int64_t rows, int width,
                  int columns, int threads) {
  apply_linear<T, W>(x, nullptr, nullptr, 0.0f, weight, bias, residual, out, nullptr, rows, width, columns, columns, threads);
}

template <typename T, typename W>
void attend_in_windows_block(const WindowBlock& a, float eps, float scale, int threads) {
  const int64_t rows = a.b * a.height * a.width;
  const int of_keys = (int)(2 * a.heads * a.key_width), of_values = (int)(a.heads * a.value_width), c = (int)a.channels;
  float* taps = (float*)a.workspace;
  T *query_key = (T*)(taps + 9 * of_values), *value = query_key + rows * of_keys, *attended = value + rows * of_values;
  const T* x = (const T*)a.x;
  if (!a.is_dense) turn_taps(a.lim_weight, of_values, 9, taps);
  apply_linear<T, W>(x, a.norm_weight, a.norm_bias, eps, a.projection, a.projection_bias, nullptr, query_key, value,
                     rows, c, of_keys + of_values, of_keys, threads);
  const MapStrides of_query_key{a.height * a.width * of_keys, a.width * of_keys, of_keys};
  const MapStrides of_value{a.height * a.width * of_values, a.width * of_values, of_values};
  attend_in_windows<T>(query_key, value, attended, a.is_dense ? nullptr : taps, a.lim_bias, (int)a.b, (int)a.height,
                       (int)a.width, (int)a.heads, (int)a.key_width, (int)a.value_width, of_query_key, of_value,
                       (int)a.window_height, (int)a.window_width, scale, threads);
  if constexpr (std::is_same_v<T, float>) {
    const MapTiles tiles{a.b, a.height, a.width};
    const Weight lim{a.lim_weight, 9 * of_values, 9, 1};
    if (a.is_dense) convolve(value, lim, a.lim_bias, attended, tiles, of_values, of_values, true, threads);
  } else if (a.is_dense) {
    std::abort();  // in other types nobody asks for it
  }
  apply_linear<T, W>(attended, a.to_out, a.out_bias, a.adds ? x : nullptr, (T*)a.out, rows, of_values, c, threads);
}

// Cells of a map through a norm, their positions side by side, row by row, (b * h / r * w / r, rrc): rows as `linear` reads
// them. What is beyond the last whole cell is left out.
template <typename T>
struct NormedCells {
  const ListBlock& of;
  float eps;
  int width;  // rrc

  int64_t most(int64_t most) const { return width > 512 ? most * 512 / width : most; }  // long rows leave the second cache
  int64_t room() const { return (int64_t)kGroup * width; }

  template <typename Body>
  void with_side(int64_t start, int rows, float* room, Body body) const {
    const int64_t r = of.factor, columns = of.width / r, cells = of.height / r * columns;
    float* to = room;
    for (int64_t cell = start; cell < start + rows; ++cell) {
      const int64_t top = cell / cells * of.height + cell % cells / columns * r, left = cell % columns * r;
      for (int64_t i = 0; i < r * r; ++i, to += of.channels)
        normalise_row((const T*)of.x + ((top + i / r) * of.width + left + i % r) * of.channels, of.norm_weight, of.norm_bias,
                      to, (int)of.channels, eps);
    }
    body(Side<float>{room, width, 1});
  }

  template <typename Products>
  void pack_left(int64_t start, int rows, float* room, typename Products::Number* target) const {
    with_side(start, rows, room, [&](auto side) { Products::pack_left(side, 0, rows, 0, width, target); });
  }
};

// The norm of a map (b, h, w, c), convolved cell by cell: (b, h / r, w / r, c). What is beyond the last whole cell is left out.
template <typename T>
void reduce_normed(const ListBlock& a, const float* taps, float eps, T* out, int threads) {
  const int64_t r = a.factor, rows = a.height / r, columns = a.width / r, c = a.channels;
  SharedParts cells(a.b * rows * columns, threads);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> sums(round_up((int)c, kLanes));
    cells.for_each([&](int64_t cell) {
      const int64_t image = cell / (rows * columns), y = cell / columns % rows * r, x = cell % columns * r;
      for_each_vector((int)c, [&](int i, int count) { store(&sums[i], load_some(a.cell_bias + i, count)); });
      for (int64_t tap = 0; tap < r * r; ++tap) {
        const T* from = (const T*)a.x + ((image * a.height + y + tap / r) * a.width + x + tap % r) * c;
        const Moments of = moments(from, (int)c, eps);
        for_each_vector((int)c, [&](int i, int count) {
          const Vector centred = (load_some(from + i, count) - of.mean) * of.factor;
          const Vector normed = centred * load_some(a.norm_weight + i, count) + load_some(a.norm_bias + i, count);
          store(&sums[i], load(&sums[i]) + normed * load_some(taps + tap * c + i, count));
        });
      }
      for_each_vector((int)c, [&](int i, int count) { store_some(out + cell * c + i, load(&sums[i]), count); });
    });
  }
}

// x = gelu(norm(x)), row by row.
template <typename T>
void normalise_and_activate(T* x, const float* weight, const float* bias, int64_t rows, int width, float eps, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > kAlone)
  for (int64_t row = 0; row < rows; ++row) {
    T* p = x + row * width;
    const Moments of = moments(p, width, eps);
    for_each_vector(width, [&](int i, int count) {
      const Vector centred = (load_some(p + i, count) - of.mean) * of.factor;
      store_some(p + i, gelu<T>(centred * load_some(weight + i, count) + load_some(bias + i, count)), count);
    });
  }
}

template <typename T, typename W>
void attend_to_list_block(const ListBlock& a, float eps, float inner_eps, float scale, int threads) {
  const int64_t r = a.factor, rows = a.b * a.height * a.width, keys = a.height / r * (a.width / r), cells = a.b * keys;
  const int of_keys = (int)(a.heads * a.key_width), of_values = (int)(a.heads * a.value_width), c = (int)a.channels;
  const int of_both = of_keys + of_values;
  float* taps = (float*)a.workspace;
  T *query = (T*)(taps + r * r * c), *key_value = query + rows * of_keys, *attended = key_value + cells * of_both;
  T *reduced = attended + rows * of_values, *scaled = reduced + cells * c;  // only where r is above 1
  const T* x = (const T*)a.x;
  const auto project = [&](LayerWeight weight, const float* bias, T* out, int columns) {
    apply_linear<T, W>(x, a.norm_weight, a.norm_bias, eps, weight, bias, nullptr, out, nullptr, rows, c, columns,
                       columns, threads);
  };
  project(a.to_query, a.query_bias, query, of_keys);
  if (r == 1) {
    project(a.to_key_value, a.key_value_bias, key_value, of_both);
  } else if (!a.cell_weight) {
    const NormedCells<T> read{a, eps, (int)(r * r * c)};
    apply_to_rows<T, W>(read, a.to_key_value, a.key_value_bias, (const T*)nullptr, key_value, (T*)nullptr, cells, of_both,
                        of_both, threads);
  } else {
    turn_taps(a.cell_weight, c, r * r, taps);
    reduce_normed(a, taps, eps, reduced, threads);
    apply_linear<T, W>(reduced, a.scaling, a.scaling_bias, nullptr, scaled, cells, c, of_keys, threads);
    normalise_and_activate(scaled, a.inner_weight, a.inner_bias, cells, of_keys, inner_eps, threads);
    apply_linear<T, W>(scaled, a.to_key_value, a.key_value_bias, nullptr, key_value, cells, of_keys, of_both,
                       threads);
  }
  const ListStrides of_query{a.height * a.width * of_keys, a.key_width, of_keys};
  attend_to_list<T>(query, key_value, key_value + of_keys, attended, (int)a.b, (int)a.heads, (int)(a.height * a.width),
                    (int)keys, (int)a.key_width, (int)a.value_width, of_query, {keys * of_both, a.key_width, of_both},
                    {keys * of_both, a.value_width, of_both}, scale, {0, 0.0}, threads);
  apply_linear<T, W>(attended, a.to_out, a.out_bias, a.adds ? x : nullptr, (T*)a.out, rows, of_values, c, threads);
}

template <typename T, typename W>
void feed_forward_block(const FeedForwardBlock& a, float eps, Dropout of_hidden, Dropout of_result, int threads) {
  const int c = (int)a.channels, f = (int)a.hidden;
  const T* x = (const T*)a.x;
  const bool may_be_turned = !a.kept && !of_hidden.is_on() && !a.weight1.kept && !a.weight2.kept;
  with_products<T>([&](auto kind) {
    using Products = typename decltype(kind)::Type;
    if (may_be_turned && are_few_for_feed_forward(a.rows, c))
      return feed_forward_of_few<Products>(x, a.norm_weight, a.norm_bias, eps, (const W*)a.weight1.data, a.bias1,
                                           (const W*)a.weight2.data, a.bias2, (T*)a.out, a.rows, c, f, a.adds, threads);
    feed_forward<Products, T, W>(x, a.norm_weight, a.norm_bias, eps, a.weight1, a.bias1, a.weight2, a.bias2, (T*)a.out,
                                 (T*)a.kept, a.rows, c, f, a.adds, of_hidden, of_result, threads);
  });
}

}  // namespace scalablevit
