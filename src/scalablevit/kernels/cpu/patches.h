// Patch embeddings: a dense convolution of a map, of any kernel and stride, as a product of what lies under the kernel, and the
// norm behind it.
//
// Axes: b batch, h height, w width, c channels that come in, f that go out, r positions along each side of the kernel. Maps are
// contiguous. What lies under the kernel is gathered as it is packed, by rows of the kernel, which lie in one piece. Either the
// weight is laid out likewise first, or, where rows are few, these are turned.

#pragma once

#include "few_rows.h"
#include "units.h"

namespace scalablevit {

// What comes from Python, as it lies in an array of 64-bit integers.
struct PatchBlock {
  const void* x;       // (b, h, w, c), of type T
  LayerWeight weight;  // (f, c, r, r), of type W: packed at each call, as it is laid out anew before
  const float* bias;   // null for none, as are those of the norm
  const float *norm_weight, *norm_bias;
  void *workspace, *out;  // the weight as (f, r, r, c), of type W; (b, h', w', f)
  int64_t b, height, width, channels, kernel, stride, padding, out_height, out_width, out_channels;
};

// What lies under the kernel at each place, (b * h' * w', r * r * c), with zeros outside of the map: rows as `linear` reads
// them.
template <typename T>
struct PatchRows {
  const PatchBlock& of;
  int width;
  bool turned;  // channels first, as they lie in the weight: (c, r, r) instead of (r, r, c)

  int64_t most(int64_t most) const { return width > 512 ? most * 512 / width : most; }  // long rows leave the second cache
  int64_t room() const { return round_up((kGroup + 1) * width, kGroup) * sizeof(T) / sizeof(float); }  // whole lines

  template <typename Body>
  void with_side(int64_t start, int rows, float* room, Body body) const {
    T *out = (T*)room, *row = turned ? out + (int64_t)kGroup * width : out;
    for (int i = 0; i < rows; ++i) {
      gather(start + i, turned ? row : out + (int64_t)i * width);
      if (turned) turn(row, out + (int64_t)i * width);
    }
    body(Side<T>{out, width, 1});
  }

  template <typename Products>
  void pack_left(int64_t start, int rows, float* room, typename Products::Number* target) const {
    with_side(start, rows, room, [&](auto side) { Products::pack_left(side, 0, rows, 0, width, target); });
  }

 private:
  void gather(int64_t row, T* out) const {
    const int64_t c = of.channels, line = of.kernel * c;  // of the kernel
    const int64_t image = row / (of.out_height * of.out_width), y = row / of.out_width % of.out_height * of.stride - of.padding;
    const int64_t x = row % of.out_width * of.stride - of.padding;
    const int64_t begin = std::clamp<int64_t>(-x, 0, of.kernel), end = std::clamp<int64_t>(of.width - x, begin, of.kernel);
    for (int64_t i = 0; i < of.kernel; ++i, out += line) {
      const T* from = (const T*)of.x + ((image * of.height + y + i) * of.width + x) * c;
      const bool inside = y + i >= 0 && y + i < of.height;
      if (inside && begin == 0 && end == of.kernel)
        std::copy(from, from + line, out);
      else
        for (int64_t j = 0; j < line; ++j) out[j] = inside && j >= begin * c && j < end * c ? from[j] : T{};
    }
  }

  void turn(const T* row, T* out) const {
    const int64_t c = of.channels, taps = of.kernel * of.kernel;
    for (int64_t i = 0; i < c; ++i)
      for (int64_t tap = 0; tap < taps; ++tap) out[i * taps + tap] = row[tap * c + i];
  }
};

// The norm of rows of a result, in place.
template <typename T>
struct NormRows {
  T* out;
  const float *weight, *bias;
  float eps;
  int width;

  void operator()(int64_t start, int64_t count) const {
    for (int64_t row = start; weight && row < start + count; ++row)
      normalise_row(out + row * width, weight, bias, out + row * width, width, eps);
  }
};

// (f, c, taps) to (f, taps, c).
template <typename W>
inline void lay_out_by_taps(const W* weight, int64_t columns, int64_t channels, int64_t taps, W* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (columns * channels * taps > kAlone)
  for (int64_t column = 0; column < columns; ++column) {
    const W* from = weight + column * channels * taps;
    W* to = out + column * channels * taps;
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0; c < channels; ++c) to[tap * channels + c] = from[c * taps + tap];
  }
}

template <typename T, typename W>
void embed_patches(const PatchBlock& a, float eps, int threads) {
  const int64_t taps = a.kernel * a.kernel, rows = a.b * a.out_height * a.out_width;
  const int width = (int)(taps * a.channels), columns = (int)a.out_channels;
  const bool few = are_few_for_linear(rows, width);  // fewer than there are lines of the weight: they are turned instead
  const W* weight = (const W*)a.weight.data;
  if (!few) lay_out_by_taps(weight, columns, a.channels, taps, (W*)a.workspace, threads), weight = (const W*)a.workspace;
  const PatchRows<T> read{a, width, few};
  const NormRows<T> finish{(T*)a.out, a.norm_weight, a.norm_bias, eps, columns};
  with_products<T>([&](auto kind) {
    using Products = typename decltype(kind)::Type;
    T *out = (T*)a.out, *none = nullptr;
    if (few) return linear_of_few<Products>(read, weight, a.bias, none, out, none, rows, columns, columns, threads, finish);
    linear<Products, PatchRows<T>, T, W>(read, {weight, nullptr}, a.bias, none, out, none, rows, columns, columns, threads,
                                         finish);
  });
}

}  // namespace scalablevit
