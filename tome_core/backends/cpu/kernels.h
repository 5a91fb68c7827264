// Declarations of the kernels that encoder.cpp calls. Their .cpp files document them.
#pragma once

#include "simd.h"

#pragma GCC visibility push(default)
extern "C" {
void tome_prepare();      // must run once, before all others but tome_supported
int64_t tome_mlp_rows();  // with fewer rows, two linear layers balance the threads better and are faster than an MLP
void tome_linear(const Activation* x, const Activation* weight, const float* bias, int64_t rows, int64_t inputs,
                 int64_t outputs, int gelu, const Activation* residual, Activation* out);
void tome_mlp(const Activation* x, const Activation* weight1, const float* bias1, const Activation* weight2,
              const float* bias2, int64_t rows, int64_t inputs, int64_t hidden, int64_t outputs,
              const Activation* residual, Activation* out);
void tome_attention(const Activation* q, const Activation* k, const Activation* v, int64_t q_stride, int64_t k_stride,
                    int64_t v_stride, const float* bias, const int64_t* offsets, int64_t images, int64_t heads,
                    int64_t head_dim, float scale, Activation* out);
void tome_merge(const Activation* x, const Activation* k, int64_t k_stride, const float* sizes, const int64_t* offsets,
                const int64_t* out_offsets, int64_t images, int64_t dim, int64_t heads, int64_t head_dim,
                int64_t prefix, Activation* out, float* out_sizes, int64_t* dest, uint8_t* merged);
void tome_layer_norm(const Activation* x, const float* weight, const float* bias, int64_t rows, int64_t dim, float eps,
                     Activation* out);
}
#pragma GCC visibility pop
