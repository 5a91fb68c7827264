// The largest of several values, and where it is.
#pragma once

#include <limits>
#include <tuple>

#include "simd.h"

// The largest of values[i] + added[i] for i from begin to end, and its i; the first of equal ones. NaN counts as the
// smallest. With no value above -inf: -inf, and any number.
inline std::pair<float, int32_t> largest(const float* values, const float* added, int64_t begin, int64_t end) {
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __m512i index_of_most = _mm512_setzero_si512();
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(begin)));
    for (int64_t j = begin; j < end; j += kLanes) {
        const __mmask16 inside = first_lanes_mask(end - j);
        __m512 x = load(values + j, inside);
        if (added) x = _mm512_add_ps(x, load(added + j, inside));
        const __mmask16 more = _mm512_mask_cmp_ps_mask(inside, x, most, _CMP_GT_OQ);
        most = _mm512_mask_mov_ps(most, more, x);
        index_of_most = _mm512_mask_mov_epi32(index_of_most, more, index);
        index = _mm512_add_epi32(index, _mm512_set1_epi32(kLanes));
    }
    const float top = _mm512_reduce_max_ps(most);
    const __mmask16 tied = _mm512_cmp_ps_mask(most, _mm512_set1_ps(top), _CMP_EQ_OQ);
    return {top, _mm512_mask_reduce_min_epi32(tied, index_of_most)};
}
