// Proportional attention (ToMe, equation 1) over a packed buffer, without padding.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "functions.h"
#include "kernels.h"
#include "products.h"

namespace {

constexpr int64_t kBlock = 2 * kRows;  // query rows whose logits fit together into the first-level cache

struct Buffers {
    Scratch<Activation> keys;
    Scratch<Activation> values;
    Scratch<float> logits;
    Scratch<Activation> weights;
    Scratch<float> sums;
};
thread_local Buffers buffers;

// Softmax to the base 2 of logits * scale + bias over n columns, before the division. Writes the weights, with zeros from
// n to columns. Returns their sum.
float softmax(float* logits, const float* bias, float scale, int64_t n, int64_t columns, Activation* weights) {
    const __m512 scales = _mm512_set1_ps(scale);
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (int64_t j = 0; j < n; j += kLanes) {
        const __mmask16 m = first_lanes_mask(n - j);
        const __m512 x = _mm512_fmadd_ps(load(logits + j), scales, bias ? load(bias + j, m) : _mm512_setzero_ps());
        _mm512_storeu_ps(logits + j, x);
        most = _mm512_mask_max_ps(most, m, most, x);
    }
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < columns; j += kLanes) {
        const __mmask16 m = first_lanes_mask(n > j ? n - j : 0);
        const __m512 e = _mm512_maskz_mov_ps(m, exp2(_mm512_sub_ps(load(logits + j), top)));
        sum = _mm512_add_ps(sum, e);
        store(weights + j, e);
    }
    return _mm512_reduce_add_ps(sum);
}

// Packs the values as a right side. For float this is a copy; for bf16 two rows are interleaved, so that pairs are adjacent.
template <class T>
void pack_values(const T* v, int64_t stride, int64_t n, int64_t head_dim, T* packed) {
    for (int64_t i = 0; i < n; i += Step<T>::width) {
        if constexpr (Step<T>::width == 1) {
            std::memcpy(packed + i * head_dim, v + i * stride, head_dim * sizeof(T));
        } else {
            for (int64_t c = 0; c < head_dim; c += kLanes) {
                const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(v + i * stride + c)));
                __m512i high = _mm512_setzero_si512();
                if (i + 1 < n) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(v + (i + 1) * stride + c)));
                _mm512_storeu_si512(packed + i * head_dim + 2 * c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        }
    }
}

// Attention of one head of one image. q, k, v and out point to its first token.
void attend(const Activation* q, int64_t q_stride, const Activation* k, int64_t k_stride, const Activation* v,
            int64_t v_stride, const float* bias, int64_t n, int64_t head_dim, float scale, Activation* out,
            int64_t out_stride) {
    constexpr int width = Step<Activation>::width;
    const int64_t columns = round_up(n, kLanes);
    Activation* keys = buffers.keys.reserve(columns * head_dim);
    Activation* values = buffers.values.reserve(columns * head_dim);
    float* logits = buffers.logits.reserve(kBlock * columns);
    Activation* weights = buffers.weights.reserve(kBlock * columns);
    float* sums = buffers.sums.reserve(kBlock * head_dim);
    pack_transposed(k, k_stride, n, head_dim, keys, columns);
    pack_values(v, v_stride, n, head_dim, values);
    for (int64_t start = 0; start < n; start += kBlock) {
        const int64_t rows = std::min(kBlock, n - start);
        float total[kBlock];
        for (int64_t i = 0; i < rows; i += kRows)
            products<Activation>(std::min<int64_t>(kRows, rows - i), columns, q + (start + i) * q_stride, q_stride, keys,
                                 columns * width, head_dim / width, logits + i * columns, columns);
        for (int64_t i = 0; i < rows; i++)
            total[i] = softmax(logits + i * columns, bias, scale, n, columns, weights + i * columns);
        for (int64_t i = 0; i < rows; i += kRows)
            products<Activation>(std::min<int64_t>(kRows, rows - i), head_dim, weights + i * columns, columns, values,
                                 head_dim * width, (n + width - 1) / width, sums + i * head_dim, head_dim);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t c = 0; c < head_dim; c += kLanes) {
                const __m512 mean = _mm512_mul_ps(load(sums + i * head_dim + c), _mm512_set1_ps(1 / total[i]));
                store(out + (start + i) * out_stride + c, mean);
            }
    }
}

}  // namespace

// q, k and v are (tokens, heads, head_dim), each with its own stride between tokens; out is contiguous.
void tome_attention(const Activation* q, const Activation* k, const Activation* v, int64_t q_stride, int64_t k_stride,
                    int64_t v_stride, const float* bias, const int64_t* offsets, int64_t images, int64_t heads,
                    int64_t head_dim, float scale, Activation* out) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < images * heads; task++) {
        const int64_t image = task / heads, column = task % heads * head_dim, at = offsets[image];
        attend(q + at * q_stride + column, q_stride, k + at * k_stride + column, k_stride, v + at * v_stride + column,
               v_stride, bias ? bias + at : nullptr, offsets[image + 1] - at, head_dim, scale,
               out + at * heads * head_dim + column, heads * head_dim);
    }
}
