// Linear layers and feed-forwards of few rows, by a policy of `packing.h`: channels lie in the rows of products, positions in
// their columns.
//
// The other way round (`linear.h`, `feed_forward.h`) all weights are turned as they are packed, which with few rows takes as
// long as a good part of the product. Here the weights of some channels at a time are the left side, whose numbers are packed
// as they lie, into the first caches; what is turned is the rows, and at the end the results. The hidden layer of a
// feed-forward is the right side of the second product in the order in which the first product gives it.

#pragma once

#include <vector>

#include "feed_forward.h"

namespace scalablevit {

// Where this way is the faster one, for a linear layer and for a feed-forward that reads so many channels.
inline bool are_few_for_linear(int64_t rows, int width) { return 2 * rows <= width; }
inline bool are_few_for_feed_forward(int64_t rows, int width) { return rows <= width; }

// So few rows that weights are best met by them as they come from memory, in sums one by one.
constexpr int64_t kFewest = 2;

// How the products of channels with rows are divided among threads: in groups of channels, and, where those are few, in parts
// of the groups of rows as well.
struct Shares {
  int64_t groups, parts, units;

  Shares(int64_t channels, int64_t groups, int threads) : groups(groups) {
    const int64_t items = groups_of(channels);
    parts = items == 0 || items >= 4 * threads ? 1 : std::min<int64_t>(groups, divided_up(4 * threads, items));
    units = items * parts;
  }
  int64_t channel(int64_t unit) const { return unit / parts * kGroup; }
  int64_t begin(int64_t unit) const { return groups * (unit % parts) / parts; }
  int64_t end(int64_t unit) const { return groups * (unit % parts + 1) / parts; }
};

// Calls `body(group, sums)` for groups of rows from `begin` to `end`, packed as right sides: sums are the products of up to
// kGroup channels' weights with the rows of the group, (channels, kGroup). `left` is room for a packed group.
template <typename Products, typename W, typename Body>
inline void multiply_channels(Side<W> weight, int64_t channel, int channels, int64_t length, typename Products::Number* left,
                              const typename Products::Number* right, int64_t rows, int64_t begin, int64_t end, Body body) {
  constexpr int64_t block = (kGroup + (kGroup + Products::kBlockRows - 1) / Products::kBlockRows - 1) /
                            ((kGroup + Products::kBlockRows - 1) / Products::kBlockRows);  // all of about one size
  const int64_t size = Products::left_size(length), right_size = Products::right_size(length);
  alignas(64) float sums[kGroup * kGroup];
  Products::pack_left(weight, channel, channels, 0, length, left);
  for (int64_t g = begin; g < end; ++g) {
    const int columns = at_most(kGroup, rows, g * kGroup);
    for (int64_t i = 0; i < channels; i += block)
      Products::multiply_rows(
          left + i * (size / kGroup), size, at_most(block, channels, i), right + g * right_size, columns, length,
          [&](int64_t row, const float* found) { std::memcpy(sums + (i + row) * kGroup, found, kGroup * sizeof(float)); });
    body(g, sums);
  }
}

// Up to kGroup rows as a packed group of a right side.
template <typename Products, typename Rows>
inline void pack_right_rows(const Rows& x, int64_t start, int rows, float* room, typename Products::Number* target) {
  x.with_side(start, rows, room, [&](auto side) { Products::pack_right(side, 0, rows, 0, x.width, target); });
}

// Sums of channels, (channels, kGroup), plus bias and residual where they are given, to rows `stride` apart.
template <typename T>
inline void write_turned(const float* sums, int channels, int rows, const float* bias, const T* residual, T* out,
                         int64_t stride) {
  for (int c = 0; c < channels; c += kLanes) {
    const int some = std::min(kLanes, channels - c);
    const Vector of_bias = bias ? load_some(bias + c, some) : Vector{};
    for (int r = 0; r < rows; r += kLanes) {
      Vector square[kLanes] = {};
      for (int j = 0; j < some; ++j) square[j] = load(sums + (c + j) * kGroup + r);
      transpose(square);
      for (int i = 0; i < std::min(kLanes, rows - r); ++i) {
        Vector sum = square[i] + of_bias;
        if (residual) sum += load_some(residual + (r + i) * stride + c, some);
        store_some(out + (r + i) * stride + c, sum, some);
      }
    }
  }
}

// As `linear`, of no more than kFewest rows: products of vectors.
template <typename T, typename W>
void linear_of_fewest(const T* x, const float* norm_weight, const float* norm_bias, float eps, const W* weight,
                      const float* bias, const T* residual, T* out, T* second, int64_t rows, int width, int columns,
                      int first_columns, int threads) {
  constexpr int kSums = 4;  // at once, as each addition waits for the one before
  const int padded = round_up(width, kSums * kLanes);
  std::vector<float> read(rows * padded);
  for (int64_t r = 0; r < rows; ++r) {
    float* to = read.data() + r * padded;
    if (norm_weight)
      normalise_row(x + r * width, norm_weight, norm_bias, to, width, eps);
    else
      for_each_vector(width, [&](int i, int count) { store_some(to + i, load_some(x + r * width + i, count), count); });
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t c = 0; c < columns; ++c) {
    const bool is_first = c < first_columns;
    const int64_t stride = is_first ? first_columns : columns - first_columns, at = c - (is_first ? 0 : first_columns);
    for (int64_t r = 0; r < rows; ++r) {
      Vector sums[kSums] = {};
      for (int i = 0; i < width; i += kSums * kLanes)
        for (int v = 0; v < kSums; ++v) {
          const int k = i + v * kLanes;
          if (k < width) sums[v] += load_some(weight + c * width + k, width - k) * load(read.data() + r * padded + k);
        }
      const int64_t place = r * stride + at;
      float sum = total((sums[0] + sums[1]) + (sums[2] + sums[3])) + (bias ? bias[c] : 0.0f);
      if (residual) sum += to_float(residual[place]);
      store_some((is_first ? out : second) + place, broadcast(sum), 1);
    }
  }
}

// As `linear`.
template <typename Products, typename Rows, typename T, typename W, typename Finish = LeaveRows>
void linear_of_few(const Rows& x, const W* weight, const float* bias, const T* residual, T* out, T* second, int64_t rows,
                   int columns, int first_columns, int threads, Finish finish = {}) {
  using Number = typename Products::Number;
  const int width = x.width;
  static thread_local Scratch of_rows;
  const int64_t groups = groups_of(rows), right_size = Products::right_size(width);
  Number* right = of_rows.take<Number>(groups * right_size);
  const Shares shares(columns, groups, threads);
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const typename Products::Session session;
    const int64_t of_left = Products::left_size(width) * sizeof(Number) / sizeof(float);
    float* room = scratch.take<float>(std::max(of_left, x.room()));
    Number* left = (Number*)room;  // one after the other
#pragma omp for schedule(dynamic)
    for (int64_t g = 0; g < groups; ++g)
      pack_right_rows<Products>(x, g * kGroup, at_most(kGroup, rows, g * kGroup), room, right + g * right_size);
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < shares.units; ++unit) {
      const int64_t channel = shares.channel(unit);
      const bool is_first = channel < first_columns;
      const int64_t stride = is_first ? first_columns : columns - first_columns;
      const int64_t at = channel - (is_first ? 0 : first_columns);
      const int channels = at_most(kGroup, columns, channel);
      multiply_channels<Products>(Side<W>{weight, width, 1}, channel, channels, width, left, right, rows, shares.begin(unit),
                                  shares.end(unit), [&](int64_t g, const float* sums) {
                                    const int64_t offset = g * kGroup * stride + at;
                                    write_turned(sums, channels, at_most(kGroup, rows, g * kGroup),
                                                 bias ? bias + channel : bias,
                                                 residual ? residual + offset : residual,
                                                 (is_first ? out : second) + offset, stride);
                                  });
    }
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) finish(row, 1);
  }
}

// As `feed_forward`, without dropout and without what is kept.
template <typename Products, typename T, typename W>
void feed_forward_of_few(const T* x, const float* norm_weight, const float* norm_bias, float eps, const W* weight1,
                         const float* bias1, const W* weight2, const float* bias2, T* out, int64_t rows, int width,
                         int hidden, bool residual, int threads) {
  using Number = typename Products::Number;
  static thread_local Scratch of_rows;
  const int64_t groups = groups_of(rows), right_size = Products::right_size(width);
  const int64_t hidden_size = Products::right_size(hidden);
  Number* right = of_rows.take<Number>(groups * (right_size + hidden_size));
  Number* activated = right + groups * right_size;
  const Shares shares(hidden, groups, threads), shares_of_result(width, groups, threads);
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const typename Products::Session session;
    const int64_t of_left = Products::left_size(std::max(width, hidden)) * sizeof(Number) / sizeof(float);
    const NormedRows<T> read{x, norm_weight, norm_bias, eps, width};
    float* room = scratch.take<float>(std::max(of_left, read.room()));
    Number* left = (Number*)room;  // one after the other
    const Gelu<T> gelu;
#pragma omp for schedule(dynamic)
    for (int64_t g = 0; g < groups; ++g)
      pack_right_rows<Products>(read, g * kGroup, at_most(kGroup, rows, g * kGroup), room, right + g * right_size);
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < shares.units; ++unit) {
      const int64_t channel = shares.channel(unit);
      const int channels = at_most(kGroup, hidden, channel);
      multiply_channels<Products>(
          Side<W>{weight1, width, 1}, channel, channels, width, left, right, rows, shares.begin(unit), shares.end(unit),
          [&](int64_t g, const float* sums) {
            for (int i = 0; i < kGroup; i += 2) {  // in pairs, as some policies pack them; zeros beyond the channels
              Vector pair[2][kGroup / kLanes] = {};
              for (int j = 0; j < std::min(2, channels - i); ++j) {
                for (int v = 0; v < kGroup / kLanes; ++v)
                  pair[j][v] = load(sums + (i + j) * kGroup + v * kLanes) + bias1[channel + i + j];
                gelu.activate(pair[j]);
              }
              Products::set_right(activated + g * hidden_size, channel + i, pair[0], pair[1]);
            }
          });
    }
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < shares_of_result.units; ++unit) {
      const int64_t channel = shares_of_result.channel(unit);
      const int channels = at_most(kGroup, width, channel);
      multiply_channels<Products>(
          Side<W>{weight2, hidden, 1}, channel, channels, hidden, left, activated, rows, shares_of_result.begin(unit),
          shares_of_result.end(unit), [&](int64_t g, const float* sums) {
            const int64_t offset = g * kGroup * width + channel;
            write_turned(sums, channels, at_most(kGroup, rows, g * kGroup), bias2 + channel, residual ? x + offset : nullptr,
                         out + offset, (int64_t)width);
          });
    }
  }
}

}  // namespace scalablevit
