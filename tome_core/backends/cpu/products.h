// Small matrix products whose sums stay in registers: R rows times V registers of columns.
#pragma once

#include "simd.h"

// The operands of one multiply-add. On the left: one float, or a pair of bf16 that one instruction multiplies and adds.
template <class T>
struct Step;
template <>
struct Step<float> {
    static constexpr int width = 1;
    static __m512 right(const float* p) { return _mm512_loadu_ps(p); }
    static __m512 madd(__m512 acc, const float* a, __m512 b) { return _mm512_fmadd_ps(_mm512_set1_ps(*a), b, acc); }
};
#ifdef TOME_BF16
template <>
struct Step<bf16> {
    static constexpr int width = 2;
    static __m512i right(const bf16* p) { return _mm512_loadu_si512(p); }
    static __m512 madd(__m512 acc, const bf16* a, __m512i b) {
        int32_t pair;
        std::memcpy(&pair, a, sizeof pair);
        return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
    }
};
#endif

// sums[R][16 V] += left[R][steps] * right[steps][16 V], step by step. Strides are in elements; right_stride is that of one
// step. Always inlined, because the sums must stay in registers.
template <class T, int R, int V>
[[gnu::always_inline]] inline void accumulate(__m512 (&sums)[R][V], const T* left, int64_t left_stride, const T* right,
                                              int64_t right_stride, int64_t steps) {
    using S = Step<T>;
    for (int64_t s = 0; s < steps; s++) {
        decltype(S::right(right)) b[V];
#pragma GCC unroll 8
        for (int j = 0; j < V; j++) b[j] = S::right(right + s * right_stride + j * kLanes * S::width);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
#pragma GCC unroll 8
            for (int j = 0; j < V; j++) sums[i][j] = S::madd(sums[i][j], left + i * left_stride + s * S::width, b[j]);
    }
}

// out[R][16 V] = left[R][steps] * right[steps][16 V]
template <class T, int R, int V>
inline void product(const T* left, int64_t left_stride, const T* right, int64_t right_stride, int64_t steps, float* out,
                    int64_t out_stride) {
    __m512 acc[R][V];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
        for (int j = 0; j < V; j++) acc[i][j] = _mm512_setzero_ps();
    accumulate(acc, left, left_stride, right, right_stride, steps);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
        for (int j = 0; j < V; j++) _mm512_storeu_ps(out + i * out_stride + j * kLanes, acc[i][j]);
}

constexpr int kRows = 6, kColumns = 4;  // 24 of the 32 registers hold sums

// The same product for up to kRows rows and any number of columns, rounded up to registers of 16.
template <class T, int R = kRows>
inline void products(int64_t rows, int64_t columns, const T* left, int64_t left_stride, const T* right,
                     int64_t right_stride, int64_t steps, float* out, int64_t out_stride) {
    if constexpr (R > 1) {
        if (rows < R) {
            products<T, R - 1>(rows, columns, left, left_stride, right, right_stride, steps, out, out_stride);
            return;
        }
    }
    const auto run = [&](auto v, int64_t j) {
        product<T, R, decltype(v)::value>(left, left_stride, right + j * Step<T>::width, right_stride, steps, out + j,
                                          out_stride);
    };
    int64_t j = 0;
    for (; j + kColumns * kLanes <= columns; j += kColumns * kLanes) run(std::integral_constant<int, kColumns>{}, j);
    switch ((columns - j + kLanes - 1) / kLanes) {
        case 3: run(std::integral_constant<int, 3>{}, j); break;
        case 2: run(std::integral_constant<int, 2>{}, j); break;
        case 1: run(std::integral_constant<int, 1>{}, j); break;
    }
}

// Transposes 16 rows of 16 units in place.
inline void transpose(__m512i (&t)[kLanes]) {
    __m512i u[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes; i += 2) {
        u[i] = _mm512_unpacklo_epi32(t[i], t[i + 1]);
        u[i + 1] = _mm512_unpackhi_epi32(t[i], t[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            t[i + 2 * j] = _mm512_unpacklo_epi64(u[i + j], u[i + j + 2]);
            t[i + 2 * j + 1] = _mm512_unpackhi_epi64(u[i + j], u[i + j + 2]);
        }
    // Quarter l of t[4 q + c] now holds units 4 l + c of rows 4 q to 4 q + 3.
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const __m512i even_low = _mm512_shuffle_i32x4(t[c], t[c + 4], 0x88);
        const __m512i even_high = _mm512_shuffle_i32x4(t[c + 8], t[c + 12], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(t[c], t[c + 4], 0xdd);
        const __m512i odd_high = _mm512_shuffle_i32x4(t[c + 8], t[c + 12], 0xdd);
        t[c] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
        t[c + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
        t[c + 8] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
        t[c + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
    }
}

// Transposes rows[n][head_dim] to a right side: packed[head_dim / width][columns], where columns >= n, padded with
// zeros.
template <class T>
void pack_transposed(const T* rows, int64_t stride, int64_t n, int64_t head_dim, T* packed, int64_t columns) {
    using Unit = uint32_t;  // one float or one pair of bf16
    auto* out = reinterpret_cast<Unit*>(packed);
    const int64_t units = head_dim / Step<T>::width;
    for (int64_t base = 0; base < columns; base += kLanes)
        for (int64_t unit = 0; unit < units; unit += kLanes) {
            const __mmask16 wide = first_lanes_mask(units - unit);
            __m512i t[kLanes];
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; i++)
                t[i] = _mm512_maskz_loadu_epi32(base + i < n ? wide : 0, reinterpret_cast<const Unit*>(rows + (base + i) * stride) + unit);
            transpose(t);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; i++)
                if (unit + i < units) _mm512_storeu_si512(out + (unit + i) * columns + base, t[i]);
        }
}
