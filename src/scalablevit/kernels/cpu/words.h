// Words of 32 bits, which vectors multiply: a float, or a pair of bfloat16 where the processor multiplies pairs and adds them
// up in float32, for which what is below 1e-38 is zero. A kind of number, float or BFloat16, says which.

#pragma once

#include <algorithm>

#include "vectors.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && !defined(SCALABLEVIT_FOUR_LANES)
#define SCALABLEVIT_PAIRS 1
#else
#define SCALABLEVIT_PAIRS 0
#endif

namespace scalablevit {

constexpr int kStep = 32;  // numbers that come at once

template <typename Number>
constexpr int kNumbersOfWord = sizeof(float) / sizeof(Number);

template <typename Number, typename Count>
inline Count words_of(Count numbers) {
  return (numbers + kNumbersOfWord<Number> - 1) / kNumbersOfWord<Number>;
}

// `count` of up to kStep numbers, and zeros after them.
inline void copy_numbers(const BFloat16* from, int count, BFloat16* to) {
#if defined(__AVX512BW__)
  const __mmask32 wanted = count >= kStep ? ~0u : (1u << count) - 1;
  _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(wanted, from));
#else
  for (int i = 0; i < kStep; ++i) to[i] = i < count ? from[i] : BFloat16{0};
#endif
}

// kStep numbers, each as what is nearest to it in bfloat16.
inline void store_nearest(BFloat16* to, const Vector* numbers) {
#if SCALABLEVIT_PAIRS
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)numbers[1], (__m512)numbers[0]);
  std::memcpy(to, &both, sizeof both);
#else
  for (int v = 0; v < kStep / kLanes; ++v) store(to + v * kLanes, numbers[v]);
#endif
}

// What is nearest to x in bfloat16.
inline Vector nearest(Vector x) {
  BFloat16 halves[kLanes];
  store(halves, x);
  return load(halves);
}

// Pairs of numbers of bfloat16, which the upper halves of `first` and `second` are.
inline Vector pairs_of(Vector first, Vector second) {
#if defined(__AVX512BW__) && !defined(SCALABLEVIT_FOUR_LANES)
  return (Vector)_mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)((Bits)first >> 16), (__m512i)second);
#else
  return (Vector)(((Bits)first >> 16) | ((Bits)second & 0xffff0000));
#endif
}

#if defined(__AVX512BW__) && !defined(SCALABLEVIT_FOUR_LANES)
// The upper halves of one, then those of the other.
inline Vector upper_halves(Vector first, Vector second) {
  alignas(64) static constexpr uint16_t odd[] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return (Vector)_mm512_permutex2var_epi16((__m512i)first, _mm512_load_si512(odd), (__m512i)second);
}
#endif

// Pairs of what is nearest to these numbers in bfloat16.
inline Vector pairs_nearest(Vector first, Vector second) {
#if SCALABLEVIT_PAIRS
  alignas(64) static constexpr uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  return (Vector)_mm512_permutexvar_epi16(_mm512_load_si512(order), halves);
#else
  return pairs_of(nearest(first), nearest(second));
#endif
}

// Words of kLanes numbers, or pairs of numbers.
inline Vector words_nearest(const Vector (&numbers)[1], float) { return numbers[0]; }
inline Vector words_nearest(const Vector (&numbers)[2], BFloat16) { return pairs_nearest(numbers[0], numbers[1]); }

// kLanes words, of the `count` numbers of a line that are left.
inline Vector load_words(const float* from, int64_t count, float) {
  return load_some(from, (int)std::clamp<int64_t>(count, 0, kLanes));
}

inline Vector load_words(const BFloat16* from, int64_t count, float) {
  return load_some(from, (int)std::clamp<int64_t>(count, 0, kLanes));
}

// sum + word * words.
inline Vector multiply_add(Vector sum, float word, Vector words, float) { return sum + word * words; }

#if SCALABLEVIT_PAIRS
inline Vector load_words(const BFloat16* from, int64_t count, BFloat16) {
  Vector words;
  BFloat16 numbers[2 * kLanes];
  copy_numbers(from, (int)std::clamp<int64_t>(count, 0, 2 * kLanes), numbers);
  std::memcpy(&words, numbers, sizeof words);
  return words;
}

inline Vector load_words(const float* from, int64_t count, BFloat16) {
  Vector words;
  BFloat16 numbers[2 * kLanes];
  store(numbers, load_words(from, count, 0.0f));
  store(numbers + kLanes, load_words(from + kLanes, count - kLanes, 0.0f));
  std::memcpy(&words, numbers, sizeof words);
  return words;
}

inline Vector multiply_add(Vector sum, float word, Vector words, BFloat16) {
  int bits;
  std::memcpy(&bits, &word, sizeof bits);
  return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(bits), (__m512bh)words);
}
#endif

}  // namespace scalablevit
