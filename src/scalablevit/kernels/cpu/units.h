// What computes what, on this processor: tiles where there are some, vectors elsewhere.

#pragma once

#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

#include "tile_attention.h"
#include "vector_products.h"

namespace scalablevit {

template <typename Found>
struct Kind {
  using Type = Found;
};

// Calls `body` with the kind of workspace that serves attention in numbers of type T, and so many keys, here. That
// on tiles drops nothing.
template <typename T, typename Body>
inline void with_workspace(int most_keys, bool drops, Body body) {
#if SCALABLEVIT_TILES
  if constexpr (std::is_same_v<T, BFloat16>)
    if (has_tiles() && most_keys <= kMostKeys && !drops) return body(Kind<TileWorkspace>());
#endif
  body(Kind<Workspace<std::conditional_t<SCALABLEVIT_PAIRS, T, float>>>());
}

// Calls `body` with the policy of `packing.h` that multiplies numbers of type T here.
template <typename T, typename Body>
inline void with_products(Body body) {
#if SCALABLEVIT_TILES
  if (has_tiles()) return body(Kind<TileProducts<T>>());
#endif
  body(Kind<VectorProducts<std::conditional_t<SCALABLEVIT_PAIRS, T, float>>>());
}

// Vectors of 16 numbers.
inline bool has_wide_vectors() {
#if defined(__AVX512F__) && !defined(SCALABLEVIT_FOUR_LANES)
  return true;
#else
  return false;
#endif
}

// Whether PyTorch's products leave much to be gained. In float32 it multiplies by Intel's MKL, which is at its best on Intel's
// processors; products in pairs of bfloat16 have been measured on AMD's (docs/log.md).
inline bool is_foreign_to_mkl() {
#if defined(__x86_64__) && defined(__AVX2__) && defined(__GNUC__) && !defined(SCALABLEVIT_FOUR_LANES)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

// AMD's family from Zen 5 on, of which most work on wide vectors in one piece (not all of laptops); those before take halves.
// Products of PyTorch's by MKL do not know that, and what is around products counts for more (docs/log.md).
inline bool has_undivided_vectors() {
#if defined(__x86_64__) && defined(__AVX512F__) && defined(__GNUC__) && !defined(SCALABLEVIT_FOUR_LANES)
  static const bool found = [] {  // virtual machines take microseconds to answer
    unsigned signature, other;
    if (!is_foreign_to_mkl() || !__get_cpuid(1, &signature, &other, &other, &other)) return false;
    return (signature >> 8 & 15) + (signature >> 20 & 255) >= 26;  // base family and what exceeds it
  }();
  return found;
#else
  return false;
#endif
}

// Whether convolutions by `winograd.h` are known to be faster than PyTorch's.
inline bool convolves_faster() { return has_wide_vectors() || is_foreign_to_mkl(); }

// From how many rows on layers in numbers of type T are faster than PyTorch's.
template <typename T>
inline int fewest_rows() {
  constexpr int only_if_asked = std::numeric_limits<int>::max();
  if (has_tiles()) return 1;
  if (std::is_same_v<T, float>) return is_foreign_to_mkl() ? 1 : only_if_asked;
#if defined(__x86_64__) && defined(__AVX512F__)
  return SCALABLEVIT_PAIRS && is_foreign_to_mkl() ? 1 : only_if_asked;
#elif defined(__x86_64__)
  return 1;  // for which PyTorch has plain loops
#else
  return only_if_asked;
#endif
}

}  // namespace scalablevit
