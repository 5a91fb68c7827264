// Layer normalisation of rows (arXiv 1607.06450, equation 4) and normalisation of pixels, with weights in float32.
#include <cmath>

#include "kernels.h"

namespace {

constexpr int64_t kRowsAtOnce = 32;        // a thread that other processes slow down takes fewer
constexpr int64_t kWorthWaking = 1 << 18;  // values; fewer are computed faster than another thread wakes up

}  // namespace

void tome_layer_norm(const Activation* x, const float* weight, const float* bias, int64_t rows, int64_t dim, float eps,
                     Activation* out) {
#pragma omp parallel for schedule(dynamic, kRowsAtOnce) if (rows * dim > kWorthWaking)
    for (int64_t row = 0; row < rows; row++) {
        const Activation* in = x + row * dim;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t c = 0; c < dim; c += kLanes) sum = _mm512_add_ps(sum, load(in + c, first_lanes_mask(dim - c)));
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / dim);
        // The squares are of deviations from the mean, which avoids cancellation; the row is in the cache by now.
        __m512 squares = _mm512_setzero_ps();
        for (int64_t c = 0; c < dim; c += kLanes) {
            const __mmask16 m = first_lanes_mask(dim - c);
            const __m512 d = _mm512_maskz_sub_ps(m, load(in + c, m), mean);
            squares = _mm512_fmadd_ps(d, d, squares);
        }
        const __m512 inverse = _mm512_set1_ps(1 / std::sqrt(_mm512_reduce_add_ps(squares) / dim + eps));
        for (int64_t c = 0; c < dim; c += kLanes) {
            const __mmask16 m = first_lanes_mask(dim - c);
            const __m512 unit = _mm512_mul_ps(_mm512_sub_ps(load(in + c, m), mean), inverse);
            store(out + row * dim + c, _mm512_fmadd_ps(unit, load(weight + c, m), load(bias + c, m)), m);
        }
    }
}

// Multiplies pixels of 0 to 255 by the scale of their channel and adds its shift, plane by plane.
void tome_normalise(const uint8_t* pixels, const float* scale, const float* shift, int64_t planes, int64_t channels,
                    int64_t size, Activation* out) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t plane = 0; plane < planes; plane++) {
        const __m512 times = _mm512_set1_ps(scale[plane % channels]);
        const __m512 plus = _mm512_set1_ps(shift[plane % channels]);
        const uint8_t* in = pixels + plane * size;
        for (int64_t i = 0; i < size; i += kLanes) {
            const __mmask16 m = first_lanes_mask(size - i);
            const __m512i values = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, in + i));
            store(out + plane * size + i, _mm512_fmadd_ps(_mm512_cvtepi32_ps(values), times, plus), m);
        }
    }
}
