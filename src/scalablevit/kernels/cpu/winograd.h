// Dense 3x3 convolutions of channels-last maps, zero outside their border, in float32: by Winograd's minimal filtering
// F(2x2, 3x3) (Lavin and Gray, arXiv:1509.09308), which takes 16 products for the 36 of four neighbouring results.
//
// A tile is the 4x4 positions that a 2x2 of results is made from. What is read (d), the weight (g) and the results (y) are
// all transformed, so that y = A^T [(G g G^T) * (B^T d B)] A: products of numbers at the same one of 16 places, which are
// products of matrices, (tiles, c) by (c, c'). The transforms of d and y are sums alone, that of g has halves, so that little
// is lost to rounding.
//
// Axes: b batch, h height, w width, c channels that are read, c' channels of the result.

#pragma once

#include <array>

#include "linear.h"
#include "vector_products.h"

namespace scalablevit {

constexpr int kPlaces = 16;
constexpr int kSide = 4;  // of a tile

// The 2x2 tiles of maps, row by row, image by image.
struct MapTiles {
  int64_t batch, height, width;

  int64_t rows() const { return (height + 1) / 2; }
  int64_t columns() const { return (width + 1) / 2; }
  int64_t count() const { return batch * rows() * columns(); }

  // Calls `body(i, j, offset)` for the positions of a tile's results that lie on the map, `size` x `size` of them from
  // `start` on; `offset` counts positions.
  template <typename Body>
  void for_each_position(int64_t tile, int start, int size, Body body) const {
    const int64_t image = tile / (rows() * columns());
    const int64_t top = tile / columns() % rows() * 2 + start, left = tile % columns() * 2 + start;
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < size; ++j)
        if (top + i >= 0 && top + i < height && left + j >= 0 && left + j < width)
          body(i, j, (image * height + top + i) * width + left + j);
  }
};

using Line = std::array<Vector, kSide>;

// B^T of a column, or B of a row.
inline Line transform_read(Line d) { return {d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]}; }

// A of two results.
inline Line transform_result(Vector first, Vector second) { return {first, first + second, first - second, -second}; }

// A^T.
inline std::array<Vector, 2> transform_sums(Line m) { return {m[0] + m[1] + m[2], m[1] - m[2] - m[3]}; }

// G.
inline Line transform_weight(Vector first, Vector second, Vector third) {
  const Vector outer = (first + third) * 0.5f, inner = second * 0.5f;
  return {first, outer + inner, outer - inner, third};
}

// G^T.
inline std::array<Vector, 3> transform_weight_back(Line u) {
  const Vector inner = (u[1] + u[2]) * 0.5f;
  return {u[0] + inner, (u[1] - u[2]) * 0.5f, inner + u[3]};
}

// `transform` of each column and then of each row of a square: `put(place, vector)` is told what comes out.
template <typename Square, typename Transform, typename Put>
inline void transform_square(const Square& square, Transform transform, Put put) {
  Line columns[kSide];
  for (int j = 0; j < kSide; ++j) columns[j] = transform(square[0][j], square[1][j], square[2][j], square[3][j]);
  for (int i = 0; i < kSide; ++i) {
    const Line row = transform(columns[0][i], columns[1][i], columns[2][i], columns[3][i]);
    for (int j = 0; j < kSide; ++j) put(i * kSide + j, row[j]);
  }
}

// B^T d B of a tile, for kLanes channels from `channel` on.
template <typename Put>
inline void read_tile(const float* x, int channels, MapTiles tiles, int64_t tile, int channel, Put put) {
  Vector square[kSide][kSide] = {};
  tiles.for_each_position(tile, -1, kSide, [&](int i, int j, int64_t at) {
    square[i][j] = load_some(x + at * channels + channel, channels - channel);
  });
  transform_square(
      square, [](Vector a, Vector b, Vector c, Vector d) { return transform_read({a, b, c, d}); }, put);
}

// A y A^T of the results of a tile.
template <typename Put>
inline void read_results(const float* grad, int channels, MapTiles tiles, int64_t tile, int channel, Put put) {
  Vector square[2][2] = {};
  tiles.for_each_position(tile, 0, 2, [&](int i, int j, int64_t at) {
    square[i][j] = load_some(grad + at * channels + channel, channels - channel);
  });
  Line columns[2];
  for (int j = 0; j < 2; ++j) columns[j] = transform_result(square[0][j], square[1][j]);
  for (int i = 0; i < kSide; ++i) {
    const Line row = transform_result(columns[0][i], columns[1][i]);
    for (int j = 0; j < kSide; ++j) put(i * kSide + j, row[j]);
  }
}

struct Weight {  // of a convolution; taps are three rows of three, `tap` apart
  const float* data;
  int64_t out, in, tap;
};

// The first `count` of kLanes numbers, `stride` apart, and zeros after them.
inline Vector load_apart(const float* from, int64_t stride, int count) {
#if defined(__AVX512F__) && !defined(SCALABLEVIT_FOUR_LANES)
  alignas(64) static constexpr int32_t lanes[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const __m512i at = _mm512_mullo_epi32(_mm512_load_si512(lanes), _mm512_set1_epi32((int)stride));
  const __mmask16 wanted = count >= kLanes ? 0xffff : (1u << count) - 1;
  return (Vector)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), wanted, at, from, sizeof(float));
#else
  float numbers[kLanes] = {};
  for (int i = 0; i < std::min(kLanes, count); ++i) numbers[i] = from[i * stride];
  return load(numbers);
#endif
}

// G g G^T for kLanes channels that are read, from `in` on, and one of the result.
template <typename Put>
inline void read_weight(Weight weight, int out, int in, int channels, Put put) {
  const float* first = weight.data + out * weight.out + in * weight.in;
  auto tap = [&](int i, int j) { return load_apart(first + (3 * i + j) * weight.tap, weight.in, channels - in); };
  Line columns[3];
  for (int j = 0; j < 3; ++j) columns[j] = transform_weight(tap(0, j), tap(1, j), tap(2, j));
  for (int i = 0; i < kSide; ++i) {
    const Line row = transform_weight(columns[0][i], columns[1][i], columns[2][i]);
    for (int j = 0; j < kSide; ++j) put(i * kSide + j, row[j]);
  }
}

using WinogradProducts = VectorProducts<float>;

// Weights as packed groups of the right side, (groups of c', places). By all threads of a team.
inline void pack_weight(Weight weight, int in_channels, int out_channels, float* target) {
  const int64_t size = WinogradProducts::right_size(in_channels);
  const int64_t lines = round_up(out_channels, kGroup) / kLanes;
#pragma omp for schedule(dynamic)
  for (int64_t line = 0; line < lines; ++line) {
    const int first = (int)line * kLanes;
    float* group = target + first / kGroup * kPlaces * size + first % kGroup;
    for (int in = 0; in < round_up(in_channels, kStep); in += kLanes) {
      Vector squares[kPlaces][kLanes] = {};
      for (int lane = 0; lane < std::min(kLanes, out_channels - first) && in < in_channels; ++lane)
        read_weight(weight, first + lane, in, in_channels, [&](int place, Vector u) { squares[place][lane] = u; });
      for (int place = 0; place < kPlaces; ++place) {
        transpose(squares[place]);
        for (int i = 0; i < kLanes; ++i) store(group + place * size + (in + i) * kGroup, squares[place][i]);
      }
    }
  }
}

// x (b, h, w, c) to (b, h, w, c'), with a bias (c') if there is one, added to what is there if wanted.
inline void convolve(const float* x, Weight weight, const float* bias, float* out, MapTiles tiles, int in_channels,
                     int out_channels, bool adds, int threads) {
  using Products = WinogradProducts;
  static thread_local Scratch of_weights;
  const int64_t size = Products::left_size(in_channels), stride = size / kGroup;
  const int64_t right_size = Products::right_size(in_channels), groups = groups_of(out_channels);
  float* right = of_weights.take<float>(groups * kPlaces * right_size);
  // Tiles at once: of narrow maps as many as stay in the second cache, of wide ones more, as all weights are read for them.
  const Division division = divide<Products>(tiles.count(), threads, (in_channels <= 256 ? 2 : 5) * Products::kBlockRows);
  const int64_t at_once = division.part;
#pragma omp parallel num_threads(threads)
  {
    static thread_local Scratch scratch;
    float* read = scratch.take<float>(kPlaces * at_once * (stride + kGroup));
    float* sums = read + kPlaces * at_once * stride;  // (places, tiles, kGroup)
    pack_weight(weight, in_channels, out_channels, right);
#pragma omp for schedule(dynamic)
    for (int64_t start = 0; start < tiles.count(); start += at_once) {
      const int count = at_most(at_once, tiles.count(), start);
      for (int i = 0; i < count; ++i)
        for (int channel = 0; channel < in_channels; channel += kLanes)
          read_tile(x, in_channels, tiles, start + i, channel,
                    [&](int place, Vector v) { store(read + (place * at_once + i) * stride + channel, v); });
      for (int64_t g = 0; g < groups; ++g) {
        const int channel = (int)g * kGroup, columns = at_most(kGroup, out_channels, channel);
        for (int place = 0; place < kPlaces; ++place)
          for (int first = 0; first < count; first += division.block) {
            float* target = sums + (place * at_once + first) * kGroup;
            Products::multiply_rows(read + (place * at_once + first) * stride, size,
                                    at_most(division.block, count, first), right + (g * kPlaces + place) * right_size,
                                    columns, in_channels, [&](int64_t i, const float* row) {
                                      for (int v = 0; v < kGroup; v += kLanes) store(target + i * kGroup + v, load(row + v));
                                    });
          }
        for (int i = 0; i < count; ++i)
          for (int v = 0; v < columns; v += kLanes) {
            std::array<Vector, 2> rows[kSide], results[2];
            for (int row = 0; row < kSide; ++row) {
              Line line;
              for (int j = 0; j < kSide; ++j) line[j] = load(sums + ((row * kSide + j) * at_once + i) * kGroup + v);
              rows[row] = transform_sums(line);
            }
            for (int j = 0; j < 2; ++j) {
              const auto column = transform_sums({rows[0][j], rows[1][j], rows[2][j], rows[3][j]});
              results[0][j] = column[0], results[1][j] = column[1];
            }
            const Vector of_bias = bias ? load_some(bias + channel + v, columns - v) : Vector{};
            tiles.for_each_position(start + i, 0, 2, [&](int row, int j, int64_t at) {
              float* p = out + at * out_channels + channel + v;
              const Vector sum = results[row][j] + of_bias;
              store_some(p, adds ? load_some(p, columns - v) + sum : sum, columns - v);
            });
          }
      }
    }
  }
}

// Where the numbers of tiles go that are transformed: as the kernel reads them, for each place so many channels side by side,
// (places, channels / kTogether, tiles, kTogether).
template <int kTogether>
struct PackedTiles {
  static_assert(kTogether % kLanes == 0);
  float* data;
  int64_t count, place;  // of tiles; how far apart places are

  PackedTiles(float* data, int64_t count, int channels) : data(data), count(count), place(size_of_place(count, channels)) {}

  // A line of the cache more: places that are a page apart would have the same few lines of the first cache.
  static int64_t size_of_place(int64_t count, int channels) { return count * round_up(channels, kTogether) + 16; }

  // The first tile's number of a channel; those of the next tiles are kTogether apart.
  float* at(int place_number, int channel) const {
    return data + place_number * place + channel / kTogether * kTogether * count + channel % kTogether;
  }

  void put(int place_number, int64_t tile, int channel, Vector v) const {
    store(at(place_number, channel) + tile * kTogether, v);
  }
};

// The gradient of the weight (c', c, 3, 3) from that of the result (b, h, w, c').
inline void differentiate_weight(const float* x, const float* grad, float* out, MapTiles tiles, int in_channels,
                                 int out_channels, int threads) {
  using Products = WinogradProducts;
  using Read = PackedTiles<kGroup>;
  constexpr int kTogether = std::max(kLanes, Products::kTurnedRows);
  using Results = PackedTiles<kTogether>;
  static thread_local Scratch scratch;
  const int64_t at_once = std::min(tiles.count(), Products::kLongest), groups = groups_of(in_channels);
  const int64_t in_size = Read::size_of_place(at_once, in_channels), out_size = Results::size_of_place(at_once, out_channels);
  const int64_t weights = (int64_t)in_channels * out_channels;
  float* packed = scratch.take<float>(kPlaces * (in_size + out_size + weights));
  float* sums = packed + kPlaces * (in_size + out_size);  // (places, c', c)
  if (!tiles.count()) std::memset(sums, 0, kPlaces * weights * sizeof(float));
  for (int64_t start = 0; start < tiles.count(); start += at_once) {
    const int64_t count = std::min(at_once, tiles.count() - start);
    const Read read(packed, count, in_channels);
    const Results results(packed + kPlaces * in_size, count, out_channels);
    SharedParts parts(kPlaces * groups, threads);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < count; ++i) {
        for (int channel = 0; channel < in_channels; channel += kLanes)
          read_tile(x, in_channels, tiles, start + i, channel, [&](int at, Vector v) { read.put(at, i, channel, v); });
        for (int channel = round_up(in_channels, kLanes); channel < round_up(in_channels, kGroup); channel += kLanes)
          for (int at = 0; at < kPlaces; ++at) read.put(at, i, channel, Vector{});
        for (int channel = 0; channel < out_channels; channel += kLanes)
          read_results(grad, out_channels, tiles, start + i, channel,
                       [&](int at, Vector v) { results.put(at, i, channel, v); });
      }
      parts.for_each([&](int64_t part) {
        const int place = (int)(part / groups), first = (int)(part % groups) * kGroup;
        for (int row = 0; row < out_channels; row += Products::kTurnedRows)
          multiply_block<Products>((const float*)results.at(place, row), 0, at_most(Products::kTurnedRows, out_channels, row),
                                   (const float*)read.at(place, first), at_most(kGroup, in_channels, first), count,
                                   sums + place * weights + (int64_t)row * in_channels + first, in_channels, start > 0,
                                   kTogether);
      });
    }
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t channel = 0; channel < out_channels; ++channel)
    for (int in = 0; in < in_channels; in += kLanes) {
      const int some = std::min(kLanes, in_channels - in);
      const int64_t first = channel * in_channels + in;
      std::array<Vector, 3> rows[kSide];
      for (int row = 0; row < kSide; ++row) {
        Line line;
        for (int j = 0; j < kSide; ++j) line[j] = load_some(sums + (row * kSide + j) * weights + first, some);
        rows[row] = transform_weight_back(line);
      }
      float taps[9][kLanes];
      for (int j = 0; j < 3; ++j) {
        const auto column = transform_weight_back({rows[0][j], rows[1][j], rows[2][j], rows[3][j]});
        for (int i = 0; i < 3; ++i) store(taps[3 * i + j], column[i]);
      }
      for (int lane = 0; lane < some; ++lane)
        for (int i = 0; i < 9; ++i) out[(first + lane) * 9 + i] = taps[i][lane];
    }
}

}  // namespace scalablevit
