// Bipartite soft matching and the weighted merge (ToMe, section 3), image by image over a packed buffer.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "kernels.h"
#include "products.h"

namespace {

// The mean of an image's keys over the heads, as unit vectors: rows begin, begin + 2, ... of unit[count][depth].
template <class T>
void unit_keys(const T* k, int64_t stride, int64_t heads, int64_t depth, int64_t begin, int64_t count, float* unit) {
    const __m512 share = _mm512_set1_ps(1.0f / heads);
    for (int64_t i = 0; i < count; i++) {
        const T* row = k + (begin + 2 * i) * stride;
        float* out = unit + i * depth;
        __m512 squares = _mm512_setzero_ps();
        for (int64_t c = 0; c < depth; c += kLanes) {
            __m512 sum = load(row + c);
            for (int64_t h = 1; h < heads; h++) sum = _mm512_add_ps(sum, load(row + h * depth + c));
            sum = _mm512_mul_ps(sum, share);
            squares = _mm512_fmadd_ps(sum, sum, squares);
            _mm512_storeu_ps(out + c, sum);
        }
        const float norm = std::max(std::sqrt(_mm512_reduce_add_ps(squares)), 1e-12f);
        for (int64_t c = 0; c < depth; c += kLanes)
            _mm512_storeu_ps(out + c, _mm512_div_ps(load(out + c), _mm512_set1_ps(norm)));
    }
}

// The largest of n values, the first where several are; NaN counts as the smallest.
inline std::pair<float, int32_t> largest(const float* values, int64_t n) {
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __m512i where = _mm512_setzero_si512();
    __m512i here = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int64_t j = 0; j < n; j += kLanes) {
        const __m512 x = load(values + j, first(n - j));
        const __mmask16 more = _mm512_mask_cmp_ps_mask(first(n - j), x, most, _CMP_GT_OQ);
        most = _mm512_mask_mov_ps(most, more, x);
        where = _mm512_mask_mov_epi32(where, more, here);
        here = _mm512_add_epi32(here, _mm512_set1_epi32(kLanes));
    }
    const float top = _mm512_reduce_max_ps(most);
    const __mmask16 tied = _mm512_cmp_ps_mask(most, _mm512_set1_ps(top), _CMP_EQ_OQ);
    return {top, _mm512_mask_reduce_min_epi32(tied, where)};
}

// For one image: dest[n], old position -> new position, and merged[n], whether a token goes into another.
template <class T>
void match(const T* k, int64_t stride, int64_t heads, int64_t depth, int64_t n, int64_t prefix, int64_t r, int64_t* dest,
           uint8_t* merged) {
    const int64_t first_a = prefix + prefix % 2, first_b = prefix + 1 - prefix % 2;
    const int64_t a = (n - first_a + 1) / 2, b = (n - first_b + 1) / 2, columns = round_up(b, kLanes);
    float* unit_a = scratch<0, float>(a * depth);
    float* unit_b = scratch<1, float>(b * depth);
    float* packed = scratch<2, float>(columns * depth);
    float* similar = scratch<3, float>(kRows * columns);
    float* best = scratch<4, float>(a);
    int32_t* partner = scratch<5, int32_t>(a);
    int32_t* order = scratch<6, int32_t>(a);
    unit_keys(k, stride, heads, depth, first_a, a, unit_a);
    unit_keys(k, stride, heads, depth, first_b, b, unit_b);
    pack_transposed(unit_b, depth, b, depth, packed, columns);
    for (int64_t i = 0; i < a; i += kRows) {
        const int64_t rows = std::min<int64_t>(kRows, a - i);
        products<float>(rows, columns, unit_a + i * depth, depth, packed, columns, depth, similar, columns);
        for (int64_t j = 0; j < rows; j++) std::tie(best[i + j], partner[i + j]) = largest(similar + j * columns, b);
    }
    std::iota(order, order + a, 0);
    std::nth_element(order, order + r, order + a,
                     [&](int32_t i, int32_t j) { return best[i] > best[j] || (best[i] == best[j] && i < j); });
    for (int64_t i = 0; i < n; i++) merged[i] = 0, dest[i] = i;
    for (int64_t i = 0; i < r; i++) merged[first_a + 2 * order[i]] = 1;
    const int64_t first_destination = prefix + a - r;
    int64_t unmerged = prefix;
    for (int64_t i = 0; i < a; i++) {
        const int64_t at = first_a + 2 * i;
        dest[at] = merged[at] ? first_destination + partner[i] : unmerged++;
    }
    for (int64_t j = 0; j < b; j++) dest[first_b + 2 * j] = first_destination + j;
}

// The average of tokens that share a destination, weighted by size; a token that nothing merges into is copied.
template <class T>
void apply(const T* x, const float* sizes, int64_t dim, int64_t n, const int64_t* dest, const uint8_t* merged, T* out,
           float* out_sizes) {
    int32_t* next = scratch<7, int32_t>(n);   // the next token with the same destination, or -1
    int32_t* found = scratch<8, int32_t>(n);  // by destination: the first token that merges into it, or -1
    std::fill(found, found + n, -1);
    for (int64_t i = n - 1; i >= 0; i--)
        if (merged[i]) next[i] = found[dest[i]], found[dest[i]] = i;
    for (int64_t i = 0; i < n; i++) {
        if (merged[i]) continue;
        T* to = out + dest[i] * dim;
        const float own = sizes ? sizes[i] : 1;
        if (found[dest[i]] < 0) {
            std::memcpy(to, x + i * dim, dim * sizeof(T));
            out_sizes[dest[i]] = own;
            continue;
        }
        float total = own;
        for (int32_t j = found[dest[i]]; j >= 0; j = next[j]) total += sizes ? sizes[j] : 1;
        for (int64_t c = 0; c < dim; c += kLanes) {
            const __mmask16 m = first(dim - c);
            __m512 sum = _mm512_mul_ps(load(x + i * dim + c, m), _mm512_set1_ps(own));
            for (int32_t j = found[dest[i]]; j >= 0; j = next[j])
                sum = _mm512_fmadd_ps(load(x + j * dim + c, m), _mm512_set1_ps(sizes ? sizes[j] : 1), sum);
            store(to + c, _mm512_div_ps(sum, _mm512_set1_ps(total)), m);
        }
        out_sizes[dest[i]] = total;
    }
}

template <class T>
void merge(const T* x, const T* k, int64_t k_stride, const float* sizes, const int64_t* offsets,
           const int64_t* out_offsets, int64_t images, int64_t dim, int64_t heads, int64_t depth, int64_t prefix, T* out,
           float* out_sizes, int64_t* dest, uint8_t* merged) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t image = 0; image < images; image++) {
        const int64_t at = offsets[image], to = out_offsets[image], n = offsets[image + 1] - at;
        const int64_t r = n - (out_offsets[image + 1] - to);
        const float* own = sizes ? sizes + at : nullptr;
        if (r > 0) {
            match(k + at * k_stride, k_stride, heads, depth, n, prefix, r, dest + at, merged + at);
            apply(x + at * dim, own, dim, n, dest + at, merged + at, out + to * dim, out_sizes + to);
            continue;
        }
        std::memcpy(out + to * dim, x + at * dim, n * dim * sizeof(T));
        for (int64_t i = 0; i < n; i++) out_sizes[to + i] = own ? own[i] : 1, dest[at + i] = i, merged[at + i] = 0;
    }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {
void tome_merge_bf16(const bf16* x, const bf16* k, int64_t k_stride, const float* sizes, const int64_t* offsets,
                     const int64_t* out_offsets, int64_t images, int64_t dim, int64_t heads, int64_t depth,
                     int64_t prefix, bf16* out, float* out_sizes, int64_t* dest, uint8_t* merged) {
    merge(x, k, k_stride, sizes, offsets, out_offsets, images, dim, heads, depth, prefix, out, out_sizes, dest, merged);
}
void tome_merge_f32(const float* x, const float* k, int64_t k_stride, const float* sizes, const int64_t* offsets,
                    const int64_t* out_offsets, int64_t images, int64_t dim, int64_t heads, int64_t depth,
                    int64_t prefix, float* out, float* out_sizes, int64_t* dest, uint8_t* merged) {
    merge(x, k, k_stride, sizes, offsets, out_offsets, images, dim, heads, depth, prefix, out, out_sizes, dest, merged);
}
}
