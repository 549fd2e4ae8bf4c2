// The matrix unit of a processor (Intel's AMX): eight tiles of 16 rows of 64 bytes, which multiply numbers of bfloat16 and
// add up in float32. On other processors nothing here is used; tests emulate it in plain loops.

#pragma once

#include "packing.h"

#if defined(SCALABLEVIT_EMULATED_TILES)
#define SCALABLEVIT_TILES 1
#elif defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__) && !defined(SCALABLEVIT_FOUR_LANES) && \
    !defined(SCALABLEVIT_NO_TILES)
#define SCALABLEVIT_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define SCALABLEVIT_TILES 0
#endif

namespace scalablevit {

constexpr int kTile = 16;                 // rows of a tile, and numbers of float32 in a row
constexpr int kTileSize = kTile * kStep;  // numbers of bfloat16 in a tile, of which a row has kStep
static_assert(kStep == 2 * kTile && kGroup == 2 * kTile);

#if defined(SCALABLEVIT_EMULATED_TILES)

inline bool has_tiles() { return true; }

struct Tiles {};  // for as long as it lives, this thread has tiles

inline float (&tile(int number))[kTile][kTile] {
  static thread_local float tiles[8][kTile][kTile];
  return tiles[number];
}

inline void tile_zero(int number) { std::memset(tile(number), 0, sizeof tile(number)); }

inline void tile_load(int number, const void* p) { std::memcpy(tile(number), p, sizeof tile(number)); }

inline void tile_store(int number, void* p, int stride) {
  for (int row = 0; row < kTile; ++row) std::memcpy((char*)p + (int64_t)row * stride, tile(number)[row], 64);
}

inline void tile_multiply(int sums, int left, int right) {
  BFloat16 of_left[kTile][kStep], of_right[kTile][kTile][2];
  std::memcpy(of_left, tile(left), sizeof of_left);
  std::memcpy(of_right, tile(right), sizeof of_right);
  for (int row = 0; row < kTile; ++row)
    for (int column = 0; column < kTile; ++column) {
      float total = 0.0f;
      for (int k = 0; k < kStep; ++k) total += to_float(of_left[row][k]) * to_float(of_right[k / 2][column][k % 2]);
      tile(sums)[row][column] += total;
    }
}

#elif SCALABLEVIT_TILES

// Linux lends the tiles' registers to a process that asks for them.
inline bool has_tiles() {
  static const bool permitted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
  return permitted;
}

// Compilers believe that a configuration is as long as a pointer: all of it is to be in memory.
inline void settle(void* p) { asm volatile("" : : "r"(p) : "memory"); }

// For as long as it lives, this thread has tiles of full size. Who configured them before finds them so again.
struct Tiles {
  struct Configuration {
    uint8_t palette = 1, first_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };
  Configuration before;

  Tiles() {
    has_tiles();
    settle(&before);
    _tile_storeconfig(&before);
    settle(&before);
    Configuration ours;
    for (int i = 0; i < 8; ++i) ours.row_bytes[i] = 64, ours.rows[i] = kTile;
    settle(&ours);
    _tile_loadconfig(&ours);
  }
  ~Tiles() {
    settle(&before);
    if (before.palette)
      _tile_loadconfig(&before);
    else
      _tile_release();
  }
  Tiles(const Tiles&) = delete;
};

// Numbers of tiles are part of the instructions, so that these are macros.
#define tile_zero(number) _tile_zero(number)
#define tile_load(number, p) _tile_loadd(number, p, 64)
#define tile_store(number, p, stride) _tile_stored(number, p, stride)
#define tile_multiply(sums, left, right) _tile_dpbf16ps(sums, left, right)

#else

inline bool has_tiles() { return false; }

#endif

}  // namespace scalablevit
