// Declarations of the kernels that encoder.cpp calls, for both types of activations. Their .cpp files document them.
#pragma once

#include "simd.h"

#define TOME_KERNELS(T, suffix)                                                                                        \
    void tome_linear_##suffix(const T* x, const T* weight, const float* bias, int64_t rows, int64_t inputs,            \
                              int64_t outputs, int gelu, const T* residual, T* out);                                   \
    void tome_mlp_##suffix(const T* x, const T* weight1, const float* bias1, const T* weight2, const float* bias2,     \
                           int64_t rows, int64_t inputs, int64_t hidden, int64_t outputs, const T* residual, T* out);  \
    void tome_attention_##suffix(const T* q, const T* k, const T* v, int64_t q_stride, int64_t k_stride,               \
                                 int64_t v_stride, const float* bias, const int64_t* offsets, int64_t images,          \
                                 int64_t heads, int64_t head_dim, float scale, T* out);                                \
    void tome_merge_##suffix(const T* x, const T* k, int64_t k_stride, const float* sizes, const int64_t* offsets,     \
                             const int64_t* out_offsets, int64_t images, int64_t dim, int64_t heads, int64_t head_dim, \
                             int64_t prefix, T* out, float* out_sizes, int64_t* dest, uint8_t* merged);                \
    void tome_layer_norm_##suffix(const T* x, const float* weight, const float* bias, int64_t rows, int64_t dim,       \
                                  float eps, T* out);

#pragma GCC visibility push(default)
extern "C" {
void tome_prepare();      // must run once, before all others but tome_supported
int64_t tome_mlp_rows();  // with fewer rows, two linear layers balance the threads better and are faster than an MLP
TOME_KERNELS(float, f32)
TOME_KERNELS(bf16, bf16)
}
#pragma GCC visibility pop

// The same kernels, selected by type.
template <class T>
struct Kernels;
#define TOME_KERNELS_OF(T, suffix)                                 \
    template <>                                                    \
    struct Kernels<T> {                                            \
        static constexpr auto linear = tome_linear_##suffix;       \
        static constexpr auto mlp = tome_mlp_##suffix;             \
        static constexpr auto attention = tome_attention_##suffix; \
        static constexpr auto merge = tome_merge_##suffix;         \
        static constexpr auto layer_norm = tome_layer_norm_##suffix; \
    };
TOME_KERNELS_OF(float, f32)
TOME_KERNELS_OF(bf16, bf16)
