// The backward pass of a feed-forward, by a policy of `packing.h`.
//
// Axes: rows positions, c channels, f channels of the hidden layer.
//
// What is as wide as the hidden layer goes to memory in no order but that in which it is multiplied next: a thread makes
// kGroup channels of it, for some rows, and packs them as they come for the three products that read them. The gradients of
// these channels' weights are added up side by side, and go to their places at the end.

#pragma once

#include "feed_forward.h"

namespace scalablevit {

// Tensors of a backward pass, with numbers of type T in rows and W in weights.
struct FeedForwardGradients {
  const void *grad, *read;  // of the result, and what the first layer reads: (rows, c)
  const void* kept;         // what the first layer gave, (rows, f), or nothing
  const void* weight1;      // (f, c)
  const float* bias1;
  const void* weight2;  // (c, f)
  void* grad_read;      // (rows, c)
  float *of_weight1, *of_weight2, *of_bias1;  // (f, c), (c, f) and (f)
  int64_t rows, width, hidden;                // none of them 0
};

// Rows at once: as many as leave all that is packed of them in the second cache. Where numbers are not cut they are more with
// few channels.
template <typename Products>
inline int64_t rows_at_once(int64_t rows, int64_t width) {
  const int64_t most = Products::kIsCut ? 256 : std::clamp<int64_t>(512 * 256 / width, 512, 1024);
  return groups_of(divided_up(rows, divided_up(rows, most))) * kGroup;
}

// kGroup hidden channels of some rows: where they come from, and go to.
template <typename T, typename Number>
struct HiddenGroup {
  const T* kept;        // of the first row, rows `hidden` apart, or nothing
  const float* sums;    // if nothing is kept, what the first layer gives, (rows, kGroup), without its bias
  const float* bias;    // likewise
  float* of_bias;       // the gradient of the bias
  Number* changes;      // packed as a left side, in groups of `size` numbers: the gradient for what the first layer gives
  Number *right_changes, *right_activated;  // as right sides: that, and what the second layer reads
  int64_t size, step, hidden, first_row;
  int rows, columns;
  Dropout dropout;
};

// A function of its own, as those of `feed_forward.h`; `kIsWhole` where the group is full, and nothing is dropped.
template <typename Products, bool kIsWhole, typename T, typename Number>
__attribute__((noinline)) void differentiate_products(const Number* left, int64_t size, const Number* right, int64_t length,
                                                      HiddenGroup<T, Number> to) {
  constexpr int kWide = kGroup / kLanes;
  const int last = to.rows - 1;
  const GeluAndSlope<T> gelu_and_slope;
  // What one row, whose sums are given, comes to: its changes, and what was activated.
  const auto differentiate = [=](int64_t row, const float* sums, Vector (&changes)[kWide], Vector (&activated)[kWide]) {
    const RowKeys keys = to.dropout.keys(to.first_row + row);
    const int wide = kIsWhole ? kWide : (to.columns + kLanes - 1) / kLanes;
    Vector x[kWide] = {};
    for (int v = 0; v < wide; ++v) {
      const int place = v * kLanes, count = kIsWhole ? kLanes : to.columns - place;
      if (to.kept)
        x[v] = load_some(to.kept + row * to.hidden + place, count);
      else
        x[v] = load(to.sums + row * kGroup + place) + load_some(to.bias + place, count);
    }
    gelu_and_slope(x, activated, changes);
    for (int v = 0; v < kWide; ++v) {
      const int place = v * kLanes;
      if (v >= wide) {
        changes[v] = Vector{};
        continue;
      }
      changes[v] *= load(sums + place);
      if (!kIsWhole && to.dropout.is_on()) {
        const int column = to.step * kGroup + place;
        changes[v] = to.dropout(changes[v], keys, column), activated[v] = to.dropout(activated[v], keys, column);
      }
      store(to.of_bias + place, load(to.of_bias + place) + changes[v]);
    }
  };
  // Rows are a page apart, as a rule, where no processor guesses that they are wanted.
  const auto ask = [=](int64_t row, int rows) {
    if (to.kept) fetch_rows(to.kept + row * to.hidden, to.hidden, rows);
    if constexpr (!Products::kAnyRows)
      for (int i = 0; i < rows; ++i) Products::fetch_to_set(to.changes, to.size, row + i, to.step);
  };
  if constexpr (Products::kAnyRows) ask(0, std::min(kGroup, to.rows));
  multiply_many_rows<Products, true>(left, size, to.rows, right, to.columns, length, [=](int64_t row, const float* sums) {
    if constexpr (Products::kAnyRows)
      if (row + kGroup < to.rows) ask(row + kGroup, 1);
    if (row % 2 == 0 && row != last) return;  // in pairs, as right sides are packed
    Vector changes[2][kWide], activated[2][kWide];
    const int64_t first = row - row % 2;
    if (first == row)  // a row without another
      for (int v = 0; v < kWide; ++v) changes[1][v] = activated[1][v] = Vector{};
    for (int64_t i = first; i <= row; ++i)
      differentiate(i, sums + (i - row) * kGroup, changes[i - first], activated[i - first]);
    Products::set_both(to.changes, to.size, first, to.step, to.right_changes, changes[0], changes[1]);
    Products::set_right(to.right_activated, first, activated[0], activated[1]);
  }, false, ask);
  for (int64_t row = (to.rows + 1) / 2 * 2; row < steps_of(to.rows) * kStep; row += 2) {  // what no row fills is multiplied
    const Vector zeros[kWide] = {};
    Products::set_right(to.right_changes, row, zeros, zeros);
    Products::set_right(to.right_activated, row, zeros, zeros);
  }
}

// Likewise, where the numbers of rows of the left side did not lie side by side.
template <typename Products, typename Number>
__attribute__((noinline)) void add_turned_products(const Number* left, int64_t size, int64_t rows, const Number* right,
                                                   int columns, int64_t length, AddToRows add) {
  const auto ask = [=](int64_t row, int some) {
    fetch_to_write(add.out + row * add.stride, some * (int)(add.stride * sizeof(float)));
  };
  multiply_many_rows<Products, true>(left, size, rows, right, columns, length, add, true, ask);
}

template <typename Products, typename T, typename W>
void differentiate_feed_forward(const FeedForwardGradients& a, Dropout dropout, int threads) {
  using Number = typename Products::Number;
  static thread_local Scratch shared;
  const int64_t rows = a.rows, width = a.width, hidden = a.hidden, some = rows_at_once<Products>(rows, width);
  const int64_t groups = groups_of(width), hidden_groups = groups_of(hidden), row_groups = some / kGroup;
  const int64_t size = Products::left_size(width), hidden_size = Products::left_size(hidden);
  const int64_t turned_size = Products::left_size(some), right_size = Products::right_size(width);
  const int64_t of_first = groups * Products::right_size(hidden), of_second = hidden_groups * right_size;
  const int64_t read_again = a.kept ? 0 : 1, of_sums = width * kGroup;
  const int64_t of_numbers = of_first + (1 + read_again) * (of_second + row_groups * size) + 2 * groups * turned_size +
                             row_groups * hidden_size;
  // Gradients of weights, (groups of f, 2, c, kGroup), and what is packed.
  float* all_sums = shared.take<float>(hidden_groups * 2 * of_sums + of_numbers * sizeof(Number) / sizeof(float));
  Number* second = (Number*)(all_sums + hidden_groups * 2 * of_sums);
  Number* first = second + of_second;
  Number* grads = first + of_first;
  Number* turned_grads = grads + row_groups * size;
  Number* turned_reads = turned_grads + groups * turned_size;
  Number* changes = turned_reads + groups * turned_size;
  Number* forward = changes + row_groups * hidden_size;  // if the first layer runs again: it, and what it reads
  Number* reads = forward + of_second;
  const T *grad = (const T*)a.grad, *read = (const T*)a.read, *kept = (const T*)a.kept;
  const W *weight1 = (const W*)a.weight1, *weight2 = (const W*)a.weight2;
  T* grad_read = (T*)a.grad_read;
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    const typename Products::Session session;
    const int64_t of_right = Products::right_size(some);
    float* sums = scratch.take<float>(some * kGroup + 2 * of_right * sizeof(Number) / sizeof(float));
    Number* right_changes = (Number*)(sums + some * kGroup);
    Number* right_activated = right_changes + of_right;
#pragma omp for schedule(dynamic) nowait
    for (int64_t g = 0; g < hidden_groups; ++g) {
      const int columns = at_most(kGroup, hidden, g * kGroup);
      Products::pack_right(Side<W>{weight2, 1, hidden}, g * kGroup, columns, 0, width, second + g * right_size);
      if (!kept) Products::pack_right(Side<W>{weight1, width, 1}, g * kGroup, columns, 0, width, forward + g * right_size);
    }
#pragma omp for schedule(dynamic) nowait
    for (int64_t g = 0; g < groups; ++g)
      Products::pack_right(Side<W>{weight1, 1, width}, g * kGroup, at_most(kGroup, width, g * kGroup), 0, hidden,
                           first + g * Products::right_size(hidden));
    for (int64_t start = 0; start < rows; start += some) {
      const int count = at_most(some, rows, start);
      const int64_t count_size = Products::left_size(count);
#pragma omp for schedule(dynamic) nowait
      for (int64_t r = 0; r < groups_of(count); ++r) {
        const int lines = at_most(kGroup, count, r * kGroup);
        Products::pack_left(Side<T>{grad, width, 1}, start + r * kGroup, lines, 0, width, grads + r * size);
        if (!kept) Products::pack_left(Side<T>{read, width, 1}, start + r * kGroup, lines, 0, width, reads + r * size);
      }
#pragma omp for schedule(dynamic)
      for (int64_t g = 0; g < groups; ++g) {
        const int lines = at_most(kGroup, width, g * kGroup);
        const Side<T> of_grads{grad + start * width, 1, width}, of_reads{read + start * width, 1, width};
        constexpr int block = Products::kTurnedRows;
        Products::pack_left(of_grads, g * kGroup, lines, 0, count, turned_grads + g * count_size, block);
        Products::pack_left(of_reads, g * kGroup, lines, 0, count, turned_reads + g * count_size, block);
      }
#pragma omp for schedule(dynamic)
      for (int64_t g = 0; g < hidden_groups; ++g) {
        const int columns = at_most(kGroup, hidden, g * kGroup);
        if (!kept)
          multiply_many_rows<Products, false>(
              (const Number*)reads, size, count, (const Number*)forward + g * right_size, columns, width,
              [=](int64_t row, const float* found) { std::memcpy(sums + row * kGroup, found, kGroup * sizeof(float)); });
        alignas(64) float of_bias[kGroup] = {};
        const HiddenGroup<T, Number> group{kept ? kept + start * hidden + g * kGroup : nullptr,
                                           sums,
                                           a.bias1 + g * kGroup,
                                           of_bias,
                                           changes,
                                           right_changes,
                                           right_activated,
                                           hidden_size,
                                           g,
                                           hidden,
                                           start,
                                           count,
                                           columns,
                                           dropout};
        const Number* weights = second + g * right_size;
        if (columns == kGroup && !dropout.is_on())
          differentiate_products<Products, true>((const Number*)grads, size, weights, width, group);
        else
          differentiate_products<Products, false>((const Number*)grads, size, weights, width, group);
        float *of_weight1 = all_sums + g * 2 * of_sums, *of_weight2 = of_weight1 + of_sums;
        float* of_bias1 = a.of_bias1 + g * kGroup;
        const bool adds = start > 0;
        if (!adds) std::memset(of_bias1, 0, columns * sizeof(float));
        for (int i = 0; i < columns; ++i) of_bias1[i] += of_bias[i];
        add_turned_products<Products>((const Number*)turned_reads, count_size, width, (const Number*)right_changes, columns,
                                      count, {of_weight1, kGroup, adds});
        add_turned_products<Products>((const Number*)turned_grads, count_size, width, (const Number*)right_activated, columns,
                                      count, {of_weight2, kGroup, adds});
        if (start + some < rows) continue;
        turn_matrix(of_weight1, kGroup, a.of_weight1 + g * kGroup * width, width, width, columns);
        for (int64_t c = 0; c < width; ++c)
          for_each_column(columns, [&](int j, int some_columns) {
            store_some(a.of_weight2 + c * hidden + g * kGroup + j, load(of_weight2 + c * kGroup + j), some_columns);
          });
      }
      const int64_t most = groups_of(divided_up(count, threads)) * kGroup;
#pragma omp for collapse(2) schedule(dynamic)
      for (int64_t row = 0; row < count; row += most)
        for (int64_t g = 0; g < groups; ++g) {
          const int columns = at_most(kGroup, width, g * kGroup), part = at_most(most, count, row);
          T* target = grad_read + (start + row) * width + g * kGroup;
          const auto write = [=](int64_t i, const float* found) {
            for_each_column(
                columns, [&](int j, int some) { store_some(target + i * width + j, load(found + j), some); });
          };
          multiply_many_rows<Products, false>((const Number*)changes + row / kGroup * hidden_size, hidden_size, part,
                                              (const Number*)first + g * Products::right_size(hidden), columns, hidden, write);
        }
    }
  }
}

}  // namespace scalablevit
