// The rules "pairs" and "nearest": r times, the most similar two of all free tokens become a pair (`tome_core.pairs`).
#include <algorithm>
#include <cmath>
#include <limits>

#include "largest.h"
#include "matching.h"
#include "products.h"

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
// What NaN becomes, so that such a pair comes last: below any cosine, and the lowest of all numbers.
constexpr float kLowestCosine = -2, kLowestDistance = std::numeric_limits<float>::lowest();

struct Buffers {
    Scratch<Activation> transposed;
    Scratch<float> of_each;       // for each token: 1 / the length of its key, or half of its square
    Scratch<float> similarities;  // of each token with those at higher positions; the others have no meaning
    Scratch<float> taken;         // for each token: 0, or kNever once it is in a pair
    Scratch<float> best;          // for each free token: the largest similarity with a free one at a higher position
    Scratch<int32_t> partner;     // and the token that has it
};
thread_local Buffers buffers;

// For each key of `width` numbers 1 / its length, or for "nearest" half of its square; for columns past the last token, 0.
void measure_keys(const Activation* keys, int64_t stride, int64_t width, int64_t count, int64_t columns, bool nearest, float* of_each) {
    for (int64_t i = 0; i < count; i++) {
        __m512 squares = _mm512_setzero_ps();
        for (int64_t c = 0; c < width; c += kLanes) {
            const __m512 x = load(keys + i * stride + c);
            squares = _mm512_fmadd_ps(x, x, squares);
        }
        const float square = _mm512_reduce_add_ps(squares);
        of_each[i] = nearest ? square / 2 : 1 / std::max(std::sqrt(square), kEps);
    }
    std::fill(of_each + count, of_each + columns, 0.0f);
}

// Makes cosines of the products of token i with those from `from` on.
void make_cosines(float* products_of_i, float own, const float* inverse_lengths, int64_t from, int64_t columns) {
    for (int64_t j = from; j < columns; j += kLanes) {
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(own), load(inverse_lengths + j));
        const __m512 cosine = _mm512_mul_ps(load(products_of_i + j), scale);
        const __mmask16 is_nan = _mm512_cmp_ps_mask(cosine, cosine, _CMP_UNORD_Q);
        store(products_of_i + j, _mm512_mask_mov_ps(cosine, is_nan, _mm512_set1_ps(kLowestCosine)));
    }
}

// Makes of the products of token i with those from `from` on minus half of the squared distances: a.b - (a.a + b.b) / 2.
void make_negative_distances(float* products_of_i, float own, const float* half_squares, int64_t from, int64_t columns) {
    for (int64_t j = from; j < columns; j += kLanes) {
        const __m512 both = _mm512_add_ps(_mm512_set1_ps(own), load(half_squares + j));
        const __m512 distance = _mm512_sub_ps(load(products_of_i + j), both);
        // Of NaN and a number, max_ps returns the second.
        store(products_of_i + j, _mm512_max_ps(distance, _mm512_set1_ps(kLowestDistance)));
    }
}

}  // namespace

void match_pairs(const Keys& keys, int64_t n, int64_t prefix, int64_t r, bool nearest, bool shared, int64_t* dest, bool* merged) {
    constexpr int step_width = Step<Activation>::width;
    const int64_t count = n - prefix;
    const int64_t columns = round_up(count, kLanes);
    const int64_t width = keys.heads * keys.head_dim;
    const Activation* first = keys.first + prefix * keys.stride;
    Activation* transposed = buffers.transposed.reserve(columns * width);
    float* of_each = buffers.of_each.reserve(columns);
    float* similarities = buffers.similarities.reserve(count * columns);
    float* taken = buffers.taken.reserve(columns);
    float* best = buffers.best.reserve(count);
    int32_t* partner = buffers.partner.reserve(count);
    std::fill(taken, taken + columns, 0.0f);
    measure_keys(first, keys.stride, width, count, columns, nearest, of_each);
    pack_transposed(first, keys.stride, count, width, transposed, columns);
    const auto make_similarities = nearest ? make_negative_distances : make_cosines;
    // Each pair is computed once: as one of its lower token. kRows tokens at a time.
#pragma omp parallel for schedule(dynamic, kRowsAtOnce / kRows) if (shared)
    for (int64_t start = 0; start < count; start += kRows) {
        const int64_t rows = std::min<int64_t>(kRows, count - start);
        const int64_t from = start / kLanes * kLanes;
        products<Activation>(rows, columns - from, first + start * keys.stride, keys.stride, transposed + from * step_width,
                             columns * step_width, width / step_width, similarities + start * columns + from, columns);
        for (int64_t i = start; i < start + rows; i++) {
            float* own = similarities + i * columns;
            make_similarities(own, of_each[i], of_each, from, columns);
            std::tie(best[i], partner[i]) = largest(own, taken, i + 1, count);
        }
    }
    std::fill(merged, merged + n, false);
    for (int64_t pair = 0; pair < r; pair++) {
        // Of equal pairs, the first one of the lowest lower token.
        const int64_t lower = largest(best, taken, 0, count).second;
        const int64_t higher = partner[lower];
        merged[prefix + lower] = true;
        dest[prefix + lower] = prefix + higher;  // its old position, for now
        taken[lower] = taken[higher] = kNever;
        for (int64_t i = 0; i < higher; i++) {
            const bool has_lost_its_partner = partner[i] == lower || partner[i] == higher;
            if (has_lost_its_partner && taken[i] == 0)
                std::tie(best[i], partner[i]) = largest(similarities + i * columns, taken, i + 1, count);
        }
    }
    // The tokens that stay keep their order.
    int64_t next = 0;
    for (int64_t i = 0; i < n; i++)
        if (!merged[i]) dest[i] = next++;
    for (int64_t i = 0; i < n; i++)
        if (merged[i]) dest[i] = dest[dest[i]];
}
