// 2^x and GELU by polynomials, which `prepare` interpolates. For bfloat16, which rounds to 2^-9, lower degrees suffice.
// Nothing here runs while the library loads, because the processor may lack these instructions.
#pragma once

#include <array>
#include <cmath>

#include "simd.h"

constexpr int kPowerDegree = std::is_same_v<Activation, float> ? 5 : 3;
constexpr int kTailDegree = std::is_same_v<Activation, float> ? 5 : 4;

// Coefficients, lowest degree first, of the polynomial that equals f at the Chebyshev nodes between -1/2 and 1/2.
template <int Degree, class F>
std::array<float, Degree + 1> interpolate(F f) {
    double node[Degree + 1], difference[Degree + 1], sum[Degree + 1] = {};
    for (int i = 0; i <= Degree; i++) {
        node[i] = std::cos(M_PI * (i + 0.5) / (Degree + 1)) / 2;
        difference[i] = f(node[i]);
    }
    for (int j = 1; j <= Degree; j++)  // Newton's divided differences
        for (int i = Degree; i >= j; i--) difference[i] = (difference[i] - difference[i - 1]) / (node[i] - node[i - j]);
    for (int i = Degree; i >= 0; i--) {  // sum * (u - node[i]) + difference[i]
        for (int j = Degree; j > 0; j--) sum[j] = sum[j - 1] - node[i] * sum[j];
        sum[0] = difference[i] - node[i] * sum[0];
    }
    std::array<float, Degree + 1> coefficients;
    for (int i = 0; i <= Degree; i++) coefficients[i] = static_cast<float>(sum[i]);
    return coefficients;
}

inline std::array<float, kPowerDegree + 1> kPower;  // of 2^u

// 2^x to the precision of Activation. The result underflows to 0; NaN stays NaN.
inline __m512 exp2(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, 8), u = _mm512_sub_ps(x, n);
    __m512 sum = _mm512_set1_ps(kPower[kPowerDegree]);
#pragma GCC unroll 8
    for (int i = kPowerDegree - 1; i >= 0; i--) sum = _mm512_fmadd_ps(sum, u, _mm512_set1_ps(kPower[i]));
    return _mm512_scalef_ps(sum, n);
}

// The tail Phi(-s) of the normal distribution for s from 0 to 6: one polynomial for each of 16 pieces around k * kStep.
// The coefficients of one degree, for all pieces, fill one register.
constexpr double kStep = 0.4;

alignas(64) inline float kTail[kTailDegree + 1][kLanes];

// Fills the tables. Must run before any other function of this file.
inline void prepare() {
    kPower = interpolate<kPowerDegree>([](double u) { return std::exp2(u); });
    for (int k = 0; k < kLanes; k++) {
        const auto piece = interpolate<kTailDegree>([k](double u) { return std::erfc((k + u) * kStep * M_SQRT1_2) / 2; });
        for (int i = 0; i <= kTailDegree; i++) kTail[i][k] = piece[i];
    }
}

// x * Phi(x), the Gaussian error linear unit (arXiv 1606.08415), to the precision of Activation: max(x, 0) - |x| *
// Phi(-|x|). For |x| above 6 the second term is that of 6, which is 6e-9. NaN stays NaN.
inline __m512 gelu(__m512 x) {
    const __m512 s = _mm512_min_ps(_mm512_set1_ps(15 * kStep), _mm512_abs_ps(x));
    // Floats near 1.5 * 2^23 are whole numbers: adding it rounds to one, which is then in the lowest bits.
    const __m512 scale = _mm512_set1_ps(1 / kStep), whole = _mm512_set1_ps(0x1.8p23f);
    const __m512 shifted = _mm512_fmadd_ps(s, scale, whole);  // its lowest bits are the number of the piece
    const __m512 u = _mm512_fmsub_ps(s, scale, _mm512_sub_ps(shifted, whole));
    const auto piece = [&](int i) {
        return _mm512_permutexvar_ps(_mm512_castps_si512(shifted), _mm512_load_ps(kTail[i]));
    };
    __m512 tail = piece(kTailDegree);
#pragma GCC unroll 8
    for (int i = kTailDegree - 1; i >= 0; i--) tail = _mm512_fmadd_ps(tail, u, piece(i));
    return _mm512_fnmadd_ps(s, tail, _mm512_max_ps(x, _mm512_setzero_ps()));
}
