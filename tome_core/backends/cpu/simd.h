// AVX-512 helpers of the kernels. All arithmetic is in float32. Each file is compiled into two libraries, one for each type
// of activations: float needs AVX-512 F, BW, DQ and VL alone, bf16 its own instructions as well. Whatever asks for these is
// between #ifdef TOME_BF16 and #endif.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef TOME_BF16
using bf16 = uint16_t;  // stored as its 16 bits
using Activation = bf16;
#else
using Activation = float;
#endif
constexpr int kLanes = 16;  // floats in one register

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
// The mask of the first n lanes; of all lanes if n is larger.
inline __mmask16 first_lanes_mask(int64_t n) { return n >= kLanes ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

inline __m512 load(const float* p, __mmask16 m = 0xffff) { return _mm512_maskz_loadu_ps(m, p); }
inline void store(float* p, __m512 x, __mmask16 m = 0xffff) { _mm512_mask_storeu_ps(p, m, x); }
#ifdef TOME_BF16
inline __m512 load(const bf16* p, __mmask16 m = 0xffff) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
}
inline void store(bf16* p, __m512 x, __mmask16 m = 0xffff) {
    _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(x));
}
#endif

// Memory for temporary values of type T, 64-byte aligned, which is kept from call to call. Each thread needs its own.
template <class T>
class Scratch {
   public:
    // Room for `count` values, whose content is undefined. Valid until the next call.
    T* reserve(int64_t count) {
        const size_t bytes = count * sizeof(T) + 64;
        if (memory.size() < bytes) memory.resize(bytes);
        return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t{63});
    }

   private:
    std::vector<char> memory;
};
