// Bipartite soft matching (ToMe, section 3), the rule of the paper.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "largest.h"
#include "matching.h"
#include "products.h"

namespace {

struct Buffers {
    Scratch<float> unit_a;  // the metric of the tokens of A, as unit vectors
    Scratch<float> unit_b;
    Scratch<float> transposed_b;
    Scratch<float> similarities;
    Scratch<float> best;       // for each token of A: the largest similarity
    Scratch<int32_t> partner;  // and the token of B that has it
    Scratch<int32_t> order;
};
thread_local Buffers buffers;

// The metric of the tokens begin, begin + 2, ...: the mean of their keys over the heads, as unit vectors
// unit[count][head_dim].
void unit_keys(const Keys& keys, int64_t begin, int64_t count, float* unit) {
    const int64_t heads = keys.heads, head_dim = keys.head_dim;
    const __m512 share = _mm512_set1_ps(1.0f / heads);
    for (int64_t i = 0; i < count; i++) {
        const Activation* row = keys.first + (begin + 2 * i) * keys.stride;
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

}  // namespace

void match_as_paper(const Keys& keys, int64_t n, int64_t prefix, int64_t r, bool shared, int64_t* dest, bool* merged) {
    // Sets A and B alternate; prefix tokens are counted, but stay out of both.
    const int64_t first_a = prefix + prefix % 2;
    const int64_t first_b = prefix + 1 - prefix % 2;
    const int64_t count_a = (n - first_a + 1) / 2;
    const int64_t count_b = (n - first_b + 1) / 2;
    const int64_t columns = round_up(count_b, kLanes);
    const int64_t head_dim = keys.head_dim;
    float* unit_b = buffers.unit_b.reserve(count_b * head_dim);
    float* transposed_b = buffers.transposed_b.reserve(columns * head_dim);
    float* best = buffers.best.reserve(count_a);
    int32_t* partner = buffers.partner.reserve(count_a);
    int32_t* order = buffers.order.reserve(count_a);
    unit_keys(keys, first_b, count_b, unit_b);
    pack_transposed(unit_b, head_dim, count_b, head_dim, transposed_b, columns);
    // The most similar token of B for each token of A, kRows tokens of A at a time.
#pragma omp parallel for schedule(dynamic, kRowsAtOnce / kRows) if (shared)
    for (int64_t start = 0; start < count_a; start += kRows) {
        // Buffers of the thread that runs this, while the others are of the thread that began.
        float* unit_a = buffers.unit_a.reserve(kRows * head_dim);
        float* similarities = buffers.similarities.reserve(kRows * columns);
        const int64_t rows = std::min<int64_t>(kRows, count_a - start);
        unit_keys(keys, first_a + 2 * start, rows, unit_a);
        products<float>(rows, columns, unit_a, head_dim, transposed_b, columns, head_dim, similarities, columns);
        for (int64_t row = 0; row < rows; row++)
            std::tie(best[start + row], partner[start + row]) = largest(similarities + row * columns, nullptr, 0, count_b);
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
