// What the library offers, to Python's ctypes: each operation for float32 and bfloat16.

#include "lists.h"
#include "rows.h"
#include "windows.h"

using namespace scalablevit;

// Strides come in the order of the tensors: three of each map (b, h, w) or list (b, n, row).
#define OPERATIONS(NAME, T)                                                                                              \
  extern "C" void attend_in_windows_##NAME(const void* query_key, const void* value, void* out, const float* lim_weight, \
                                           const float* lim_bias, int b, int height, int width, int heads,              \
                                           int key_width, int value_width, const int64_t* strides, int window_height,   \
                                           int window_width, float scale, int threads) {                                \
    attend_in_windows<T>((const T*)query_key, (const T*)value, (T*)out, lim_weight, lim_bias, b, height, width, heads,  \
                         key_width, value_width, {strides[0], strides[1], strides[2]},                                  \
                         {strides[3], strides[4], strides[5]}, window_height, window_width, scale, threads);            \
  }                                                                                                                      \
  extern "C" void differentiate_in_windows_##NAME(                                                                       \
      const void* grad, const void* query_key, const void* value, void* grad_query_key, void* grad_value,               \
      const float* lim_weight, const float* lim_bias, int b, int height, int width, int heads, int key_width,           \
      int value_width, const int64_t* strides, int window_height, int window_width, float scale, int threads) {         \
    differentiate_in_windows<T>((const T*)grad, (const T*)query_key, (const T*)value, (T*)grad_query_key,               \
                                (T*)grad_value, lim_weight, lim_bias, b, height, width, heads, key_width, value_width,  \
                                {strides[0], strides[1], strides[2]}, {strides[3], strides[4], strides[5]},             \
                                {strides[6], strides[7], strides[8]}, window_height, window_width, scale, threads);     \
  }                                                                                                                      \
  extern "C" void attend_to_list_##NAME(const void* query, const void* key, const void* value, void* out, int b,        \
                                        int heads, int queries, int keys, int key_width, int value_width,               \
                                        const int64_t* strides, float scale, int threads) {                             \
    attend_to_list<T>((const T*)query, (const T*)key, (const T*)value, (T*)out, b, heads, queries, keys, key_width,     \
                      value_width, {strides[0], strides[1], strides[2]}, {strides[3], strides[4], strides[5]},          \
                      {strides[6], strides[7], strides[8]}, scale, threads);                                            \
  }                                                                                                                      \
  extern "C" void differentiate_list_##NAME(const void* grad, const void* query, const void* key, const void* value,    \
                                            void* grad_query, void* grad_key, void* grad_value, int b, int heads,       \
                                            int queries, int keys, int key_width, int value_width,                      \
                                            const int64_t* strides, float scale, int threads) {                         \
    differentiate_list<T>((const T*)grad, (const T*)query, (const T*)key, (const T*)value, (T*)grad_query,              \
                          (T*)grad_key, (T*)grad_value, b, heads, queries, keys, key_width, value_width,                \
                          {strides[0], strides[1], strides[2]}, {strides[3], strides[4], strides[5]},                   \
                          {strides[6], strides[7], strides[8]}, {strides[9], strides[10], strides[11]}, scale, threads); \
  }

#define ROWS(NAME, T)                                                                                                    \
  extern "C" void normalise_##NAME(const void* x, const float* weight, const float* bias, void* out, int64_t rows,      \
                                   int width, float eps, int threads) {                                                 \
    normalise<T>((const T*)x, weight, bias, (T*)out, rows, width, eps, threads);                                        \
  }                                                                                                                      \
  extern "C" void add_bias_gelu_##NAME(void* x, const float* bias, int64_t rows, int width, int threads) {              \
    add_bias_gelu<T>((T*)x, bias, rows, width, threads);                                                                \
  }                                                                                                                      \
  extern "C" void differentiate_gelu_##NAME(void* grad, void* x, const float* bias, int64_t rows, int width,            \
                                            int threads) {                                                              \
    differentiate_gelu<T>((T*)grad, (T*)x, bias, rows, width, threads);                                                 \
  }                                                                                                                      \
  extern "C" void add_bias_residual_##NAME(void* out, const float* bias, const void* residual, int64_t rows, int width, \
                                           int threads) {                                                               \
    add_bias_residual<T>((T*)out, bias, (const T*)residual, rows, width, threads);                                      \
  }

OPERATIONS(float32, float)
OPERATIONS(bfloat16, BFloat16)
ROWS(float32, float)
ROWS(bfloat16, BFloat16)
