// Attention inside the windows of a channels-last map, read and written in place, plus LIM's convolution.
//
// Axes: b batch, h height, w width, n heads, d width of a query and key head, e of a value head. Strides are counted in
// elements; channels lie side by side.

#pragma once

#include "depthwise.h"
#include "shared_parts.h"
#include "units.h"

namespace scalablevit {

// A depthwise 3x3 convolution of the value map, zero outside its border.
template <typename T>
struct Lim {
  const float *weight, *bias;  // (9, channels), (channels)
  int channels, height, width;
  MapStrides strides;

  // Of `count` channels, for `length` positions of a row from (y, x) on; `value` is the image's map.
  void along(const T* value, int y, int x, int length, int channel, int count, float* out, int out_stride) const {
    const Taps taps(weight, bias, channels, channel, count);
    along_row(value, height, width, strides, y, x, length, channel, count,
              [&](int i, const Neighbours& columns) { store(out + i * out_stride, taps(columns)); });
  }
};

struct Position {
  int y, x;
};

// The grid of windows of a map, and the real positions of one window: those outside the map are no keys at all.
struct Windows {
  int height, width, window_height, window_width, rows, columns;
  int64_t image = 0;
  int keys = 0, columns_inside = 0;
  std::vector<Position> positions;

  Windows(int height, int width, int window_height, int window_width)
      : height(height),
        width(width),
        window_height(window_height),
        window_width(window_width),
        rows((height + window_height - 1) / window_height),
        columns((width + window_width - 1) / window_width),
        positions((size_t)window_height * window_width) {}

  void go_to(int64_t task) {
    image = task / (rows * columns);
    const int top = (int)(task / columns % rows) * window_height, left = (int)(task % columns) * window_width;
    keys = 0;
    columns_inside = std::min(window_width, width - left);
    for (int y = top; y < std::min(top + window_height, height); ++y)
      for (int x = left; x < std::min(left + window_width, width); ++x) positions[keys++] = {y, x};
  }

  template <typename T>
  T* at(T* map, MapStrides strides, int k) const {
    return map + image * strides.b + positions[k].y * strides.h + positions[k].x * strides.w;
  }

  // LIM of a head's channels at each position of the window: (k, stride).
  template <typename T>
  void interact(const Lim<T>& lim, const T* value, int channel, int channels, float* out, int stride) const {
    for (int k = 0; k < keys; k += columns_inside)
      for (int e = 0; e < channels; e += kLanes)
        lim.along(value + image * lim.strides.b, positions[k].y, positions[k].x, columns_inside, channel + e, channels - e,
                  out + (int64_t)k * stride + e, stride);
  }
};

template <typename Work, typename T>
void attend_in_windows_in(const T* query_key, const T* value, T* out, const float* lim_weight, const float* lim_bias, int b,
                          int height, int width, int heads, int key_width, int value_width, MapStrides query_key_strides,
                          MapStrides value_strides, int window_height, int window_width, float scale, int threads) {
  const int channels = heads * value_width;
  const Lim<T> lim{lim_weight, lim_bias, channels, height, width, value_strides};
  const MapStrides out_strides{(int64_t)height * width * channels, (int64_t)width * channels, channels};
  const Windows grid(height, width, window_height, window_width);
  SharedParts parts((int64_t)b * grid.rows * grid.columns, threads);
#pragma omp parallel num_threads(threads)
  {
    Windows windows = grid;
    Work work(window_height * window_width, key_width, value_width);
    const int stride = round_up(value_width, kLanes);
    std::vector<float> interaction(lim.weight ? (size_t)window_height * window_width * stride : 0);
    parts.for_each([&](int64_t task) {
      windows.go_to(task);
      for (int n = 0; n < heads; ++n) {
        const T *queries = query_key + n * key_width, *keys = queries + heads * key_width, *values = value + n * value_width;
        work.set_keys(
            windows.keys, [&](int k) { return windows.at(keys, query_key_strides, k); },
            [&](int k) { return windows.at(values, value_strides, k); });
        if (lim.weight) windows.interact(lim, value, n * value_width, value_width, interaction.data(), stride);
        for (int first = 0; first < windows.keys; first += Work::kQueries)
          attend_block(
              work, std::min(Work::kQueries, windows.keys - first), scale,
              [&](int q) { return windows.at(queries, query_key_strides, first + q); },
              [&](int q, int e, Vector found) {
                if (lim.weight) found += load(&interaction[(size_t)(first + q) * stride + e]);
                store_some(windows.at(out, out_strides, first + q) + n * value_width + e, found, value_width - e);
              });
      }
    });
  }
}

template <typename T>
void attend_in_windows(const T* query_key, const T* value, T* out, const float* lim_weight, const float* lim_bias, int b,
                       int height, int width, int heads, int key_width, int value_width, MapStrides query_key_strides,
                       MapStrides value_strides, int window_height, int window_width, float scale, int threads) {
  with_workspace<T>(window_height * window_width, false, [&](auto kind) {
    attend_in_windows_in<typename decltype(kind)::Type>(query_key, value, out, lim_weight, lim_bias, b, height, width, heads,
                                                        key_width, value_width, query_key_strides, value_strides,
                                                        window_height, window_width, scale, threads);
  });
}

// The gradients of maps are contiguous. LIM's part in that of values is the convolution of `grad` with its weight
// turned by half a turn, which is what comes as `lim_weight`; `lim_bias` is zeros.
template <typename T>
void differentiate_in_windows(const T* grad, const T* query_key, const T* value, T* grad_query_key, T* grad_value,
                              const float* lim_weight, const float* lim_bias, int b, int height, int width, int heads,
                              int key_width, int value_width, MapStrides grad_strides, MapStrides query_key_strides,
                              MapStrides value_strides, int window_height, int window_width, float scale, int threads) {
  const int channels = heads * value_width, qk_channels = 2 * heads * key_width;
  const Lim<T> lim{lim_weight, lim_bias, channels, height, width, grad_strides};
  const MapStrides to_query_key{(int64_t)height * width * qk_channels, (int64_t)width * qk_channels, qk_channels};
  const MapStrides to_value{(int64_t)height * width * channels, (int64_t)width * channels, channels};
  const Windows grid(height, width, window_height, window_width);
  SharedParts parts((int64_t)b * grid.rows * grid.columns, threads);
#pragma omp parallel num_threads(threads)
  {
    Windows windows = grid;
    GradientWorkspace work(window_height * window_width, key_width, value_width);
    std::vector<float> interaction(lim.weight ? work.value.size() : 0);
    parts.for_each([&](int64_t task) {
      windows.go_to(task);
      for (int n = 0; n < heads; ++n) {
        const int query_channel = n * key_width, key_channel = (heads + n) * key_width, value_channel = n * value_width;
        work.set_keys(
            windows.keys, [&](int k) { return windows.at(query_key, query_key_strides, k) + key_channel; },
            [&](int k) { return windows.at(value, value_strides, k) + value_channel; });
        work.clear();
        for (int first = 0; first < work.keys; first += kBlock)
          differentiate_block(
              work, std::min(kBlock, work.keys - first), scale,
              [&](int q) { return windows.at(query_key, query_key_strides, first + q) + query_channel; },
              [&](int q) { return windows.at(grad, grad_strides, first + q) + value_channel; },
              [&](int q, int d, Vector found) {
                store_some(windows.at(grad_query_key, to_query_key, first + q) + query_channel + d, found, key_width - d);
              });
        if (lim.weight) windows.interact(lim, grad, value_channel, value_width, interaction.data(), work.value_stride);
        for (int k = 0; k < work.keys; ++k) {
          T* key_row = windows.at(grad_query_key, to_query_key, k) + key_channel;
          for (int d = 0; d < key_width; d += kLanes)
            store_some(key_row + d, load(&work.grad_key[(size_t)k * work.key_stride + d]), key_width - d);
          T* value_row = windows.at(grad_value, to_value, k) + value_channel;
          for (int e = 0; e < value_width; e += kLanes) {
            const size_t at = (size_t)k * work.value_stride + e;
            Vector found = load(&work.grad_value[at]);
            if (lim.weight) found += load(&interaction[at]);
            store_some(value_row + e, found, value_width - e);
          }
        }
      }
    });
  }
}

}  // namespace scalablevit
