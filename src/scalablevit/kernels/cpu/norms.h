// LayerNorm over the channels of rows (rows, c), its gradients, and sums over rows.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace scalablevit {

// Fewer elements than this are not worth a second thread.
constexpr int64_t kAlone = 1 << 14;

struct Moments {
  float mean, factor;  // factor is 1 / sqrt(variance + eps)
};

template <typename T>
inline Moments moments(const T* x, int width, float eps) {
  Vector sums = {}, squares = {};
  for_each_vector(width, [&](int i, int count) { sums += load_some(x + i, count); });
  const float mean = total(sums) / width;
  for_each_vector(width, [&](int i, int count) {
    const Vector centred = load_some(x + i, count) - mean;
    if (count == kLanes)
      squares += centred * centred;
    else  // zeros after the last element would count as much as elements
      for (int lane = 0; lane < count; ++lane) squares[0] += centred[lane] * centred[lane];
  });
  return {mean, 1.0f / std::sqrt(total(squares) / width + eps)};
}

// (x - mean) / sqrt(variance + eps) * weight + bias of a row, vector by vector.
template <typename T>
struct Normed {
  const T* x;
  const float *weight, *bias;
  Moments of;

  Normed(const T* x, const float* weight, const float* bias, int width, float eps)
      : x(x), weight(weight), bias(bias), of(moments(x, width, eps)) {}

  Vector at(int i, int count) const {
    const Vector centred = (load_some(x + i, count) - of.mean) * of.factor;
    return centred * load_some(weight + i, count) + load_some(bias + i, count);
  }
};

// Into `out`, which may be x.
template <typename T, typename Out>
inline Moments normalise_row(const T* x, const float* weight, const float* bias, Out* out, int width, float eps) {
  const Normed<T> row(x, weight, bias, width, eps);
  for_each_vector(width, [&](int i, int count) { store_some(out + i, row.at(i, count), count); });
  return row.of;
}

// The same row by row. Both moments of each row go to `means` and `factors`, if those are there.
template <typename T>
void normalise(const T* x, const float* weight, const float* bias, T* out, float* means, float* factors, int64_t rows,
               int width, float eps, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > kAlone)
  for (int64_t row = 0; row < rows; ++row) {
    const Moments of = normalise_row(x + row * width, weight, bias, out + row * width, width, eps);
    if (means) means[row] = of.mean, factors[row] = of.factor;
  }
}

// Fills `outs`, of so many numbers each, with sums over rows. `body(begin, end, sums)` is called for parts of so many rows, in
// parallel, and adds theirs to sums[0], sums[1] and so on; `room` is what it may write beyond them. Parts are added one after
// the other at the end, so that sums are the same bits for any number of threads, and no thread waits for another in between.
template <int kSums, typename Body>
inline void sum_in_parts(int64_t rows, int64_t rows_of_part, int numbers, int room, int threads, float* const (&outs)[kSums],
                         Body body) {
  static thread_local std::vector<float> kept;
  const int64_t parts = (rows + rows_of_part - 1) / rows_of_part, stride = numbers + room;
  kept.assign(parts * kSums * stride, 0.0f);
  float* const all = kept.data();  // (parts, kSums, stride)
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (parts > 1 && rows * numbers > kAlone)
  for (int64_t part = 0; part < parts; ++part) {
    float* sums[kSums];
    for (int i = 0; i < kSums; ++i) sums[i] = all + (part * kSums + i) * stride;
    body(part * rows_of_part, std::min((part + 1) * rows_of_part, rows), sums);
  }
  for (int i = 0; i < kSums; ++i) {
    std::fill(outs[i], outs[i] + numbers, 0.0f);
    for (int64_t part = 0; part < parts; ++part)
      for (int j = 0; j < numbers; ++j) outs[i][j] += all[(part * kSums + i) * stride + j];
  }
}

constexpr int64_t kRowsOfPart = 256;

// Gradients of a norm with such moments: for x, plus `residual` if that is there, and for both parameters. That of the result
// is the sum of `grad` and, if it is there, `second`.
template <typename T>
void differentiate_norm(const T* grad, const T* second, const T* x, const float* means, const float* factors,
                        const float* weight, const T* residual, T* out, float* grad_weight, float* grad_bias, int64_t rows,
                        int width, int threads) {
  float* const sums_of[] = {grad_weight, grad_bias};
  sum_in_parts(rows, kRowsOfPart, width, kLanes, threads, sums_of, [=](int64_t begin, int64_t end, float* const* sums) {
    std::vector<float> of_row(2 * round_up(width, kLanes));
    float *grads = of_row.data(), *centred = grads + of_row.size() / 2, *to_weight = sums[0], *to_bias = sums[1];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t start = row * width;
      const float mean = means[row], factor = factors[row];
      Vector weighted = {}, turned = {};  // sums of gradients before the scale, and of their products with what was scaled
      for_each_vector(width, [&](int i, int count) {
        Vector g = load_some(grad + start + i, count);
        if (second) g += load_some(second + start + i, count);
        const Vector before = (load_some(x + start + i, count) - mean) * factor, product = g * before;
        const Vector w = load_some(weight + i, count);
        store(to_weight + i, load(to_weight + i) + product);
        store(to_bias + i, load(to_bias + i) + g);
        store(grads + i, g * w);
        store(centred + i, before);
        weighted += g * w, turned += product * w;
      });
      const float shift = total(weighted) / width, slope = total(turned) / width;
      for_each_vector(width, [&](int i, int count) {
        Vector found = (load(grads + i) - shift - load(centred + i) * slope) * factor;
        if (residual) found += load_some(residual + start + i, count);
        store_some(out + start + i, found, count);
      });
    }
  });
}

// The sum of all rows.
template <typename T>
void sum_rows(const T* x, float* out, int64_t rows, int width, int threads) {
  float* const sums_of[] = {out};
  sum_in_parts(rows, kRowsOfPart, width, kLanes, threads, sums_of, [=](int64_t begin, int64_t end, float* const* sums) {
    float* to = sums[0];
    for (int64_t row = begin; row < end; ++row)
      for_each_vector(width, [&](int i, int count) { store(to + i, load(to + i) + load_some(x + row * width + i, count)); });
  });
}

}  // namespace scalablevit
