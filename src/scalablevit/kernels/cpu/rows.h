// What happens to each position of a map alone, but for norms: bias, GELU, the residual stream. Rows are (rows, c).

#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "dropout.h"
#include "norms.h"

namespace scalablevit {

#if defined(__AVX512F__) && defined(__AVX512DQ__) && !defined(SCALABLEVIT_FOUR_LANES)
#define SCALABLEVIT_TABLES 1

// The position a * b, at least 0 and below 31.5, from where on the bits name the first piece again: the nearest whole number,
// in the last five bits, and how far from it.
struct Place {
  static constexpr float kToWhole = 8388608.0f;  // 2^23, from where on numbers are whole
  __m512i piece;
  Vector inside;

  Place(Vector a, Vector b) {
    const Vector shifted = a * b + kToWhole;
    piece = (__m512i)shifted, inside = a * b - (shifted - kToWhole);
  }
};

// A function of such positions, as a polynomial around each whole number, whose coefficients are looked up in registers. Each
// polynomial is right at as many points as it has coefficients, those of Chebyshev.
template <int kDegree>
struct Pieces {
  static constexpr int kPieces = 2 * kLanes;
  alignas(64) float coefficients[kDegree + 1][kPieces];

  template <typename Function>
  explicit Pieces(Function function) : coefficients() {
    for (int piece = 0; piece < kPieces; ++piece) {
      const double begin = piece == 0 ? 0.0 : -0.5;
      double at[kDegree + 1], newton[kDegree + 1];
      for (int i = 0; i <= kDegree; ++i) {
        at[i] = begin + (0.5 - begin) * (0.5 - 0.5 * std::cos((2 * i + 1) * 3.14159265358979323846 / (2 * kDegree + 2)));
        newton[i] = function(piece + at[i]);
      }
      for (int order = 1; order <= kDegree; ++order)
        for (int i = kDegree; i >= order; --i) newton[i] = (newton[i] - newton[i - 1]) / (at[i] - at[i - order]);
      double powers[kDegree + 1] = {newton[kDegree]};  // the lowest first
      for (int order = kDegree - 1; order >= 0; --order) {
        for (int i = kDegree; i > 0; --i) powers[i] = powers[i - 1] - at[order] * powers[i];
        powers[0] = newton[order] - at[order] * powers[0];
      }
      for (int i = 0; i <= kDegree; ++i) coefficients[i][piece] = (float)powers[i];
    }
  }

  Vector look_up(int power, __m512i piece) const {
    return (Vector)_mm512_permutex2var_ps(_mm512_load_ps(coefficients[power]), piece,
                                          _mm512_load_ps(coefficients[power] + kLanes));
  }

  Vector operator()(Place place) const {
    Vector p = look_up(kDegree, place.piece);
    for (int power = kDegree - 1; power >= 0; --power) p = p * place.inside + look_up(power, place.piece);
    return p;
  }
};

constexpr float kFarOut = 5.9f;  // where P(X > a) is 2e-9

// P(X > a) of the normal distribution for 0 <= a <= kFarOut, right to 3e-8: 30 pieces and a half of [0, 5.8125], and 0 beyond,
// where a P(X > a) is below 2e-8.
struct Tail {
  static constexpr int kDegree = 4;
  static constexpr float kPerUnit = 30.5f / 5.8125f;
  static constexpr double kBeyond = 30.5;
  static_assert(kFarOut * kPerUnit < 31.5f);
  Pieces<kDegree> pieces{[](double position) {
    return position < kBeyond ? 0.5 * std::erfc(position / kPerUnit * 0.70710678118654752440) : 0.0;
  }};

  static Place place_of(Vector a) { return Place(a, broadcast(kPerUnit)); }

  Vector operator()(Vector a) const { return pieces(place_of(a)); }
};

inline const Tail normal_tail;

#else

constexpr float kFarOut = 6.0f;  // where P(X > a) is 1e-9

// P(X > a) of the normal distribution for 0 <= a <= kFarOut, as 2 to a polynomial that was fitted to its logarithm: a P(X > a)
// is right to 5e-8, which at the end is more than there is of it.
template <int kCount>
SCALABLEVIT_INLINED void find_normal_tails(const Vector (&a)[kCount], Vector (&tails)[kCount]) {
  static constexpr float of_logarithm[] = {-1.9320853e-06f, 2.8458191e-05f, -0.00013361908f, -0.00026619996f, 0.0072367205f,
                                           -0.052620985f,   -0.45916414f,   -1.1511112f,     -0.9999999f};
  evaluate(of_logarithm, a, tails);
  raise_two_exactly(tails);
}

#endif

// x P(X <= x), the exact GELU, from P(X > a), where a is |x|, but no more than kFarOut. At minus infinity and at what is no
// number it is none, by the first sum.
inline Vector gelu_from_tail(Vector x, Vector a, Vector tail) { return (x + absolute(x)) * 0.5f - a * tail; }

// For results in bfloat16: P(X > a), as a power of 2, and the power itself are right to 7e-5, a twenty-fifth of the rounding
// to come. Fewer operations by a sixth.
template <int kCount>
SCALABLEVIT_INLINED void activate_by_powers(Vector (&x)[kCount]) {
  static constexpr float of_logarithm[] = {-9.77754725e-07f, 4.03973096e-05f,  -7.23607668e-04f, 7.50288738e-03f,
                                           -5.14463401e-02f, -4.61469723e-01f, -1.14989287f,     -1.00009844f};
  static constexpr float of_power[] = {5.51716435e-02f, 2.42611120e-01f, 6.93260990e-01f, 9.99928074e-01f};
  Vector a[kCount], tails[kCount];
  for (int v = 0; v < kCount; ++v) a[v] = smaller(absolute(x[v]), broadcast(9.0f));  // beyond, 1e-18 is as good as nothing
  evaluate(of_logarithm, a, tails);
  raise_two(of_power, tails);
  for (int v = 0; v < kCount; ++v) x[v] = gelu_from_tail(x[v], a[v], tails[v]);
}

#if SCALABLEVIT_TABLES

// The same for x >= -6, from polynomials of degree 3 for 32 pieces of [0, 6], which are right to 1e-4 of the value. They are
// as long as the value changes slowly: around the distance a at which a * (kSlope + kBend * a) is i lies piece i.
struct ShortTail {
  static constexpr int kDegree = 3;
  static constexpr float kEnd = 6.0f, kLast = 31.49f;  // where that is: there are no places from 31.5 on
  static constexpr float kSlope = 1.3f, kBend = (kLast - kSlope * kEnd) / (kEnd * kEnd);
  Pieces<kDegree> pieces{[](double position) { return 0.5 * std::erfc(distance_at(position) * 0.70710678118654752440); }};

  static double distance_at(double position) {
    return (std::sqrt(kSlope * kSlope + 4 * kBend * position) - kSlope) / (2 * kBend);
  }

  // The smaller distance from 0, of x and kEnd.
  static Vector distance_of(Vector x) { return (Vector)_mm512_range_ps((__m512)x, _mm512_set1_ps(kEnd), 0b1010); }

  static Place place_of(Vector a) { return Place(a, a * kBend + kSlope); }

  Vector gelu(Vector x) const {
    // Where x is no number, it is what the larger of 0 and x is.
    const Vector a = distance_of(x);
    return (Vector)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x) - a * pieces(place_of(a));
  }
};

inline const ShortTail short_tail;

__attribute__((noinline, cold)) inline Vector gelu_far_below(Vector x) {
  Vector only[] = {x};
  activate_by_powers(only);
  return only[0];
}

// Trained networks have next to nothing below -6; down to -9 that is as exact, and 0 from there on.
inline Vector gelu_from(const ShortTail& tail, Vector x) {
  const __mmask16 below = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-ShortTail::kEnd), _CMP_LT_OQ);
  if (__builtin_expect(below != 0, 0)) return gelu_far_below(x);
  return tail.gelu(x);
}

template <typename T>
inline Vector gelu(Vector x) {
  const Vector a = smaller(absolute(x), broadcast(kFarOut));
  return gelu_from_tail(x, a, normal_tail(a));
}

template <>
inline Vector gelu<BFloat16>(Vector x) {
  return gelu_from(short_tail, x);
}

// For loops that are to have all of it in registers: x becomes gelu(x).
template <typename T>
struct Gelu {
  template <int kCount>
  SCALABLEVIT_INLINED void activate(Vector (&x)[kCount]) const {
    for (int v = 0; v < kCount; ++v) x[v] = gelu<T>(x[v]);
  }
};

template <>
struct Gelu<BFloat16> {
  ShortTail tail = short_tail;

  template <int kCount>
  SCALABLEVIT_INLINED void activate(Vector (&x)[kCount]) const {
    for (int v = 0; v < kCount; ++v) x[v] = gelu_from(tail, x[v]);
  }
};

// What the derivative is at -a, in the same pieces as the tail of the same degree; at a it is 1 less that.
inline double slope_below(double a) {
  return 0.5 * std::erfc(a * 0.70710678118654752440) - a * std::exp(-0.5 * a * a) * 0.39894228040143267794;
}

inline const Pieces<Tail::kDegree> slopes([](double position) {
  return position < Tail::kBeyond ? slope_below(position / Tail::kPerUnit) : 0.0;
});

inline const Pieces<ShortTail::kDegree> short_slopes([](double position) {
  return slope_below(ShortTail::distance_at(position));
});

// gelu(x) and its derivative, which is a number where x is infinite or none, too; what is activated is none still where x is
// none, and with it the gradient of the next weight.
SCALABLEVIT_INLINED void find_gelu_and_slope(Vector x, Vector* gelu, Vector* slope, float) {
  const Vector a = smaller(absolute(x), broadcast(kFarOut));
  const Place place = Tail::place_of(a);
  const Vector below = slopes(place);
  *gelu = gelu_from_tail(x, a, normal_tail.pieces(place)), *slope = x < 0.0f ? below : 1.0f - below;
}

// Likewise. Below -6 the one is 0 to 1e-8, and so is the other to 4e-8.
SCALABLEVIT_INLINED void find_gelu_and_slope(Vector x, Vector* gelu, Vector* slope, BFloat16) {
  const Vector a = ShortTail::distance_of(x);
  const Place place = ShortTail::place_of(a);
  const Vector below = short_slopes(place);
  *gelu = (Vector)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x) - a * short_tail.pieces(place);
  *slope = x < 0.0f ? below : 1.0f - below;
}

#else

// x becomes gelu(x).
template <typename T>
struct Gelu {
  template <int kCount>
  SCALABLEVIT_INLINED void activate(Vector (&x)[kCount]) const {
    if constexpr (std::is_same_v<T, BFloat16>) return activate_by_powers(x);
    Vector a[kCount], tails[kCount];
    for (int v = 0; v < kCount; ++v) a[v] = smaller(absolute(x[v]), broadcast(kFarOut));
    find_normal_tails(a, tails);
    for (int v = 0; v < kCount; ++v) x[v] = gelu_from_tail(x[v], a[v], tails[v]);
  }
};

template <typename T>
inline Vector gelu(Vector x) {
  Vector only[] = {x};
  Gelu<T>().activate(only);
  return only[0];
}

#endif

// gelu(x) of some vectors and its derivative, which is P(X <= x) plus x times the density at x.
template <typename T>
struct GeluAndSlope {
  template <int kCount>
  SCALABLEVIT_INLINED void operator()(const Vector (&x)[kCount], Vector (&gelu)[kCount], Vector (&slope)[kCount]) const {
#if SCALABLEVIT_TABLES
    for (int v = 0; v < kCount; ++v) find_gelu_and_slope(x[v], &gelu[v], &slope[v], T());
#else
    Vector a[kCount], tails[kCount], powers[kCount];
    for (int v = 0; v < kCount; ++v) a[v] = smaller(absolute(x[v]), broadcast(kFarOut));
    find_normal_tails(a, tails);
    for (int v = 0; v < kCount; ++v) powers[v] = x[v] * x[v] * -0.72134752044448170f;
    become_powers_of_two(powers);
    for (int v = 0; v < kCount; ++v) {
      gelu[v] = gelu_from_tail(x[v], a[v], tails[v]);
      slope[v] = (x[v] < 0.0f ? tails[v] : 1.0f - tails[v]) + x[v] * (powers[v] * 0.3989422804014327f);
    }
#endif
  }
};

// Rows that come are those from `first_row` on of what is dropped from, here and below.

// out = dropout(gelu(x + bias)); `out` may be x, and where it is not, x is x + bias afterwards.
template <typename T>
void add_bias_gelu(T* x, const float* bias, T* out, int64_t rows, int width, Dropout dropout, int64_t first_row,
                   int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > kAlone)
  for (int64_t row = 0; row < rows; ++row) {
    const RowKeys keys = dropout.keys(first_row + row);
    for_each_vector(width, [&](int i, int count) {
      T* p = x + row * width + i;
      const Vector sum = load_some(p, count) + load_some(bias + i, count), found = gelu<T>(sum);
      if (out != x) store_some(p, sum, count);
      store_some(out + row * width + i, dropout.is_on() ? dropout(found, keys, i) : found, count);
    });
  }
}

// grad = dropout(grad) * gelu'(x + bias), in place, and out = dropout(gelu(x + bias)), which may be x. Without a bias if that
// is no pointer.
template <typename T>
void differentiate_gelu(T* grad, const T* x, const float* bias, T* out, int64_t rows, int width, Dropout dropout,
                        int64_t first_row, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > kAlone)
  for (int64_t row = 0; row < rows; ++row) {
    const RowKeys keys = dropout.keys(first_row + row);
    for_each_vector(width, [&](int i, int count) {
      T* gradient = grad + row * width + i;
      Vector sum = load_some(x + row * width + i, count);
      if (bias) sum += load_some(bias + i, count);
      Vector activated[1], slope[1];
      GeluAndSlope<T>()({sum}, activated, slope);
      const Vector change = load_some(gradient, count) * slope[0];
      store_some(out + row * width + i, dropout.is_on() ? dropout(activated[0], keys, i) : activated[0], count);
      store_some(gradient, dropout.is_on() ? dropout(change, keys, i) : change, count);
    });
  }
}

// out = dropout(x + bias) + residual; what is no pointer is left out. `out` may be x.
template <typename T>
void add_bias_residual(const T* x, const float* bias, const T* residual, T* out, int64_t rows, int width, Dropout dropout,
                       int64_t first_row, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > kAlone)
  for (int64_t row = 0; row < rows; ++row) {
    const RowKeys keys = dropout.keys(first_row + row);
    for_each_vector(width, [&](int i, int count) {
      Vector sum = load_some(x + row * width + i, count);
      if (bias) sum += load_some(bias + i, count);
      if (dropout.is_on()) sum = dropout(sum, keys, i);
      if (residual) sum += load_some(residual + row * width + i, count);
      store_some(out + row * width + i, sum, count);
    });
  }
}

// out = x turned: (columns, rows), rows `out_stride` apart, from rows `stride` apart.
inline void turn_matrix(const float* x, int64_t stride, float* out, int64_t out_stride, int64_t rows, int64_t columns) {
  for (int64_t column = 0; column < columns; column += kLanes)
    for (int64_t row = 0; row < rows; row += kLanes) {
      const int some_rows = (int)std::min<int64_t>(kLanes, rows - row), wide = (int)std::min<int64_t>(kLanes, columns - column);
      Vector square[kLanes] = {};
      for (int i = 0; i < some_rows; ++i) square[i] = load_some(x + (row + i) * stride + column, wide);
      transpose(square);
      for (int j = 0; j < wide; ++j) store_some(out + (column + j) * out_stride + row, square[j], some_rows);
    }
}

}  // namespace scalablevit
