// Blocks one after the other, each of which reads what the one before gave: the layers of a stage.
//
// Only the first block leaves what it reads as it is. The others write where they read, in caches that hold it, but for those
// that read the neighbours of a position.

#pragma once

#include "blocks.h"
#include "depthwise.h"

namespace scalablevit {

// In the order of `_BRANCHES` in calls.py.
enum class Branch : int64_t { windows, list, feed_forward, depthwise };

// What comes from Python of one block: the map that it reads, the result and the workspace are left open in its struct.
struct Step {
  Branch branch;
  const void* block;
  float factors[4];  // in the order in which the branch takes them
};

template <typename T, typename W>
void run_step(const Step& step, const void* x, void* workspace, void* out, int threads) {
  const float* f = step.factors;
  const auto with_maps = [&](auto block) {
    block.x = x, block.out = out;
    return block;
  };
  if (step.branch == Branch::windows) {
    WindowBlock block = with_maps(*(const WindowBlock*)step.block);
    block.workspace = workspace;
    attend_in_windows_block<T, W>(block, f[0], f[1], threads);
  } else if (step.branch == Branch::list) {
    ListBlock block = with_maps(*(const ListBlock*)step.block);
    block.workspace = workspace;
    attend_to_list_block<T, W>(block, f[0], f[1], f[2], threads);
  } else if (step.branch == Branch::feed_forward) {
    feed_forward_block<T, W>(with_maps(*(const FeedForwardBlock*)step.block), f[0], {0, 0.0}, {0, 0.0}, threads);
  } else {
    DepthwiseBlock block = with_maps(*(const DepthwiseBlock*)step.block);
    block.workspace = workspace;
    convolve_depthwise<T>(block, threads);
  }
}

// `other` is as large as the map; without a depthwise block after the first it may be null.
template <typename T, typename W>
void run_steps(const Step* steps, int64_t count, const void* x, void* other, void* workspace, void* out, int threads) {
  // Whether a step writes to the other one of the two maps.
  const auto turns = [&](int64_t i) { return i > 0 && steps[i].branch == Branch::depthwise; };
  void* to = out;  // of the first block, so that the last one's is `out`
  for (int64_t i = 0; i < count; ++i)
    if (turns(i)) to = to == out ? other : out;
  for (int64_t i = 0; i < count; ++i) {
    if (turns(i)) to = to == out ? other : out;
    run_step<T, W>(steps[i], x, workspace, to, threads);
    x = to;
  }
}

}  // namespace scalablevit
