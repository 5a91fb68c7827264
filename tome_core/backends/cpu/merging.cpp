// Matching and merging the tokens of each image of a packed buffer, by one of the rules of `tome_core.merging`.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "matching.h"

namespace {

struct Buffers {
    Scratch<int32_t> next_merging;   // for each token: the next with the same destination, or -1
    Scratch<int32_t> first_merging;  // for each destination: the first token that merges into it, or -1
};
thread_local Buffers buffers;

// The length of a token as a vector.
float length_of(const Activation* token, int64_t dim) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t c = 0; c < dim; c += kLanes) {
        const __m512 x = load(token + c, first_lanes_mask(dim - c));
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    return std::sqrt(_mm512_reduce_add_ps(squares));
}

// Averages the tokens that share a destination, weighted by size. A token that nothing merges into is copied. Where it
// `keeps_length`, the mean is as long as its tokens are on average. Where it is `shared`, all threads do it together.
void apply(const Activation* x, const float* sizes, int64_t dim, int64_t n, const int64_t* dest, const bool* merged,
           bool keeps_length, bool shared, Activation* out, float* out_sizes) {
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
        const auto mean_at = [&](int64_t c, __mmask16 inside) {
            __m512 sum = _mm512_mul_ps(load(x + staying * dim + c, inside), _mm512_set1_ps(own_size));
            for (int32_t token = head; token >= 0; token = next_merging[token]) {
                const __m512 size = _mm512_set1_ps(sizes ? sizes[token] : 1);
                sum = _mm512_fmadd_ps(load(x + token * dim + c, inside), size, sum);
            }
            return _mm512_div_ps(sum, _mm512_set1_ps(total));
        };
        float factor = 1;
        if (keeps_length) {
            float wanted = own_size * length_of(x + staying * dim, dim);
            for (int32_t token = head; token >= 0; token = next_merging[token])
                wanted += (sizes ? sizes[token] : 1) * length_of(x + token * dim, dim);
            __m512 squares = _mm512_setzero_ps();
            for (int64_t c = 0; c < dim; c += kLanes) {
                const __m512 mean = mean_at(c, first_lanes_mask(dim - c));
                squares = _mm512_fmadd_ps(mean, mean, squares);
            }
            factor = wanted / total / std::max(std::sqrt(_mm512_reduce_add_ps(squares)), kEps);
        }
        for (int64_t c = 0; c < dim; c += kLanes) {
            const __mmask16 inside = first_lanes_mask(dim - c);
            store(to + c, _mm512_mul_ps(mean_at(c, inside), _mm512_set1_ps(factor)), inside);
        }
        out_sizes[destination] = total;
    }
}

}  // namespace

void tome_merge(const Activation* x, const Activation* k, int64_t k_stride, const float* sizes, const int64_t* offsets,
                const int64_t* out_offsets, int64_t images, int64_t dim, int64_t heads, int64_t head_dim,
                int64_t prefix, Rule rule, Activation* out, float* out_sizes, int64_t* dest, bool* merged) {
    const bool pairs = rule != kPaper;
    const auto merge_image = [&](int64_t image, bool shared) {
        const int64_t at = offsets[image], to = out_offsets[image], n = offsets[image + 1] - at;
        const int64_t r = n - (out_offsets[image + 1] - to);
        const float* own = sizes ? sizes + at : nullptr;
        if (r > 0) {
            const Keys keys{k + at * k_stride, k_stride, heads, head_dim};
            if (pairs)
                match_pairs(keys, n, prefix, r, rule == kNearest, shared, dest + at, merged + at);
            else
                match_as_paper(keys, n, prefix, r, shared, dest + at, merged + at);
            apply(x + at * dim, own, dim, n, dest + at, merged + at, pairs, shared, out + to * dim, out_sizes + to);
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
