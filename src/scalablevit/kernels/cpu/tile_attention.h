// Attention of a block of queries to the keys of one head, on tiles, in bfloat16. What `attention.h` does in vectors.
//
// Axes: q queries, k keys, d width of a query and key head, e of a value head. Queries lie in rows: so they go to the tiles
// as they come, weights go from one product to the next, and results come out as they are kept. Keys are turned and values
// paired once for all queries of a head. The sum over keys and the largest score go across lanes, which is little beside
// the exponentials.

#pragma once

#include "attention.h"
#include "tile_products.h"

#if SCALABLEVIT_TILES

namespace scalablevit {

constexpr int kMostKeys = 256;

// 2^x for x <= 0, right to 1e-4: for what is rounded to bfloat16 next.
inline Vector rough_power_of_two(Vector x) {
#if SCALABLEVIT_TABLES
  const Vector r = (Vector)_mm512_reduce_ps((__m512)x, 0b0001);  // behind the next whole number below
  const Vector p = ((r * 7.8024523e-02f + 2.2606716e-01f) * r + 6.9583356e-01f) * r + 9.9992502e-01f;
  return (Vector)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  return power_of_two(x);
#endif
}

inline Integers load_some_bits(const BFloat16* from, int count) {
  if (count >= kLanes) return load_bits(from);
  BFloat16 some[kStep];
  copy_numbers(from, std::max(count, 0), some);
  return load_bits(some);
}

// left @ right for kCount (up to 4) tiles of `right`, in as many steps; those of left lie one after the other.
template <int kCount>
inline void multiply_tiles(const BFloat16* left, const BFloat16* right, int64_t tile_apart, int64_t step_apart, int64_t steps,
                           float* out, int stride) {
  tile_zero(0);
  if (kCount > 1) tile_zero(1);
  if (kCount > 2) tile_zero(2);
  if (kCount > 3) tile_zero(3);
  for (int64_t step = 0; step < steps; ++step, left += kTileSize, right += step_apart) {
    tile_load(4, left);
    tile_load(5, right);
    tile_multiply(0, 4, 5);
    if (kCount > 1) {
      tile_load(6, right + tile_apart);
      tile_multiply(1, 4, 6);
    }
    if (kCount > 2) {
      tile_load(7, right + 2 * tile_apart);
      tile_multiply(2, 4, 7);
    }
    if (kCount > 3) {
      tile_load(5, right + 3 * tile_apart);
      tile_multiply(3, 4, 5);
    }
  }
  tile_store(0, out, stride * 4);
  if (kCount > 1) tile_store(1, out + kTile, stride * 4);
  if (kCount > 2) tile_store(2, out + 2 * kTile, stride * 4);
  if (kCount > 3) tile_store(3, out + 3 * kTile, stride * 4);
}

// The same for any number of tiles, kTile rows at a time.
inline void multiply_rows_of_tiles(const BFloat16* left, const BFloat16* right, int64_t tiles, int64_t tile_apart,
                                   int64_t step_apart, int64_t steps, int rows, float* out, int stride) {
  for (int first = 0; first < rows; first += kTile, left += steps * kTileSize, out += (int64_t)kTile * stride) {
    int64_t t = 0;
    for (; t + 4 <= tiles; t += 4)
      multiply_tiles<4>(left, right + t * tile_apart, tile_apart, step_apart, steps, out + t * kTile, stride);
    const BFloat16* rest = right + t * tile_apart;
    if (tiles - t == 3) multiply_tiles<3>(left, rest, tile_apart, step_apart, steps, out + t * kTile, stride);
    if (tiles - t == 2) multiply_tiles<2>(left, rest, tile_apart, step_apart, steps, out + t * kTile, stride);
    if (tiles - t == 1) multiply_tiles<1>(left, rest, tile_apart, step_apart, steps, out + t * kTile, stride);
  }
}

// What one thread works with, one at a time, since its memory is the thread's: a head's keys and values as tiles, and of a
// block of queries their rows and weights as tiles, their scores (q, k) and results (q, e).
struct TileWorkspace {
  static constexpr int kQueries = 4 * kTile;
  static constexpr bool kDrops = false;

  Tiles tiles;
  const int key_width, value_width, key_steps, value_tiles;
  int keys = 0, weight_steps = 0, score_stride = 0;
  BFloat16 *key, *value, *query, *weights;
  float *scores, *result;
  float factors[kQueries];

  TileWorkspace(int most_keys, int key_width, int value_width)
      : key_width(key_width),
        value_width(value_width),
        key_steps((int)steps_of(key_width)),
        value_tiles((value_width + kTile - 1) / kTile) {
    static thread_local Scratch scratch;
    const int64_t steps = steps_of(most_keys), padded = steps * kStep;
    const int64_t halves[] = {2 * steps * key_steps * kTileSize, steps * value_tiles * kTileSize,
                              (int64_t)kQueries * key_steps * kStep, kQueries * padded};
    key = scratch.take<BFloat16>(halves[0] + halves[1] + halves[2] + halves[3] +
                                 2 * kQueries * (padded + value_tiles * kTile));
    value = key + halves[0];
    query = value + halves[1];
    weights = query + halves[2];
    scores = (float*)(weights + halves[3]);
    result = scores + kQueries * padded;
  }

  // `key_row(k)` and `value_row(k)` are those of `count` keys.
  template <typename KeyRow, typename ValueRow>
  void set_keys(int count, KeyRow key_row, ValueRow value_row) {
    keys = count;
    weight_steps = (int)steps_of(keys);
    score_stride = weight_steps * kStep;
    alignas(64) BFloat16 unturned[kTileSize];
    for (int first = 0; first < keys; first += kTile)
      for (int step = 0; step < key_steps; ++step) {
        const int channel = step * kStep;
        for (int i = 0; i < kTile; ++i)
          if (first + i < keys)
            copy_numbers(key_row(first + i) + channel, key_width - channel, unturned + i * kStep);
          else
            std::memset(unturned + i * kStep, 0, kStep * sizeof(BFloat16));
        turn(unturned, key + (first / kTile * key_steps + step) * kTileSize);
      }
    BFloat16* target = value;  // (step, tile of channels, pair of keys, channel, 2)
    for (int first = 0; first < keys; first += kStep, target += value_tiles * kTileSize)
      for (int pair = 0; pair < kTile; ++pair) {
        const int k = first + 2 * pair;
        const BFloat16* one = k < keys ? value_row(k) : nullptr;
        const BFloat16* other = k + 1 < keys ? value_row(k + 1) : nullptr;
        for (int e = 0; e < value_tiles * kTile; e += kLanes) {
          Integers pairs = {};
          if (one) pairs = load_some_bits(one + e, value_width - e);
          if (other) pairs |= load_some_bits(other + e, value_width - e) << 16;
          std::memcpy(target + e / kTile * kTileSize + pair * kStep + 2 * (e % kTile), &pairs, sizeof pairs);
        }
      }
  }
};

// Softmax over keys of the scores of a query, in kWidth vectors, the last of which may hold fewer keys. Weights go to rows
// of tiles, undivided; what they are to be multiplied by is given.
template <int kWidth>
inline float weigh_row(const float* scores, Integers is_key, float scale, BFloat16* weights) {
  Vector found[kWidth], most = broadcast(-__builtin_huge_valf()), sum = {};
  for (int v = 0; v < kWidth; ++v) {
    found[v] = load(scores + v * kLanes) * scale;
    if (v + 1 == kWidth) found[v] = is_key ? found[v] : broadcast(-__builtin_huge_valf());
    most = larger(found[v], most);
  }
  most = largest(most);
  for (int v = 0; v < kWidth; ++v) {
    found[v] = rough_power_of_two(found[v] - most);
    if (v + 1 == kWidth) found[v] = is_key ? found[v] : Vector{};
    sum += found[v];
  }
  for (int v = 0; v < round_up(kWidth * kLanes, kStep) / kLanes; ++v)
    store(weights + v * kLanes / kStep * kTileSize + v * kLanes % kStep, v < kWidth ? found[v] : Vector{});
  return 1.0f / total(sum);
}

// Calls `body` with a number from 1 to kMost as a constant.
template <int kMost, typename Body>
inline void with_constant(int number, Body body) {
  if constexpr (kMost > 1)
    if (number < kMost) return with_constant<kMost - 1>(number, body);
  body(std::integral_constant<int, kMost>());
}

// `attend_block` of `attention.h`, for no more than kQueries.
template <typename Row, typename Finish>
inline void attend_block(TileWorkspace& work, int count, float scale, Row row, Finish finish) {
  constexpr float log2_of_e = 1.44269504088896341f;
  for (int q = 0; q < count; ++q) {
    const BFloat16* from = row(q);
    BFloat16* to = work.query + q / kTile * work.key_steps * kTileSize + q % kTile * kStep;
    for (int step = 0; step < work.key_steps; ++step)
      copy_numbers(from + step * kStep, work.key_width - step * kStep, to + step * kTileSize);
  }
  asm volatile("" ::: "memory");  // what is packed is in memory: compilers do not know that tiles read it
  const int key_tiles = (work.keys + kTile - 1) / kTile, width = work.value_tiles * kTile;
  multiply_rows_of_tiles(work.query, work.key, key_tiles, work.key_steps * kTileSize, kTileSize, work.key_steps, count,
                         work.scores, work.score_stride);
  asm volatile("" ::: "memory");
  Integers lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const int vectors = (work.keys + kLanes - 1) / kLanes;
  const Integers is_key = lane < work.keys - (vectors - 1) * kLanes;
  with_constant<kMostKeys / kLanes>(vectors, [&](auto constant) {
    for (int q = 0; q < count; ++q)
      work.factors[q] = weigh_row<constant>(work.scores + (int64_t)q * work.score_stride, is_key, scale * log2_of_e,
                                           work.weights + q / kTile * work.weight_steps * kTileSize + q % kTile * kStep);
  });
  asm volatile("" ::: "memory");
  multiply_rows_of_tiles(work.weights, work.value, work.value_tiles, kTileSize, work.value_tiles * kTileSize,
                         work.weight_steps, count, work.result, width);
  asm volatile("" ::: "memory");
  for (int q = 0; q < count; ++q)
    for (int e = 0; e < work.value_width; e += kLanes)
      finish(q, e, load(work.result + (int64_t)q * width + e) * work.factors[q]);
}

}  // namespace scalablevit

#endif
