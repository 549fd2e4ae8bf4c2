// Vectors of floats, from float or bfloat16 in memory, by the vector extensions of GCC and Clang alone, so that one source
// serves AVX-512, AVX2 and NEON.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Where a call would cost more than what is called: of what loops keep in registers it would leave nothing there.
#define SCALABLEVIT_INLINED inline __attribute__((always_inline))

namespace scalablevit {

#if defined(__aarch64__) || defined(SCALABLEVIT_FOUR_LANES)  // the tests define it, on processors of another kind
constexpr int kLanes = 4;
constexpr int kVectors = 4, kRows = 5, kChannels = 4, kRowsOfTwo = 7, kRowsOfOne = 7;
#elif defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kVectors = 4;  // of queries at once
// Rows of sums that lie in registers, of 32, beside so many vectors, two, or one, and a broadcast; of channels, whose number is
// a power of 2 as a rule, the second.
constexpr int kRows = 5, kChannels = 4, kRowsOfTwo = 7, kRowsOfOne = 7;
#else
constexpr int kLanes = 8;
constexpr int kVectors = 2, kRows = 5, kChannels = 6, kRowsOfTwo = 6, kRowsOfOne = 8;  // of 16 registers
#endif
constexpr int kBlock = kLanes * kVectors;  // queries at once

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t Bits __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));

struct BFloat16 {
  uint16_t bits;
};

inline Vector broadcast(float x) { return x - Vector{}; }

inline Vector load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Sixteen bits each, in the lower halves of the lanes.
inline Integers load_bits(const BFloat16* p) {
#if defined(__AVX512F__) && !defined(SCALABLEVIT_FOUR_LANES)  // GCC 13 makes a dozen instructions of the other form
  __m256i bits;
  std::memcpy(&bits, p, sizeof bits);
  return (Integers)_mm512_cvtepu16_epi32(bits);
#else
  Halves bits;
  std::memcpy(&bits, p, sizeof bits);
  return __builtin_convertvector(bits, Integers);
#endif
}

inline Vector load(const BFloat16* p) { return (Vector)(load_bits(p) << 16); }

inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

inline void store(BFloat16* p, Vector v) {
#if defined(__AVX512BF16__) && !defined(SCALABLEVIT_FOUR_LANES)
  // One instruction in the place of seven. It takes what is below 1e-38 for zero.
  const __m256bh rounded_by_processor = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &rounded_by_processor, sizeof rounded_by_processor);
  return;
#endif
  const Integers bits = (Integers)v;
  // To the nearest, ties to even; what is no number stays none.
  const Integers rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Halves halves = __builtin_convertvector(v == v ? rounded : (bits >> 16) | 0x40, Halves);
  std::memcpy(p, &halves, sizeof halves);
}

// The same past the caches, where that can be: for what is not read before much else is. Other threads see it after
// `finish_past_caches`.
#if defined(__AVX512F__) && !defined(SCALABLEVIT_FOUR_LANES)
inline void store_past_caches(float* p, Vector v) { (uintptr_t)p % 64 ? store(p, v) : _mm512_stream_ps(p, (__m512)v); }
#elif defined(__AVX2__) && !defined(SCALABLEVIT_FOUR_LANES)
inline void store_past_caches(float* p, Vector v) { (uintptr_t)p % 32 ? store(p, v) : _mm256_stream_ps(p, (__m256)v); }
#else
inline void store_past_caches(float* p, Vector v) { store(p, v); }
#endif

inline void store_past_caches(BFloat16* p, Vector v) { store(p, v); }

inline void finish_past_caches() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// The first `count` elements, and zeros after them.
template <typename T>
inline Vector load_some(const T* p, int count) {
  if (count >= kLanes) return load(p);
  T buffer[kLanes] = {};
  std::memcpy(buffer, p, count * sizeof(T));
  return load(buffer);
}

// Both are `b` where one is no number.
#if defined(__AVX512F__) && !defined(SCALABLEVIT_FOUR_LANES)  // GCC 12 makes two instructions of the last form
inline Vector larger(Vector a, Vector b) { return (Vector)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vector smaller(Vector a, Vector b) { return (Vector)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__) && !defined(SCALABLEVIT_FOUR_LANES)
inline Vector larger(Vector a, Vector b) { return (Vector)_mm256_max_ps((__m256)a, (__m256)b); }
inline Vector smaller(Vector a, Vector b) { return (Vector)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline Vector smaller(Vector a, Vector b) { return a < b ? a : b; }
#endif

inline Vector absolute(Vector x) { return (Vector)((Integers)x & 0x7fffffff); }

// The sum over the lanes.
template <int kStep, int... kLane>
inline Vector fold(Vector v, std::integer_sequence<int, kLane...>) {
  return v + __builtin_shufflevector(v, v, (kLane ^ kStep)...);
}

template <int kStep = kLanes / 2>
inline float total(Vector v) {
  if constexpr (kStep > 0)
    return total<kStep / 2>(fold<kStep>(v, std::make_integer_sequence<int, kLanes>()));
  else
    return v[0];
}

// The largest of the lanes, in each of them.
template <int kStep, int... kLane>
inline Vector larger_half(Vector v, std::integer_sequence<int, kLane...>) {
  return larger(v, __builtin_shufflevector(v, v, (kLane ^ kStep)...));
}

template <int kStep = kLanes / 2>
inline Vector largest(Vector v) {
  if constexpr (kStep > 0)
    return largest<kStep / 2>(larger_half<kStep>(v, std::make_integer_sequence<int, kLanes>()));
  else
    return v;
}

template <typename T>
inline void store_some(T* p, Vector v, int count) {
  if (count >= kLanes) return store(p, v);
  T buffer[kLanes];
  store(buffer, v);
  std::memcpy(p, buffer, count * sizeof(T));
}

// Calls `body(i, count)` for each vector of a row of so many elements: at i, with kLanes of them, the last with fewer.
template <typename Body>
inline void for_each_vector(int width, Body body) {
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) body(i, kLanes);
  if (i < width) body(i, width - i);
}

// One step of a transposition: of each pair of rows `step` apart, the off-diagonal blocks of `step` lanes change places.
template <int kStep, int... kLane>
inline void exchange(Vector* rows, std::integer_sequence<int, kLane...>) {
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const Vector a = rows[i], b = rows[i | kStep];
    rows[i] = __builtin_shufflevector(a, b, (kLane & kStep ? kLanes + (kLane ^ kStep) : kLane)...);
    rows[i | kStep] = __builtin_shufflevector(a, b, (kLane & kStep ? kLanes + kLane : (kLane ^ kStep))...);
  }
}

template <int kStep = kLanes / 2>
inline void transpose(Vector* rows) {
  if constexpr (kStep > 0) {
    exchange<kStep>(rows, std::make_integer_sequence<int, kLanes>());
    transpose<kStep / 2>(rows);
  }
}

constexpr float kToExponent = 12582912.0f + 127.0f;  // 1.5 * 2^23 rounds to whole numbers, 127 is the exponent of 1

// The polynomial with such coefficients, that of the highest power first, at each of some vectors: what is read of it is read
// once for all of them.
template <int kCount, int kCoefficients>
SCALABLEVIT_INLINED void evaluate(const float (&coefficients)[kCoefficients], const Vector (&x)[kCount], Vector (&p)[kCount]) {
  for (int v = 0; v < kCount; ++v) p[v] = broadcast(coefficients[0]);
  for (int i = 1; i < kCoefficients; ++i)
    for (int v = 0; v < kCount; ++v) p[v] = p[v] * x[v] + coefficients[i];
}

// x becomes 2^x, for -126 <= x <= 127, by a polynomial that is right within half a whole number from 0.
template <int kCount, int kCoefficients>
SCALABLEVIT_INLINED void raise_two(const float (&coefficients)[kCoefficients], Vector (&x)[kCount]) {
  Vector shifted[kCount], rest[kCount];
  for (int v = 0; v < kCount; ++v) shifted[v] = x[v] + kToExponent, rest[v] = x[v] - (shifted[v] - kToExponent);
  evaluate(coefficients, rest, x);
  for (int v = 0; v < kCount; ++v) x[v] *= (Vector)((Integers)shifted[v] << 23);
}

// The same to about one unit in the last place.
template <int kCount>
SCALABLEVIT_INLINED void raise_two_exactly(Vector (&x)[kCount]) {
  static constexpr float of_power[] = {1.5345812e-4f, 1.3399931e-3f, 9.618489e-3f, 5.5503286e-2f,
                                       0.24022646f,   0.6931472f,    1.0f};
  raise_two(of_power, x);
}

// 2^x for x <= 0, to about one unit in the last place; what is below 2^-126 is 2^-126, as smaller numbers are slow. What is no
// number stays none. Of one vector, or in place of some.
#if defined(__AVX512F__) && defined(__AVX512DQ__) && !defined(SCALABLEVIT_FOUR_LANES)
inline Vector power_of_two(Vector x) {
  x = (Vector)_mm512_max_ps(_mm512_set1_ps(-126.0f), (__m512)x);
  const Vector r = (Vector)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);  // from the nearest whole number
  Vector p = broadcast(1.5353356e-4f);
  p = p * r + 0.0013398875f;
  p = p * r + 0.0096184369f;
  p = p * r + 0.055503324f;
  p = p * r + 0.24022648f;
  p = p * r + 0.69314718f;
  p = p * r + 1.0f;
  return (Vector)_mm512_scalef_ps((__m512)p, (__m512)(x - r));
}

template <int kCount>
SCALABLEVIT_INLINED void become_powers_of_two(Vector (&x)[kCount]) {
  for (int v = 0; v < kCount; ++v) x[v] = power_of_two(x[v]);
}
#else
template <int kCount>
SCALABLEVIT_INLINED void become_powers_of_two(Vector (&x)[kCount]) {
  for (int v = 0; v < kCount; ++v) x[v] = larger(broadcast(-126.0f), x[v]);
  raise_two_exactly(x);
}

inline Vector power_of_two(Vector x) {
  Vector only[] = {x};
  become_powers_of_two(only);
  return only[0];
}
#endif

inline int round_up(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

}  // namespace scalablevit
