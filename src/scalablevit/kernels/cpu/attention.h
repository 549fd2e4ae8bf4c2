// Attention of a block of queries to the keys of one head, and its gradients.
//
// Axes: q queries, k keys, d width of a query and key head, e of a value head. Queries lie in the lanes of vectors, keys one
// below the other. So the largest score and the sum over keys are found without a step across lanes, keys and values are
// taken as they come, and only queries and results are transposed.
//
// Keys are taken kStripe at a time, whose scores stay in the first cache: what the stripes before have given is scaled when
// a larger score comes (Milakov and Gimelshein, arXiv:1805.02867). Scores are in powers of 2, for which their factor is
// kLog2OfE times what is asked for.
//
// What is multiplied are words (`words.h`): floats, or pairs of bfloat16, of channels for scores and of keys for results.

#pragma once

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "dropout.h"
#include "words.h"

namespace scalablevit {

constexpr int kStripe = 64;
constexpr float kLog2OfE = 1.44269504088896341f;

template <typename T>
inline void copy(const T* from, float* to, int width, float factor = 1.0f) {
  for (int i = 0; i < width; i += kLanes) store(to + i, load_some(from + i, width - i) * factor);
}

// What one thread works with: a head's keys (k, d) and values (k, e), and of a block of queries their transposed rows
// (d, block) and weights (k, block), all in words, of which there are half as many where they are pairs: of channels d, and of
// keys k of values and weights; and transposed results (e, block), which are floats. Widths are rounded up to whole vectors.
template <typename Number>
struct Workspace {
  static constexpr int kNumbers = kNumbersOfWord<Number>, kQueries = kBlock;
  static constexpr bool kDrops = true;

  Dropout dropout;  // of weights
  Unsigned first_keys[kVectors], second_keys[kVectors];  // of the block's queries
  float scale = 1.0f;  // of scores
  int keys = 0, key_width, value_width, key_stride, value_stride;
  std::vector<float> key, value, query, weights, result;

  // With room for the weights of all keys at once, or of a stripe.
  Workspace(int most_keys, int key_width, int value_width, bool all_weights = false)
      : key_width(key_width),
        value_width(value_width),
        key_stride(round_up(words_of<Number>(key_width), kLanes)),
        value_stride(round_up(value_width, kLanes)),
        key((size_t)most_keys * key_stride),
        value((size_t)words_of<Number>(most_keys) * value_stride),
        query((size_t)key_stride * kBlock),
        weights((size_t)(all_weights ? most_keys : std::min(most_keys, kStripe)) * kBlock),
        result((size_t)value_stride * kBlock) {}

  // The block's weights are rows from `first` on of what is dropped from; each has as many elements as there are keys.
  void set_rows(int64_t first) {
    if (!dropout.is_on()) return;
    for (int q = 0; q < kBlock; ++q) {
      const RowKeys keys = dropout.keys(first + q);
      first_keys[q / kLanes][q % kLanes] = keys.first;
      second_keys[q / kLanes][q % kLanes] = keys.second;
    }
  }

  // Whether the weights of a vector of queries for a key are left.
  Integers leaves(int vector, int key) const {
    return dropout.leaves(first_keys[vector], second_keys[vector], (uint32_t)key - Unsigned{});
  }

  // `key_row(k)` and `value_row(k)` are those of `count` keys.
  template <typename KeyRow, typename ValueRow>
  void set_keys(int count, KeyRow key_row, ValueRow value_row) {
    keys = count;
    for (int k = 0; k < count; ++k)
      for (int word = 0; word < key_stride; word += kLanes)
        store(&key[(size_t)k * key_stride + word],
              load_words(key_row(k) + word * kNumbers, key_width - word * kNumbers, Number()));
    for (int k = 0; k < count; k += kNumbers)
      for (int e = 0; e < value_width; e += kLanes) {
        Vector numbers[kNumbers] = {};
        for (int i = 0; i < std::min(kNumbers, count - k); ++i) numbers[i] = load_some(value_row(k + i) + e, value_width - e);
        store(&value[(size_t)(k / kNumbers) * value_stride + e], words_nearest(numbers, Number()));
      }
  }
};

// `count` rows as columns from `first` on, a multiple of kLanes, of `columns`, (words of the width, block).
template <typename Number, typename T>
inline void set_columns(std::vector<float>& columns, int first, const T* const* rows, int count, int width) {
  constexpr int kNumbers = kNumbersOfWord<Number>;
  for (int word = 0; word < words_of<Number>(width); word += kLanes) {
    Vector square[kLanes] = {};
    for (int q = 0; q < count; ++q)
      square[q] = load_words(rows[q] + word * kNumbers, width - word * kNumbers, Number());
    transpose(square);
    for (int i = 0; i < kLanes; ++i) store(&columns[(size_t)(word + i) * kBlock + first], square[i]);
  }
}

// The inverse, for kLanes rows from `first` on and kLanes channels from d on.
inline void get_rows(const std::vector<float>& columns, int first, int d, Vector* rows) {
  for (int i = 0; i < kLanes; ++i) rows[i] = load(&columns[(size_t)(d + i) * kBlock + first]);
  transpose(rows);
}

struct Matrix {  // rows of words, `stride` apart; elements of a row `step` apart
  const float* data;
  int stride, step = 1;
};

// out = left @ right, plus what is there if kAdds: kCount rows, kWidth vectors, sums over `length`.
template <typename Number, bool kAdds, int kCount, int kWidth>
inline void multiply_tile(Matrix left, Matrix right, int length, float* out, int out_stride) {
  Vector sums[kCount][kWidth] = {};
  for (int i = 0; i < length; ++i) {
    Vector columns[kWidth];
    for (int v = 0; v < kWidth; ++v) columns[v] = load(right.data + (size_t)i * right.stride + v * kLanes);
    for (int r = 0; r < kCount; ++r) {
      const float word = left.data[(size_t)r * left.stride + (size_t)i * left.step];
      for (int v = 0; v < kWidth; ++v) sums[r][v] = multiply_add(sums[r][v], word, columns[v], Number());
    }
  }
  for (int r = 0; r < kCount; ++r)
    for (int v = 0; v < kWidth; ++v) {
      float* target = out + (size_t)r * out_stride + v * kLanes;
      store(target, kAdds ? load(target) + sums[r][v] : sums[r][v]);
    }
}

template <int kWidth, int kCount, bool kAdds = false, typename Number = float>
inline void multiply(Matrix left, Matrix right, int length, float* out, int out_stride, int rows) {
  for (; rows >= kCount; rows -= kCount, left.data += (size_t)kCount * left.stride, out += (size_t)kCount * out_stride)
    multiply_tile<Number, kAdds, kCount, kWidth>(left, right, length, out, out_stride);
  if constexpr (kCount > 1)
    if (rows > 0) multiply<kWidth, kCount - 1, kAdds, Number>(left, right, length, out, out_stride, rows);
}

// out += left @ right, for any number of whole vectors.
inline void add_product(Matrix left, Matrix right, int length, float* out, int out_stride, int rows, int columns) {
  for (; columns >= 2 * kLanes; columns -= 2 * kLanes, right.data += 2 * kLanes, out += 2 * kLanes)
    multiply<2, kRowsOfTwo, true>(left, right, length, out, out_stride, rows);
  if (columns > 0) multiply<1, kRowsOfOne, true>(left, right, length, out, out_stride, rows);
}

// Of kWidth vectors of queries and the keys so far: the largest score, and the sum of the powers of 2 of scores less that.
template <int kWidth>
struct Sums {
  Vector most[kWidth], total[kWidth];
};

// What the block's queries give to `count` keys from `first` on, but for the factor that is one over the sum in the end:
// work.weights, in words, of which some are dropped then. Returns what weights of the keys before are to be multiplied with.
template <int kWidth, bool kDrops, typename Number>
inline std::array<Vector, kWidth> weigh(Workspace<Number>& work, int first, int count, Sums<kWidth>& sums) {
  constexpr int kNumbers = kNumbersOfWord<Number>;
  multiply<kWidth, kRows, false, Number>({&work.key[(size_t)first * work.key_stride], work.key_stride},
                                         {work.query.data(), kBlock}, words_of<Number>(work.key_width), work.weights.data(),
                                         kBlock, count);
  Vector most[kWidth], total[kWidth];
  std::array<Vector, kWidth> factors;
  const auto score = [&](int k, int v) { return &work.weights[(size_t)k * kBlock + v * kLanes]; };
  for (int k = 0; k < count; ++k)
    for (int v = 0; v < kWidth; ++v) {
      // Rounded before they are compared, so that no difference from the largest is above zero.
      const Vector found = load(score(k, v)) * work.scale;
      store(score(k, v), found);
      most[v] = k ? larger(most[v], found) : found;
    }
  for (int v = 0; v < kWidth; ++v) {
    if (first) most[v] = larger(most[v], sums.most[v]);
    factors[v] = first ? power_of_two(sums.most[v] - most[v]) : Vector{};
    total[v] = first ? sums.total[v] * factors[v] : Vector{};
  }
  for (int k = 0; k < count; k += kNumbers) {  // a word lies no further on than the scores that it comes from
    Vector found[kNumbers * kWidth] = {};
    for (int i = 0; i < kNumbers; ++i)
      for (int v = 0; v < kWidth; ++v)
        if (kNumbers == 1 || k + i < count) found[i * kWidth + v] = load(score(k + i, v)) - most[v];
    become_powers_of_two(found);
    for (int v = 0; v < kWidth; ++v) {
      Vector words[kNumbers] = {};
      for (int i = 0; i < kNumbers; ++i) {
        if (kNumbers > 1 && k + i >= count) break;
        words[i] = found[i * kWidth + v];
        total[v] += words[i];
        if constexpr (kDrops) words[i] = work.leaves(v, first + k + i) ? words[i] : Vector{};
      }
      store(&work.weights[(size_t)(k / kNumbers) * kBlock + v * kLanes], words_nearest(words, Number()));
    }
  }
  for (int v = 0; v < kWidth; ++v) sums.most[v] = most[v], sums.total[v] = total[v];
  return factors;
}

template <int kWidth, typename Number>
inline void scale_result(Workspace<Number>& work, const std::array<Vector, kWidth>& factors) {
  for (int e = 0; e < work.value_width; ++e)
    for (int v = 0; v < kWidth; ++v) {
      float* found = &work.result[e * kBlock + v * kLanes];
      store(found, load(found) * factors[v]);
    }
}

// Attention of the kWidth vectors of queries that lie in the workspace.
template <int kWidth, bool kDrops, typename Number>
void attend(Workspace<Number>& work) {
  Sums<kWidth> sums;
  for (int first = 0; first < work.keys; first += kStripe) {
    const int count = std::min(kStripe, work.keys - first), words = words_of<Number>(count);
    const auto factors = weigh<kWidth, kDrops>(work, first, count, sums);
    const Matrix values{&work.value[(size_t)(first / work.kNumbers) * work.value_stride], 1, work.value_stride};
    const Matrix weights{work.weights.data(), kBlock};
    if (first) {
      scale_result<kWidth>(work, factors);
      multiply<kWidth, kChannels, true, Number>(values, weights, words, work.result.data(), kBlock, work.value_width);
    } else {
      multiply<kWidth, kChannels, false, Number>(values, weights, words, work.result.data(), kBlock, work.value_width);
    }
  }
  std::array<Vector, kWidth> factors;
  for (int v = 0; v < kWidth; ++v) factors[v] = (kDrops ? work.dropout.factor : 1.0f) / sums.total[v];
  scale_result<kWidth>(work, factors);
}

// Calls `body` with the number of vectors that hold `count` queries, as a constant.
template <typename Body>
inline void with_width(int count, Body body) {
  const int width = (count + kLanes - 1) / kLanes;
  if (width == 1) return body(std::integral_constant<int, 1>());
  if (width == 2) return body(std::integral_constant<int, 2>());
  if (width == 3) return body(std::integral_constant<int, std::min(3, kVectors)>());
  return body(std::integral_constant<int, kVectors>());
}

// Attention of `count` queries, whose rows `row(q)` gives, to the keys in the workspace. `finish(q, e, vector)` is told
// the result of each for kLanes channels from e on.
template <typename Number, typename Row, typename Finish>
inline void attend_block(Workspace<Number>& work, int count, float scale, Row row, Finish finish) {
  work.scale = scale * kLog2OfE;
  for (int first = 0; first < count; first += kLanes) {
    decltype(row(0)) rows[kLanes];
    const int some = std::min(kLanes, count - first);
    for (int q = 0; q < some; ++q) rows[q] = row(first + q);
    set_columns<Number>(work.query, first, rows, some, work.key_width);
  }
  with_width(count, [&](auto width) { work.dropout.is_on() ? attend<width, true>(work) : attend<width, false>(work); });
  for (int first = 0; first < count; first += kLanes)
    for (int e = 0; e < work.value_width; e += kLanes) {
      Vector rows[kLanes];
      get_rows(work.result, first, e, rows);
      for (int q = first; q < std::min(first + kLanes, count); ++q) finish(q, e, rows[q - first]);
    }
}

// What the backward pass of a head needs beside that: of a block of queries their rows (block, d) and the gradients of
// their results, as rows (block, e) and columns (e, block), the gradients of weights (k, block) and of queries
// (d, block); and sums for keys and values, (k, d) and (k, e).
struct GradientWorkspace : Workspace<float> {
  std::vector<float> query_rows, grad_rows, grad, grad_weights, grad_query, grad_key, grad_value;

  GradientWorkspace(int most_keys, int key_width, int value_width)
      : Workspace(most_keys, key_width, value_width, true),
        query_rows((size_t)kBlock * key_stride),
        grad_rows((size_t)kBlock * value_stride),
        grad((size_t)value_stride * kBlock),
        grad_weights(weights.size()),
        grad_query((size_t)key_stride * kBlock),
        grad_key(key.size()),
        grad_value(value.size()) {}

  void clear() {
    std::fill(grad_key.begin(), grad_key.end(), 0.0f);
    std::fill(grad_value.begin(), grad_value.end(), 0.0f);
  }
};

// Gradients of `attend`; with P the weights and dP their gradients, those of the scores are P * (dP - sum(P * dP)). Weights
// that are dropped have none, and are marked by their sign until they go.
template <int kWidth, bool kDrops>
void differentiate(GradientWorkspace& work, int count) {
  Sums<kWidth> sums;
  Vector means[kWidth] = {};
  weigh<kWidth, false>(work, 0, work.keys, sums);
  for (int v = 0; v < kWidth; ++v) sums.total[v] = 1.0f / sums.total[v];
  multiply<kWidth, kRows>({work.value.data(), work.value_stride}, {work.grad.data(), kBlock}, work.value_width,
                          work.grad_weights.data(), kBlock, work.keys);
  for (int k = 0; k < work.keys; ++k)
    for (int v = 0; v < kWidth; ++v) {
      float *weight = &work.weights[k * kBlock + v * kLanes], *gradient = &work.grad_weights[k * kBlock + v * kLanes];
      Vector found = load(weight) * sums.total[v], change = load(gradient);
      if constexpr (kDrops) {
        const Integers left = work.leaves(v, k);
        change = left ? change * work.dropout.factor : Vector{};
        store(gradient, change);
        means[v] += found * change;
        found = left ? found : -found;
      } else {
        means[v] += found * change;
      }
      store(weight, found);
    }
  for (int k = 0; k < work.keys; ++k)
    for (int v = 0; v < kWidth; ++v) {
      float *weight = &work.weights[k * kBlock + v * kLanes], *gradient = &work.grad_weights[k * kBlock + v * kLanes];
      Vector found = load(weight);
      if constexpr (kDrops) {
        store(weight, found < 0.0f ? Vector{} : found * work.dropout.factor);
        found = found < 0.0f ? -found : found;
      }
      store(gradient, found * (load(gradient) - means[v]));
    }
  add_product({work.weights.data(), kBlock}, {work.grad_rows.data(), work.value_stride}, count, work.grad_value.data(),
              work.value_stride, work.keys, work.value_stride);
  add_product({work.grad_weights.data(), kBlock}, {work.query_rows.data(), work.key_stride}, count, work.grad_key.data(),
              work.key_stride, work.keys, work.key_stride);
  for (int first = 0; first < work.keys; first += kStripe) {  // sums of short sums round less often
    const Matrix keys{&work.key[(size_t)first * work.key_stride], 1, work.key_stride};
    const Matrix weights{&work.grad_weights[(size_t)first * kBlock], kBlock};
    const int count = std::min(kStripe, work.keys - first);
    if (first)
      multiply<kWidth, kChannels, true>(keys, weights, count, work.grad_query.data(), kBlock, work.key_width);
    else
      multiply<kWidth, kChannels>(keys, weights, count, work.grad_query.data(), kBlock, work.key_width);
  }
}

// The same for `count` queries, whose rows and whose results' gradients `row(q)` and `grad_row(q)` give. `finish(q, d,
// vector)` is told the gradient of each for kLanes channels from d on; those of keys and values are added up in `work`.
template <typename Row, typename GradRow, typename Finish>
inline void differentiate_block(GradientWorkspace& work, int count, float scale, Row row, GradRow grad_row,
                                Finish finish) {
  work.scale = scale * kLog2OfE;
  for (int first = 0; first < count; first += kLanes) {
    decltype(row(0)) rows[kLanes], grad_rows[kLanes];
    const int some = std::min(kLanes, count - first);
    for (int q = 0; q < some; ++q) rows[q] = row(first + q), grad_rows[q] = grad_row(first + q);
    set_columns<float>(work.query, first, rows, some, work.key_width);
    set_columns<float>(work.grad, first, grad_rows, some, work.value_width);
    for (int q = 0; q < some; ++q) {
      copy(rows[q], &work.query_rows[(size_t)(first + q) * work.key_stride], work.key_width, scale);
      copy(grad_rows[q], &work.grad_rows[(size_t)(first + q) * work.value_stride], work.value_width);
    }
  }
  with_width(count, [&](auto width) {
    work.dropout.is_on() ? differentiate<width, true>(work, count) : differentiate<width, false>(work, count);
  });
  for (int first = 0; first < count; first += kLanes)
    for (int d = 0; d < work.key_width; d += kLanes) {
      Vector rows[kLanes];
      get_rows(work.grad_query, first, d, rows);
      for (int q = first; q < std::min(first + kLanes, count); ++q) finish(q, d, rows[q - first] * scale);
    }
}

}  // namespace scalablevit
