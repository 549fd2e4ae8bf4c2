// Depthwise convolutions of channels-last maps, and gradients of their parameters: 3x3 with zeros around the map (LIM, PEG),
// and over cells, whose sides are as long as the steps between them.
//
// Axes: b batch, h height, w width, c channels, r positions along each side of a cell. Channels lie side by side. Taps come
// before channels, in float32: (9, c) or (r * r, c).

#pragma once

#include "norms.h"

namespace scalablevit {

struct MapStrides {
  int64_t b, h, w;
};

// Of a position, column by column, from top to bottom; zeros outside the map.
typedef Vector Neighbours[3][3];

// Calls `body(i, neighbours)` for `length` positions of a row from (y, x) on, of `count` channels of an image's map. Each
// column is read once for the three positions that it is next to.
template <typename T, typename Body>
inline void along_row(const T* map, int height, int width, MapStrides strides, int y, int x, int length, int channel,
                      int count, Body body) {
  Neighbours columns;
  auto read = [&](int at, Vector* column) {
    for (int dy = -1; dy <= 1; ++dy) {
      const bool inside = at >= 0 && at < width && y + dy >= 0 && y + dy < height;
      column[dy + 1] = inside ? load_some(map + (y + dy) * strides.h + at * strides.w + channel, count) : Vector{};
    }
  };
  read(x - 1, columns[0]);
  read(x, columns[1]);
  for (int i = 0; i < length; ++i) {
    read(x + i + 1, columns[2]);
    body(i, columns);
    for (int dy = 0; dy < 3; ++dy) columns[0][dy] = columns[1][dy], columns[1][dy] = columns[2][dy];
  }
}

// (channels, taps) to (taps, channels).
inline void turn_taps(const float* weight, int64_t channels, int64_t taps, float* out) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t tap = 0; tap < taps; ++tap) out[tap * channels + c] = weight[c * taps + tap];
}

// The factors of a 3x3 convolution for some channels; without a bias it is null.
struct Taps {
  Vector factors[9], bias;

  Taps(const float* weight, const float* of_all, int channels, int channel, int count)
      : bias(of_all ? load_some(of_all + channel, count) : Vector{}) {
    for (int i = 0; i < 9; ++i) factors[i] = load_some(weight + i * channels + channel, count);
  }
  Vector operator()(const Neighbours& columns) const {
    Vector total = bias;
    for (int dx = 0; dx < 3; ++dx)
      for (int dy = 0; dy < 3; ++dy) total += columns[dx][dy] * factors[3 * dy + dx];
    return total;
  }
};

// out = the 3x3 convolution of x, plus bias, and plus x if `residual`. Maps are contiguous.
template <typename T>
void convolve_depthwise(const T* x, const float* weight, const float* bias, T* out, int64_t b, int height, int width,
                        int channels, bool residual, int threads) {
  const MapStrides strides{(int64_t)height * width * channels, (int64_t)width * channels, channels};
#pragma omp parallel for schedule(static) num_threads(threads) if (b * strides.b > kAlone)
  for (int64_t row = 0; row < b * height; ++row) {
    const T* image = x + row / height * strides.b;
    for_each_vector(channels, [&](int channel, int count) {
      const Taps taps(weight, bias, channels, channel, count);
      along_row(image, height, width, strides, (int)(row % height), 0, width, channel, count,
                [&](int i, const Neighbours& columns) {
                  Vector found = taps(columns);
                  if (residual) found += columns[1][1];
                  store_some(out + row * strides.h + i * strides.w + channel, found, count);
                });
    });
  }
}

// What comes from Python, as it lies in an array of 64-bit integers.
struct DepthwiseBlock {
  const void* x;               // (b, h, w, c), of type T
  const float *weight, *bias;  // (c, 9) and (c), or null
  void *workspace, *out;       // 9 * c in float32; (b, h, w, c)
  int64_t b, height, width, channels, adds;
};

template <typename T>
void convolve_depthwise(const DepthwiseBlock& a, int threads) {
  float* taps = (float*)a.workspace;
  turn_taps(a.weight, a.channels, 9, taps);
  const int height = (int)a.height, width = (int)a.width, channels = (int)a.channels;
  convolve_depthwise((const T*)a.x, taps, a.bias, (T*)a.out, a.b, height, width, channels, a.adds, threads);
}

// Gradients of weight and bias of a 3x3 convolution of x, from that of its result, a contiguous map: (10, c), the bias last.
template <typename T>
void differentiate_depthwise(const T* grad, const T* x, float* out, int64_t b, int height, int width, int channels,
                             MapStrides strides, int threads) {
  constexpr int64_t rows_of_part = 8;
  float* const sums_of[] = {out};
  sum_in_parts(b * height, rows_of_part, 10 * channels, 0, threads, sums_of, [=](int64_t begin, int64_t end, float* const* to) {
    for (int64_t row = begin; row < end; ++row) {
      const T *image = x + row / height * strides.b, *grads = grad + row * width * channels;
      for_each_vector(channels, [&](int channel, int count) {
        Vector sums[10] = {};
        along_row(image, height, width, strides, (int)(row % height), 0, width, channel, count,
                  [&](int i, const Neighbours& columns) {
                    const Vector g = load_some(grads + (int64_t)i * channels + channel, count);
                    for (int dx = 0; dx < 3; ++dx)
                      for (int dy = 0; dy < 3; ++dy) sums[3 * dy + dx] += g * columns[dx][dy];
                    sums[9] += g;
                  });
        for (int i = 0; i < 10; ++i) {
          float* of_tap = to[0] + i * channels + channel;
          store_some(of_tap, load_some(of_tap, count) + sums[i], count);
        }
      });
    }
  });
}

// Gradients of a convolution over cells of x, (b, h, w, c), from that of its result, (b, h / r, w / r, c): for x, if `grad_x`
// is there, which keeps what it has beyond the last whole cell, and for the parameters, (r * r + 1, c), the bias last.
template <typename T>
void differentiate_cells(const T* grad, const T* x, const float* weight, T* grad_x, float* of_parameters, int64_t b,
                         int height, int width, int channels, int r, int threads) {
  const int rows = height / r, columns = width / r, taps = r * r;
  constexpr int64_t rows_of_part = 4;  // of cells
  const int of_all = (taps + 1) * channels;
  float* const sums_of[] = {of_parameters};
  sum_in_parts(b * rows, rows_of_part, of_all, 0, threads, sums_of, [=](int64_t begin, int64_t end, float* const* all) {
    for (int64_t row = begin; row < end; ++row) {
      const T* grads = grad + row * columns * channels;
      float* sums = all[0];
      for (int tap = 0; tap < taps; ++tap) {
        const int64_t y = row / rows * height + row % rows * r + tap / r;
        const int64_t start = (y * width + tap % r) * channels;
        for_each_vector(channels, [&](int channel, int count) {
          const Vector factor = load_some(weight + (int64_t)tap * channels + channel, count);
          Vector sum = {}, of_bias = {};
          for (int column = 0; column < columns; ++column) {
            const Vector g = load_some(grads + (int64_t)column * channels + channel, count);
            const int64_t at = start + (int64_t)column * r * channels + channel;
            sum += g * load_some(x + at, count), of_bias += g;
            if (grad_x) store_some(grad_x + at, g * factor, count);
          }
          float *to = sums + (int64_t)tap * channels + channel, *bias = sums + (int64_t)taps * channels + channel;
          store_some(to, load_some(to, count) + sum, count);
          if (tap == 0) store_some(bias, load_some(bias, count) + of_bias, count);
        });
      }
    }
  });
}

}  // namespace scalablevit
