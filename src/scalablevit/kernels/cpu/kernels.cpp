// What the library offers, to Python's ctypes: each operation for float32 and bfloat16.

#include "feed_forward_gradients.h"
#include "patches.h"
#include "rows.h"
#include "sequence.h"
#include "units.h"
#include "windows.h"
#include "winograd.h"

using namespace scalablevit;

// Strides come in the order of the tensors: three of each map (b, h, w) or list (b, n, row). A dropout comes as
// its seed and its probability, 0 for none.
#define OPERATIONS(NAME, T)                                                                                              \
  extern "C" void attend_in_windows_##NAME(const void* query_key, const void* value, void* out, const float* lim_weight, \
                                           const float* lim_bias, int b, int height, int width, int heads,               \
                                           int key_width, int value_width, const int64_t* strides, int window_height,    \
                                           int window_width, float scale, int threads) {                                 \
    attend_in_windows<T>((const T*)query_key, (const T*)value, (T*)out, lim_weight, lim_bias, b, height, width, heads,   \
                         key_width, value_width, {strides[0], strides[1], strides[2]},                                   \
                         {strides[3], strides[4], strides[5]}, window_height, window_width, scale, threads);             \
  }                                                                                                                      \
  extern "C" void differentiate_in_windows_##NAME(                                                                       \
      const void* grad, const void* query_key, const void* value, void* grad_query_key, void* grad_value,                \
      const float* lim_weight, const float* lim_bias, int b, int height, int width, int heads, int key_width,            \
      int value_width, const int64_t* strides, int window_height, int window_width, float scale, int threads) {          \
    differentiate_in_windows<T>((const T*)grad, (const T*)query_key, (const T*)value, (T*)grad_query_key,                \
                                (T*)grad_value, lim_weight, lim_bias, b, height, width, heads, key_width, value_width,   \
                                {strides[0], strides[1], strides[2]}, {strides[3], strides[4], strides[5]},              \
                                {strides[6], strides[7], strides[8]}, window_height, window_width, scale, threads);      \
  }                                                                                                                      \
  extern "C" void attend_to_list_##NAME(const void* query, const void* key, const void* value, void* out, int b,         \
                                        int heads, int queries, int keys, int key_width, int value_width,                \
                                        const int64_t* strides, float scale, uint64_t seed, double probability,          \
                                        int threads) {                                                                   \
    attend_to_list<T>((const T*)query, (const T*)key, (const T*)value, (T*)out, b, heads, queries, keys, key_width,      \
                      value_width, {strides[0], strides[1], strides[2]}, {strides[3], strides[4], strides[5]},           \
                      {strides[6], strides[7], strides[8]}, scale, {seed, probability}, threads);                        \
  }                                                                                                                      \
  extern "C" void differentiate_list_##NAME(const void* grad, const void* query, const void* key, const void* value,     \
                                            void* grad_query, void* grad_key, void* grad_value, int b, int heads,        \
                                            int queries, int keys, int key_width, int value_width,                       \
                                            const int64_t* strides, float scale, uint64_t seed, double probability,      \
                                            int threads) {                                                               \
    differentiate_list<T>((const T*)grad, (const T*)query, (const T*)key, (const T*)value, (T*)grad_query,               \
                          (T*)grad_key, (T*)grad_value, b, heads, queries, keys, key_width, value_width,                 \
                          {strides[0], strides[1], strides[2]}, {strides[3], strides[4], strides[5]},                    \
                          {strides[6], strides[7], strides[8]}, {strides[9], strides[10], strides[11]}, scale,           \
                          {seed, probability}, threads);                                                                 \
  }

#define ROWS(NAME, T)                                                                                                    \
  extern "C" void normalise_##NAME(const void* x, const float* weight, const float* bias, void* out, float* means,       \
                                   float* factors, int64_t rows, int width, float eps, int threads) {                    \
    normalise<T>((const T*)x, weight, bias, (T*)out, means, factors, rows, width, eps, threads);                         \
  }                                                                                                                      \
  extern "C" void differentiate_norm_##NAME(const void* grad, const void* second, const void* x, const float* means,     \
                                            const float* factors, const float* weight, const void* residual, void* out,  \
                                            float* grad_weight, float* grad_bias, int64_t rows, int width,               \
                                            int threads) {                                                               \
    differentiate_norm<T>((const T*)grad, (const T*)second, (const T*)x, means, factors, weight, (const T*)residual,     \
                          (T*)out, grad_weight, grad_bias, rows, width, threads);                                        \
  }                                                                                                                      \
  extern "C" void sum_rows_##NAME(const void* x, float* out, int64_t rows, int width, int threads) {                     \
    sum_rows<T>((const T*)x, out, rows, width, threads);                                                                 \
  }                                                                                                                      \
  extern "C" void add_bias_gelu_##NAME(void* x, const float* bias, void* out, int64_t rows, int width, uint64_t seed,    \
                                       double probability, int64_t first_row, int threads) {                             \
    add_bias_gelu<T>((T*)x, bias, (T*)out, rows, width, {seed, probability}, first_row, threads);                        \
  }                                                                                                                      \
  extern "C" void differentiate_gelu_##NAME(void* grad, const void* x, const float* bias, void* out, int64_t rows,       \
                                            int width, uint64_t seed, double probability, int64_t first_row,             \
                                            int threads) {                                                               \
    differentiate_gelu<T>((T*)grad, (const T*)x, bias, (T*)out, rows, width, {seed, probability}, first_row, threads);   \
  }                                                                                                                      \
  extern "C" void add_bias_residual_##NAME(const void* x, const float* bias, const void* residual, void* out,            \
                                           int64_t rows, int width, uint64_t seed, double probability,                   \
                                           int64_t first_row, int threads) {                                             \
    add_bias_residual<T>((const T*)x, bias, (const T*)residual, (T*)out, rows, width, {seed, probability}, first_row,    \
                         threads);                                                                                       \
  }

#define DEPTHWISE(NAME, T)                                                                                               \
  extern "C" void convolve_depthwise_##NAME(const DepthwiseBlock* block, int threads) {                                  \
    convolve_depthwise<T>(*block, threads);                                                                              \
  }                                                                                                                      \
  extern "C" void differentiate_depthwise_##NAME(const void* grad, const void* x, float* out, int64_t b, int height,     \
                                                 int width, int channels, const int64_t* strides, int threads) {         \
    differentiate_depthwise<T>((const T*)grad, (const T*)x, out, b, height, width, channels,                             \
                               {strides[0], strides[1], strides[2]}, threads);                                           \
  }                                                                                                                      \
  extern "C" void differentiate_cells_##NAME(const void* grad, const void* x, const float* weight, void* grad_x,         \
                                             float* of_parameters, int64_t b, int height, int width, int channels,       \
                                             int r, int threads) {                                                       \
    differentiate_cells<T>((const T*)grad, (const T*)x, weight, (T*)grad_x, of_parameters, b, height, width, channels,   \
                           r, threads);                                                                                  \
  }

OPERATIONS(float32, float)
OPERATIONS(bfloat16, BFloat16)
ROWS(float32, float)
ROWS(bfloat16, BFloat16)
DEPTHWISE(float32, float)
DEPTHWISE(bfloat16, BFloat16)

// From how many rows on layers are faster than PyTorch's.
extern "C" int fewest_rows_float32() { return fewest_rows<float>(); }
extern "C" int fewest_rows_bfloat16() { return fewest_rows<BFloat16>(); }
extern "C" void* new_kept_weight() { return new KeptWeight; }
extern "C" void delete_kept_weight(void* weight) { delete (KeptWeight*)weight; }
extern "C" int has_tiles() { return scalablevit::has_tiles(); }
extern "C" int has_wide_vectors() { return scalablevit::has_wide_vectors(); }
extern "C" int has_undivided_vectors() { return scalablevit::has_undivided_vectors(); }
extern "C" int convolves_faster() { return scalablevit::convolves_faster(); }

#define PRODUCTS(NAME, T, W)                                                                                             \
  extern "C" void feed_forward_block_##NAME(const FeedForwardBlock* block, float eps, uint64_t seed_of_hidden,           \
                                            uint64_t seed_of_result, double probability, int threads) {                  \
    feed_forward_block<T, W>(*block, eps, {seed_of_hidden, probability}, {seed_of_result, probability}, threads);        \
  }                                                                                                                      \
  extern "C" void differentiate_feed_forward_##NAME(const FeedForwardGradients* tensors, uint64_t seed,                  \
                                                    double probability, int threads) {                                   \
    with_products<T>([&](auto kind) {                                                                                    \
      differentiate_feed_forward<typename decltype(kind)::Type, T, W>(*tensors, {seed, probability}, threads);           \
    });                                                                                                                  \
  }                                                                                                                      \
  extern "C" void linear_##NAME(const void* x, const float* norm_weight, const float* norm_bias, const void* weight,     \
                                const float* bias, const void* residual, void* out, void* second, int64_t rows,          \
                                int width, int columns, int first_columns, float eps, void* kept, int threads) {         \
    apply_linear<T, W>((const T*)x, norm_weight, norm_bias, eps, {weight, (KeptWeight*)kept}, bias, (const T*)residual,  \
                       (T*)out, (T*)second, rows, width, columns, first_columns, threads);                               \
  }                                                                                                                      \
  extern "C" void embed_patches_##NAME(const PatchBlock* block, float eps, int threads) {                                \
    embed_patches<T, W>(*block, eps, threads);                                                                           \
  }                                                                                                                      \
  extern "C" void run_steps_##NAME(const Step* steps, int64_t count, const void* x, void* other, void* workspace,        \
                                   void* out, int threads) {                                                             \
    run_steps<T, W>(steps, count, x, other, workspace, out, threads);                                                    \
  }                                                                                                                      \
  extern "C" void attend_in_windows_block_##NAME(const WindowBlock* block, float eps, float scale, int threads) {        \
    attend_in_windows_block<T, W>(*block, eps, scale, threads);                                                          \
  }                                                                                                                      \
  extern "C" void attend_to_list_block_##NAME(const ListBlock* block, float eps, float inner_eps, float scale,           \
                                              int threads) {                                                             \
    attend_to_list_block<T, W>(*block, eps, inner_eps, scale, threads);                                                  \
  }

// Strides are of lines and numbers of the left side, then of the right one.
#define MATRICES(NAME, T, OUT)                                                                                           \
  extern "C" void multiply_##NAME(const void* left, const void* right, void* out, int64_t rows, int64_t columns,         \
                                  int64_t length, const int64_t* strides, int64_t out_stride, int adds, int threads) {   \
    with_products<T>([&](auto kind) {                                                                                    \
      multiply_matrices<typename decltype(kind)::Type, T, T, OUT>(                                                       \
          {(const T*)left, strides[0], strides[1]}, {(const T*)right, strides[2], strides[3]}, (OUT*)out, out_stride,    \
          rows, columns, length, adds, threads);                                                                         \
    });                                                                                                                  \
  }

PRODUCTS(float32_float32, float, float)
PRODUCTS(bfloat16_float32, BFloat16, float)
PRODUCTS(bfloat16_bfloat16, BFloat16, BFloat16)
MATRICES(float32_float32, float, float)
MATRICES(bfloat16_float32, BFloat16, float)
MATRICES(bfloat16_bfloat16, BFloat16, BFloat16)

// Strides are of the weight: of channels of the result, channels that are read, taps.
extern "C" void convolve(const float* x, const float* weight, const float* bias, float* out, int64_t b, int64_t height,
                         int64_t width, int in_channels, int out_channels, const int64_t* strides, int threads) {
  convolve(x, {weight, strides[0], strides[1], strides[2]}, bias, out, {b, height, width}, in_channels, out_channels,
           false, threads);
}

extern "C" void differentiate_weight(const float* x, const float* grad, float* out, int64_t b, int64_t height,
                                     int64_t width, int in_channels, int out_channels, int threads) {
  differentiate_weight(x, grad, out, MapTiles{b, height, width}, in_channels, out_channels, threads);
}
