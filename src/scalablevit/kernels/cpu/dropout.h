// Dropout whose masks are computed where they are wanted, and in the backward pass once more, instead of being kept.
//
// Whether an element is zeroed follows from a seed, the number of its row and its place in the row, so that it does not
// depend on the number of threads. Each row has two keys, of the seed and its number by SplitMix64 (Steele and others, OOPSLA
// 2014); between its steps the hash of 32 bits of C. Wellons (nullprogram.com/blog/2018/07/31, "lowbias32") takes them in.

#pragma once

#include "vectors.h"

namespace scalablevit {

typedef uint32_t Unsigned __attribute__((vector_size(kLanes * sizeof(uint32_t))));

struct RowKeys {
  uint32_t first, second;
};

struct Dropout {
  uint64_t seed;
  uint32_t least;  // that leaves an element
  float factor;    // of what is left

  Dropout(uint64_t seed = 0, double probability = 0.0)
      : seed(seed), least((uint32_t)(probability * 0x1p32)), factor((float)(1.0 / (1.0 - least * 0x1p-32))) {}

  bool is_on() const { return least > 0; }

  RowKeys keys(int64_t row) const {
    uint64_t bits = seed + ((uint64_t)row + 1) * 0x9e3779b97f4a7c15u;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    return {(uint32_t)bits, (uint32_t)(bits >> 32)};
  }

  // Whether each of some elements is left, by the keys of its row and its place in it.
  Integers leaves(Unsigned first, Unsigned second, Unsigned place) const {
    Unsigned bits = first + place;
    bits = (bits ^ (bits >> 16)) * 0x7feb352du;
    bits ^= second;
    bits = (bits ^ (bits >> 15)) * 0x846ca68bu;
    bits ^= bits >> 16;
    return bits >= least;
  }

  // What is left of kLanes elements of a row, from `place` on.
  Vector operator()(Vector elements, RowKeys keys, int place) const {
    Unsigned places = {};
    for (int lane = 0; lane < kLanes; ++lane) places[lane] = lane;
    const Integers left = leaves(keys.first - Unsigned{}, keys.second - Unsigned{}, places + (uint32_t)place);
    return left ? elements * factor : Vector{};
  }
};

}  // namespace scalablevit
