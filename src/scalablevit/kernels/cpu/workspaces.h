// Which workspace serves attention: in bfloat16 that of tiles where there are some, else that of vectors.

#pragma once

#include "tile_attention.h"

namespace scalablevit {

template <typename Work>
struct Kind {
  using Type = Work;
};

// Calls `body` with the kind of workspace that serves numbers of type T, and so many keys, here.
template <typename T, typename Body>
inline void with_workspace(int most_keys, Body body) {
#if SCALABLEVIT_TILES
  if constexpr (std::is_same_v<T, BFloat16>)
    if (has_tiles() && most_keys <= kMostKeys) return body(Kind<TileWorkspace>());
#endif
  body(Kind<Workspace>());
}

}  // namespace scalablevit
