// Bipartite soft matching and the weighted merge (ToMe, section 3), image by image over a packed buffer.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "kernels.h"
#include "products.h"

namespace {

constexpr float kEps = 1e-12f;  // that of torch.nn.functional.normalize, which `Bipartite` uses

struct Buffers {
    Scratch<float> unit_a;  // the metric of the tokens of A, as unit vectors
    Scratch<float> unit_b;
    Scratch<float> transposed_b;
    Scratch<float> similarities;
    Scratch<float> best;       // for each token of A: the largest similarity
    Scratch<int32_t> partner;  // and the token of B that has it
    Scratch<int32_t> order;
    Scratch<int32_t> next_merging;   // for each token: the next with the same destination, or -1
    Scratch<int32_t> first_merging;  // for each destination: the first token that merges into it, or -1
};
thread_local Buffers buffers;

// With fewer tokens in an image, waking the other threads for it takes longer than matching them.
constexpr int64_t kWorthWaking = 1 << 10;
constexpr int64_t kRowsAtOnce = 32;  // that a thread takes, so that one that other processes slow down takes fewer

// The metric of the tokens begin, begin + 2, ...: the mean of their keys over the heads, as unit vectors
// unit[count][head_dim].
void unit_keys(const Activation* k, int64_t stride, int64_t heads, int64_t head_dim, int64_t begin, int64_t count,
               float* unit) {
    const __m512 share = _mm512_set1_ps(1.0f / heads);
    for (int64_t i = 0; i < count; i++) {
        const Activation* row = k + (begin + 2 * i) * stride;
        float* out = unit + i * head_dim;
        __m512 squares = _mm512_setzero_ps();
        for (int64_t c = 0; c < head_dim; c += kLanes) {
            __m512 sum = load(row + c);
            for (int64_t h = 1; h < heads; h++) sum = _mm512_add_ps(sum, load(row + h * head_dim + c));
            sum = _mm512_mul_ps(sum, share);
            squares = _mm512_fmadd_ps(sum, sum, squares);
            _mm512_storeu_ps(out + c, sum);
        }
        const float norm = std::max(std::sqrt(_mm512_reduce_add_ps(squares)), kEps);
        for (int64_t c = 0; c < head_dim; c += kLanes)
            _mm512_storeu_ps(out + c, _mm512_div_ps(load(out + c), _mm512_set1_ps(norm)));
    }
}

// The largest of n values and its index; the first of equal ones. NaN counts as the smallest.
inline std::pair<float, int32_t> largest(const float* values, int64_t n) {
    __m512 most = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __m512i index_of_most = _mm512_setzero_si512();
    __m512i index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int64_t j = 0; j < n; j += kLanes) {
        const __mmask16 inside = first_lanes_mask(n - j);
        const __m512 x = load(values + j, inside);
        const __mmask16 more = _mm512_mask_cmp_ps_mask(inside, x, most, _CMP_GT_OQ);
        most = _mm512_mask_mov_ps(most, more, x);
        index_of_most = _mm512_mask_mov_epi32(index_of_most, more, index);
        index = _mm512_add_epi32(index, _mm512_set1_epi32(kLanes));
    }
    const float top = _mm512_reduce_max_ps(most);
    const __mmask16 tied = _mm512_cmp_ps_mask(most, _mm512_set1_ps(top), _CMP_EQ_OQ);
    return {top, _mm512_mask_reduce_min_epi32(tied, index_of_most)};
}

// Matches one image: dest[n] is old position -> new position, merged[n] whether the token merges into another. Where it is
// `shared`, all threads do it together.
void match(const Activation* k, int64_t stride, int64_t heads, int64_t head_dim, int64_t n, int64_t prefix, int64_t r,
           bool shared, int64_t* dest, bool* merged) {
    // Sets A and B alternate; prefix tokens are counted, but stay out of both.
    const int64_t first_a = prefix + prefix % 2;
    const int64_t first_b = prefix + 1 - prefix % 2;
    const int64_t count_a = (n - first_a + 1) / 2;
    const int64_t count_b = (n - first_b + 1) / 2;
    const int64_t columns = round_up(count_b, kLanes);
    float* unit_b = buffers.unit_b.reserve(count_b * head_dim);
    float* transposed_b = buffers.transposed_b.reserve(columns * head_dim);
    float* best = buffers.best.reserve(count_a);
    int32_t* partner = buffers.partner.reserve(count_a);
    int32_t* order = buffers.order.reserve(count_a);
    unit_keys(k, stride, heads, head_dim, first_b, count_b, unit_b);
    pack_transposed(unit_b, head_dim, count_b, head_dim, transposed_b, columns);
    // The most similar token of B for each token of A, kRows tokens of A at a time.
#pragma omp parallel for schedule(dynamic, kRowsAtOnce / kRows) if (shared)
    for (int64_t start = 0; start < count_a; start += kRows) {
        // Buffers of the thread that runs this, while the others are of the thread that began.
        float* unit_a = buffers.unit_a.reserve(kRows * head_dim);
        float* similarities = buffers.similarities.reserve(kRows * columns);
        const int64_t rows = std::min<int64_t>(kRows, count_a - start);
        unit_keys(k, stride, heads, head_dim, first_a + 2 * start, rows, unit_a);
        products<float>(rows, columns, unit_a, head_dim, transposed_b, columns, head_dim, similarities, columns);
        for (int64_t row = 0; row < rows; row++)
            std::tie(best[start + row], partner[start + row]) = largest(similarities + row * columns, count_b);
    }
    // The r most similar tokens of A merge; of equal ones, the first.
    std::iota(order, order + count_a, 0);
    std::nth_element(order, order + r, order + count_a,
                     [&](int32_t i, int32_t j) { return best[i] > best[j] || (best[i] == best[j] && i < j); });
    for (int64_t i = 0; i < n; i++) {
        merged[i] = false;
        dest[i] = i;
    }
    for (int64_t i = 0; i < r; i++) merged[first_a + 2 * order[i]] = true;
    // New positions: prefix tokens, unmerged tokens of A, tokens of B. A merging token gets that of its partner.
    const int64_t first_destination = prefix + count_a - r;
    int64_t next_unmerged = prefix;
    for (int64_t i = 0; i < count_a; i++) {
        const int64_t token = first_a + 2 * i;
        dest[token] = merged[token] ? first_destination + partner[i] : next_unmerged++;
    }
    for (int64_t i = 0; i < count_b; i++) dest[first_b + 2 * i] = first_destination + i;
}

// Averages the tokens that share a destination, weighted by size. A token that nothing merges into is copied. Where it is
// `shared`, all threads do it together.
void apply(const Activation* x, const float* sizes, int64_t dim, int64_t n, const int64_t* dest, const bool* merged,
           bool shared, Activation* out, float* out_sizes) {
    // A linked list of the merging tokens of each destination, in order of position.
    int32_t* next_merging = buffers.next_merging.reserve(n);
    int32_t* first_merging = buffers.first_merging.reserve(n);
    std::fill(first_merging, first_merging + n, -1);
    for (int64_t token = n - 1; token >= 0; token--) {
        if (!merged[token]) continue;
        next_merging[token] = first_merging[dest[token]];
        first_merging[dest[token]] = token;
    }
#pragma omp parallel for schedule(dynamic, kRowsAtOnce) if (shared)
    for (int64_t staying = 0; staying < n; staying++) {
        if (merged[staying]) continue;
        const int64_t destination = dest[staying];
        const int32_t head = first_merging[destination];
        Activation* to = out + destination * dim;
        const float own_size = sizes ? sizes[staying] : 1;
        // Nothing merges into this token.
        if (head < 0) {
            std::memcpy(to, x + staying * dim, dim * sizeof(Activation));
            out_sizes[destination] = own_size;
            continue;
        }
        // The mean of the token and all that merge into it, one register of channels at a time.
        float total = own_size;
        for (int32_t token = head; token >= 0; token = next_merging[token]) total += sizes ? sizes[token] : 1;
        for (int64_t c = 0; c < dim; c += kLanes) {
            const __mmask16 inside = first_lanes_mask(dim - c);
            __m512 sum = _mm512_mul_ps(load(x + staying * dim + c, inside), _mm512_set1_ps(own_size));
            for (int32_t token = head; token >= 0; token = next_merging[token]) {
                const __m512 size = _mm512_set1_ps(sizes ? sizes[token] : 1);
                sum = _mm512_fmadd_ps(load(x + token * dim + c, inside), size, sum);
            }
            store(to + c, _mm512_div_ps(sum, _mm512_set1_ps(total)), inside);
        }
        out_sizes[destination] = total;
    }
}

}  // namespace

void tome_merge(const Activation* x, const Activation* k, int64_t k_stride, const float* sizes, const int64_t* offsets,
                const int64_t* out_offsets, int64_t images, int64_t dim, int64_t heads, int64_t head_dim,
                int64_t prefix, Activation* out, float* out_sizes, int64_t* dest, bool* merged) {
    const auto merge_image = [&](int64_t image, bool shared) {
        const int64_t at = offsets[image], to = out_offsets[image], n = offsets[image + 1] - at;
        const int64_t r = n - (out_offsets[image + 1] - to);
        const float* own = sizes ? sizes + at : nullptr;
        if (r > 0) {
            match(k + at * k_stride, k_stride, heads, head_dim, n, prefix, r, shared, dest + at, merged + at);
            apply(x + at * dim, own, dim, n, dest + at, merged + at, shared, out + to * dim, out_sizes + to);
            return;
        }
        std::memcpy(out + to * dim, x + at * dim, n * dim * sizeof(Activation));
        for (int64_t i = 0; i < n; i++) {
            out_sizes[to + i] = own ? own[i] : 1;
            dest[at + i] = i;
            merged[at + i] = false;
        }
    };
    // All threads share one large image. That must not begin within a parallel region, not even in one of a single
    // thread: threads of a nested region are created anew each time.
    if (images == 1 && offsets[1] - offsets[0] > kWorthWaking) {
        merge_image(0, true);
        return;
    }
    // Else each thread takes whole images, which stay in its cache.
#pragma omp parallel for schedule(dynamic)
    for (int64_t image = 0; image < images; image++) merge_image(image, false);
}
